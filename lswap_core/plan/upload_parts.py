"""Plans the upload parts of an output file before a byte moves. Values only, no I/O.

Limits of S3, which compatible stores share: 10,000 parts per object, each of 5 MiB to 5 GiB; the last may be smaller.
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
"""Most bytes of a part that is sent, if that gives no more than MOST_PARTS parts: it waits in memory until it is complete."""
SPLICED_BYTES = 512 * MIB
"""The same for a part that is copied within the store, so that several are copied at a time."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Bytes of a source file in the store, from `begin` on."""

    role: Role
    file: str
    begin: int

    def after(self, count: int) -> Origin:
        """The origin `count` bytes further on."""
        return Origin(self.role, self.file, self.begin + count)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes [begin, end) of an output file, which are sent or, where there is an origin, copied by the store."""

    begin: int
    end: int
    origin: Origin | None

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin

    def cut(self, begin: int, end: int) -> Stretch:
        """Bytes [begin, end) of the file, as a stretch."""
        return Stretch(begin, end, self.origin and self.origin.after(begin - self.begin))


@dataclass(frozen=True, slots=True)
class UploadPart(Stretch):
    """Part `number` of an upload, counted from 1."""

    number: int


@dataclass(frozen=True, slots=True)
class Stretches:
    """The stretches of an output file, first to last. Each may be a part, and may be cut into pieces of at least
    `least_bytes`. The file's last piece may have any size.
    """

    of: tuple[Stretch, ...]
    least_bytes: int


def stretch_file(file: OutputFile, stored: Collection[tuple[Role, str]], header_of: tuple[Role, str] | None = None) -> Stretches:
    """Decide which bytes of an output file are sent and which the store copies.

    stored: source files, by role and name, from which the store can copy. header_of: the source file that begins with the
    output file's header, if there is one. Bytes that could be copied are sent in two cases: at most 5 MiB beside each stretch
    of other bytes, and in stretches of less than 5 MiB. Raises RecipeError for more than 10,000 parts of 5 GiB.
    """
    size = file.header.file_size
    if size > MOST_PARTS * MOST_BYTES:
        raise _too_large(file.name)
    stretches = _joined(_stretches(file, stored, header_of))
    factor = 1
    while True:
        least = LEAST_BYTES * factor
        padded = _padded(stretches, least)
        if len(list(_cut(padded, factor))) <= MOST_PARTS:
            return Stretches(tuple(padded), least)
        factor *= 2


def cut_parts(name: str, stretches: Stretches, cuts: Collection[int] = ()) -> tuple[UploadPart, ...]:
    """Return the parts of the file of that name. cuts: offsets at which a part must end, in pieces of at least `least_bytes`.

    The cuts do not change which bytes are sent. Raises RecipeError for too many parts.
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


def _joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Join neighbours that are also neighbours in the source, and leave out empty stretches."""
    joined: list[Stretch] = []
    for stretch in stretches:
        last = joined[-1] if joined else None
        if stretch.size_bytes == 0:
            continue
        if last is not None and (last.origin and last.origin.after(last.size_bytes)) == stretch.origin:
            joined[-1] = Stretch(last.begin, stretch.end, last.origin)
        else:
            joined.append(stretch)
    return joined


def _padded(stretches: Iterable[Stretch], least: int) -> list[Stretch]:
    """Extend stretches until copied ones, and sent ones between them, have at least `least` bytes; the last may be shorter.

    A sent stretch that is too short takes bytes from the copied ones around it, or absorbs them.
    """
    short = [Stretch(s.begin, s.end, s.origin if s.size_bytes >= least else None) for s in stretches]
    left = list(reversed(_joined(short)))
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
    """Cut stretches into parts of at most the usual size times `factor`.

    The parts of a stretch are equal. At the end of a file, all sent parts but the last have the largest size, so a file that
    is sent whole suits stores that want parts of one size.
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
