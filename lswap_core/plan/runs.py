"""Runs: tensors that can be copied together, since their bytes are neighbours both in the source and in the output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from lswap_core.checkpoint.catalogue import Role, TensorRef
from lswap_core.plan.plan import OutputFile, Step
from lswap_core.recipe.expressions import Copy

BLOCK_BYTES = 4096
"""Filesystems share blocks of this size, where offsets are equal modulo this size. Those with larger blocks share less."""
RUN_BYTES = 64 * 1024 * 1024
"""Most bytes in a run of several tensors: large enough that calls cost little, small enough to divide among threads."""


@dataclass(frozen=True, slots=True)
class Run:
    """Steps that are done together: neighbouring copies from one source file, or one computed step."""

    steps: tuple[Step, ...]

    @property
    def file(self) -> str:
        """The output file."""
        return self.steps[0].file

    @property
    def begin(self) -> int:
        """Offset of the first byte in the output file."""
        return self.steps[0].begin

    @property
    def end(self) -> int:
        """Offset after the last byte in the output file."""
        return self.steps[-1].end

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin

    @property
    def copied(self) -> bool:
        """Whether its bytes are copied from a source without change."""
        return is_plain(self.steps[0])

    @property
    def source(self) -> TensorRef:
        """The tensor that its first byte comes from; for a computed step, its first operand."""
        return self.steps[0].made_of.refs[0]


@dataclass(frozen=True, slots=True)
class Base:
    """The source file that an output file is most like. shared: steps that have the same bytes at the same offsets in both.
    whole: these are all steps of the file.
    """

    role: Role
    file: str
    shared: tuple[Step, ...]
    whole: bool


def is_plain(step: Step) -> bool:
    """Whether the step copies bytes without rounding."""
    return isinstance(step.made_of, Copy) and step.made_of.cast is None


def is_shareable(step: Step) -> bool:
    """Whether the step copies bytes that begin at the same offset within a filesystem block as in the source."""
    return is_plain(step) and (step.made_of.refs[0].begin - step.begin) % BLOCK_BYTES == 0


def base_of(file: OutputFile) -> Base | None:
    """The source file with most bytes at the same offsets, None where no byte is. The caller compares the headers."""
    in_place = [step for step in file.steps() if is_plain(step) and step.made_of.refs[0].begin == step.begin]
    weights: Counter[tuple[Role, str]] = Counter()
    for step in in_place:
        weights[_origin(step)] += step.size_bytes
    if not weights:
        return None
    (role, name), _ = weights.most_common(1)[0]
    shared = tuple(step for step in in_place if _origin(step) == (role, name))
    return Base(role, name, shared, whole=len(shared) == len(file.made_of))


def runs(steps: Iterable[Step], *, apart: Collection[str] = (), most_bytes: int = RUN_BYTES) -> Iterator[Run]:
    """Group steps, given in the order of files and offsets, into runs. A step named in `apart` is not grouped with other
    steps.
    """
    for _, of_file in groupby(steps, key=attrgetter("file")):
        pending: list[Step] = []
        for step in of_file:
            if pending and not (_follows(pending[-1], step, apart) and step.end - pending[0].begin <= most_bytes):
                yield Run(tuple(pending))
                pending = []
            pending.append(step)
        yield Run(tuple(pending))


def _follows(before: Step, step: Step, apart: Collection[str]) -> bool:
    near, far = before.made_of, step.made_of
    if not (isinstance(near, Copy) and isinstance(far, Copy) and near.cast is None and far.cast is None):
        return False
    joined = near.ref.end == far.ref.begin and near.ref.file == far.ref.file and near.ref.role == far.ref.role
    return joined and before.end == step.begin and (before.name in apart) == (step.name in apart)


def _origin(step: Step) -> tuple[Role, str]:
    return step.made_of.refs[0].role, step.made_of.refs[0].file
