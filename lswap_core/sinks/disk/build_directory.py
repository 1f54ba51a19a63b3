"""The directory in which several workers build one output, `.<name>.parts` beside its final place.

    build.json              the terms of all parts: the plan, the number of parts, the kind of digests
    part-3-of-16.json       the records of a part that is done; its bytes were durable before
    output/                 the files, each at its full length from the start; it gets the final name

Nothing is locked, since locks may have no effect on cluster filesystems. Small files appear whole, by a link or a rename. Two
workers that write the same small file, or the same range of a file, write the same bytes.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from lswap_core.errors import RecipeError, located
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.sinks.disk.durable import sync_directory, write_all
from lswap_core.sinks.part_records import PART_FILE, Terms, decode, decode_part, encode, encode_part, part_file, refuse_terms

FORMAT = "lswap-build/1"
OUTPUT = "output"
_BUILD_FILE = "build.json"
_FRESH = ".fresh-"
_OURS = re.compile(rf"{re.escape(_FRESH)}.*|{PART_FILE}|{OUTPUT}|{re.escape(_BUILD_FILE)}")
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Build:
    """The build directory of one destination."""

    def __init__(self, destination: Path) -> None:
        """Create nothing yet."""
        self.destination = destination
        self.path = destination.with_name(f".{destination.name}.parts")
        self.output = self.path / OUTPUT

    def join(self, terms: Terms) -> None:
        """Create the directory, or join others who build there.

        Raises RecipeError where their terms differ, where something else has the directory's name, or where the output has
        been published.
        """
        self.path.mkdir(exist_ok=True)
        if self.terms() is None:
            self._refuse_strangers()
            self._found(terms)
        self.check(terms)
        if os.path.lexists(self.destination):
            if not self.output.exists():
                self.remove()  # published a moment ago: this directory was made after that
            raise RecipeError(f"{self.destination} exists by now; nothing was done, since an output is never written over")
        self.output.mkdir(exist_ok=True)
        sync_directory(self.path)
        sync_directory(self.path.parent)

    def terms(self) -> Terms | None:
        """The terms of the build, None where nobody has begun. Raises FormatError where they cannot be read."""
        raw = _read(self.path / _BUILD_FILE)
        return None if raw is None else Terms.of(decode(raw, FORMAT, str(self.path / _BUILD_FILE)))

    def check(self, terms: Terms) -> None:
        """Raises RecipeError where the build has other terms."""
        terms_there = self.terms()
        if terms_there is None:
            raise RecipeError(f"{self.path} was removed by another process while this one began; start it again")
        if terms_there != terms:
            raise refuse_terms(terms_there, terms, self.path, "remove that directory once nobody works in it")

    def records(self, part: Part, terms: Terms) -> list[StepRecord] | None:
        """The records of a part. None where it is not done, or its file is damaged. Raises RecipeError where it was done on
        other terms.
        """
        path = self.path / part_file(part)
        decoded = None if (raw := _read(path)) is None else decode_part(raw, part, terms, str(path))
        return None if decoded is None else decoded[0]

    def note(self, part: Part, terms: Terms, records: Sequence[StepRecord]) -> None:
        """Record that a part is done. Its bytes must be durable already."""
        self.put(self.path / part_file(part), encode_part(part, terms, records))

    def forget(self, part: Part) -> None:
        """Remove the record of a part, durably."""
        (self.path / part_file(part)).unlink(missing_ok=True)
        sync_directory(self.path)

    def put(self, path: Path, data: bytes) -> None:
        """Write a small file of the build, whole and durable. Replaces a file of that name."""
        fresh = self._fresh(data)
        fresh.rename(path)
        sync_directory(path.parent)

    def scratch(self) -> Path:
        """A file name that no other worker uses."""
        return self.path / f"{_FRESH}{uuid4().hex}"

    def remove(self) -> None:
        """Remove the directory, as far as possible: a late worker may be creating a file there. Records go before the terms,
        which say what they belong to.
        """
        with suppress(OSError):
            shutil.rmtree(self.output, ignore_errors=True)
            ours = [path for path in self.path.iterdir() if _OURS.fullmatch(path.name)]
            for path in sorted(ours, key=lambda path: path.name == _BUILD_FILE):
                path.unlink()
            self.path.rmdir()

    def _found(self, terms: Terms) -> None:
        fresh = self._fresh(encode({"format": FORMAT, **asdict(terms)}))
        try:
            os.link(fresh, self.path / _BUILD_FILE)
            fresh.unlink()
        except FileExistsError:
            fresh.unlink()
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            fresh.rename(
                self.path / _BUILD_FILE
            )  # a worker that began at the same moment with other terms sees these when it ends
        sync_directory(self.path)

    def _fresh(self, data: bytes) -> Path:
        path = self.scratch()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with located(path):
                write_all(fd, data)
                os.fsync(fd)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return path

    def _refuse_strangers(self) -> None:
        if strangers := sorted(name for name in os.listdir(self.path) if not _OURS.fullmatch(name)):
            what = f"{self.path} is in the way and not of this program's making ({strangers[0]} is in it)"
            raise RecipeError(f"{what}; move it or choose another --out")


def _read(path: Path) -> bytes | None:
    """The content of a file, None where it does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
