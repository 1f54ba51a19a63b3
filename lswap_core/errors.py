"""The errors that this package raises on purpose.

    LswapError                      the root; catch this one to catch them all
    +- FormatError        exit 3    a file violates its format                      .path .tensor
    +- RecipeError        exit 4    the request is impossible
    |  +- MismatchError             two checkpoints cannot be combined              .issues
    |  +- SelectionError            a selector matched nothing
    +- StalePlanError     exit 5    a source changed after planning
    +- VerificationError  exit 6    an output differs from its manifest             .issues
    +- SourceError        exit 7    a source cannot be reached (hub, network, credentials)

`OSError` passes through unchanged, with the path it names (exit 1). A message says what is wrong, where, what was expected
and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

_SHOWN_ISSUES = 12


@contextmanager
def located(path: object) -> Iterator[None]:
    """Add `path` to an OSError that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class LswapError(Exception):
    """Root of the tree. `exit_code` is the command line's exit status."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all attributes when an error is pickled for another process."""
        return _revive, (type(self), self.args), self.__dict__


def _revive(kind: type[LswapError], arguments: tuple[object, ...]) -> LswapError:
    return kind.__new__(kind, *arguments)


class FormatError(LswapError):
    """A file violates its format: safetensors, an index, a plan or a manifest."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, path: str, tensor: str | None = None) -> None:
        where = path if tensor is None else f"{path}: tensor {tensor!r}"
        super().__init__(f"{where}: {message}")
        self.path = path
        self.tensor = tensor


class RecipeError(LswapError):
    """The request is impossible, whatever the files contain."""

    exit_code: ClassVar[int] = 4


class _ListingError(LswapError):
    """An error that collects everything wrong before it is raised."""

    def __init__(self, message: str, issues: Iterable[str]) -> None:
        self.issues = tuple(issues)
        shown = "; ".join(self.issues[:_SHOWN_ISSUES])
        hidden = len(self.issues) - _SHOWN_ISSUES
        super().__init__(f"{message}: {shown}" + (f"; and {hidden} more (--json lists them all)" if hidden > 0 else ""))


class MismatchError(_ListingError, RecipeError):
    """Two checkpoints cannot be combined; `issues` holds every reason, one sentence each."""


class SelectionError(RecipeError):
    """A selector matched nothing."""


class StalePlanError(LswapError):
    """A source is no longer what it was when the plan was made."""

    exit_code: ClassVar[int] = 5


def no_such_file(path: str) -> FileNotFoundError:
    """The error to raise for a remote file that does not exist."""
    return FileNotFoundError(errno.ENOENT, "there is no such file", path)


def became_shorter(path: object) -> StalePlanError:
    """The error to raise where a file ends before its tensors do."""
    return StalePlanError(f"{path}: became shorter while it was read; plan again")


class VerificationError(_ListingError):
    """An output differs from its manifest or its sources; `issues` holds every difference."""

    exit_code: ClassVar[int] = 6


class SourceError(LswapError):
    """A source cannot be reached: hub, network, credentials."""

    exit_code: ClassVar[int] = 7
