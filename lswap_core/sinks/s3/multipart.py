"""The parts that an object store puts an output file together from: planned before a byte moves. Values only, no I/O.

Limits of S3, which compatible stores share: 10,000 parts to an object, each of 5 MiB to 5 GiB, the last as small as it is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from lswap_core.checkpoint.catalogue import Role
from lswap_core.errors import RecipeError
from lswap_core.plan.plan import OutputFile
from lswap_core.plan.runs import is_plain

MIB = 1024 * 1024
MOST_PARTS = 10_000
LEAST_BYTES = 5 * MIB
MOST_BYTES = 5 * 1024 * MIB
SENT_BYTES = 16 * MIB
"""A part that travels is at most this, if that makes no more than MOST_PARTS: it waits in memory until it is complete."""
SPLICED_BYTES = 512 * MIB
"""A part that is copied within the store is at most this, likewise, so that several are copied at a time."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Bytes from `begin` on of a source file that lies in the store."""

    role: Role
    file: str
    begin: int

    def after(self, count: int) -> Origin:
        """`count` bytes further."""
        return Origin(self.role, self.file, self.begin + count)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes [begin, end) of an output file that are sent or, where there is an origin, copied by the store."""

    begin: int
    end: int
    origin: Origin | None

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin

    def cut(self, begin: int, end: int) -> Stretch:
        """Bytes [begin, end) of it, which count from the file's first."""
        return Stretch(begin, end, self.origin and self.origin.after(begin - self.begin))


@dataclass(frozen=True, slots=True)
class UploadPart(Stretch):
    """The `number`-th of the stretches that the store puts a file together from, counted from 1."""

    number: int


@dataclass(frozen=True, slots=True)
class Stretches:
    """All of an output file, first to last. Each may be a part, and so may what it is cut into if the pieces are no smaller
    than `least_bytes`; the file's last one may be of any size.
    """

    of: tuple[Stretch, ...]
    least_bytes: int


def stretch_file(file: OutputFile, stored: Collection[tuple[Role, str]], header_of: tuple[Role, str] | None = None) -> Stretches:
    """What of an output file is sent and what the store copies.

    stored: source files, by role and name, from which the store can copy. header_of: the one that begins with the output
    file's very header, if there is one. Of bytes that could be copied, at most 5 MiB for each stretch of others travel,
    and what lies in stretches of less than 5 MiB. RecipeError for more than 10,000 parts of 5 GiB.
    """
    size = file.header.file_size
    if size > MOST_PARTS * MOST_BYTES:
        raise _too_large(file.name)
    stretches = list(_joined(_stretches(file, stored, header_of)))
    factor = 1
    while True:
        least = LEAST_BYTES * factor
        padded = _padded(stretches, least)
        if len(list(_cut(padded, factor))) <= MOST_PARTS:
            return Stretches(tuple(padded), least)
        factor *= 2


def cut_parts(name: str, stretches: Stretches, cuts: Collection[int] = ()) -> tuple[UploadPart, ...]:
    """The parts that a file of that name is made of. cuts: offsets at which a part is to end and the next to begin; they leave
    pieces of `least_bytes` or more. What is sent and what is copied does not depend on them. RecipeError for too many of them.
    """
    pieces = list(_cut_at(stretches.of, sorted(cuts)))
    factor = stretches.least_bytes // LEAST_BYTES
    while len(parts := list(_cut(pieces, factor))) > MOST_PARTS:
        if factor * SENT_BYTES >= MOST_BYTES:
            raise _too_large(name)
        factor *= 2
    return tuple(UploadPart(part.begin, part.end, part.origin, number) for number, part in enumerate(parts, 1))


def _too_large(name: str) -> RecipeError:
    return RecipeError(f"{name} would take more than {MOST_PARTS} parts, of 5 GiB at most; choose a --shard-size")


def _cut_at(stretches: Iterable[Stretch], cuts: list[int]) -> Iterator[Stretch]:
    for stretch in stretches:
        ends = [stretch.begin, *cuts[bisect_right(cuts, stretch.begin) : bisect_left(cuts, stretch.end)], stretch.end]
        for begin, end in pairwise(ends):
            yield stretch.cut(begin, end)


def _stretches(file: OutputFile, stored: Collection[tuple[Role, str]], header_of: tuple[Role, str] | None) -> Iterator[Stretch]:
    yield Stretch(0, file.header.data_begin, None if header_of is None else Origin(*header_of, 0))
    for step in file.steps():
        ref = step.made_of.refs[0]
        copied = is_plain(step) and (ref.role, ref.file) in stored
        yield Stretch(step.begin, step.end, Origin(ref.role, ref.file, ref.begin) if copied else None)


def _joined(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Neighbours that go on where the one before ends, in the source too, as one."""
    pending: Stretch | None = None
    for stretch in stretches:
        if stretch.size_bytes == 0:
            continue
        if pending is None:
            pending = stretch
        elif (pending.origin and pending.origin.after(pending.size_bytes)) == stretch.origin:
            pending = Stretch(pending.begin, stretch.end, pending.origin)
        else:
            yield pending
            pending = stretch
    if pending is not None:
        yield pending


def _padded(stretches: Iterable[Stretch], least: int) -> list[Stretch]:
    """What is copied in stretches of `least` bytes or more, and what is sent between them, too, the last stretch excepted.

    What is sent and too short takes bytes from what is copied before or after it, or swallows that.
    """
    short = [Stretch(s.begin, s.end, s.origin if s.size_bytes >= least else None) for s in stretches]
    left = list(reversed(list(_joined(short))))
    done: list[Stretch] = []
    while left:
        stretch = left.pop()
        if stretch.origin is not None or stretch.size_bytes >= least or not left:
            done.append(stretch)
            continue
        need, after = least - stretch.size_bytes, left.pop()
        if after.size_bytes - need >= least or (not left and after.size_bytes > need):
            left.append(after.cut(after.begin + need, after.end))
            done.append(Stretch(stretch.begin, after.begin + need, None))
        elif done and done[-1].origin is not None and done[-1].size_bytes - need >= least:
            before = done.pop()
            done += [before.cut(before.begin, before.end - need), Stretch(before.end - need, stretch.end, None)]
            left.append(after)
        else:
            end = after.end
            if left and left[-1].origin is None:
                end = left.pop().end
            left.append(Stretch(stretch.begin, end, None))
    return done


def _cut(stretches: list[Stretch], factor: int) -> Iterator[Stretch]:
    """Stretches in parts, none of which is larger than is said: equal ones but for what is sent at the end of a file, where
    all but the last are as large as can be. So a file that is sent whole suits stores that want parts of one size.
    factor: how many times larger than usual they may be.
    """
    sent, spliced = min(SENT_BYTES * factor, MOST_BYTES), min(SPLICED_BYTES * factor, MOST_BYTES)
    for stretch in stretches:
        most = sent if stretch.origin is None else spliced
        count = -(-stretch.size_bytes // most)
        full = stretch.origin is None and stretch is stretches[-1]
        for number in range(count):
            begin, end = (
                (number * most, min((number + 1) * most, stretch.size_bytes))
                if full
                else (stretch.size_bytes * number // count, stretch.size_bytes * (number + 1) // count)
            )
            yield stretch.cut(stretch.begin + begin, stretch.begin + end)
