"""The parts that an object store puts an output file together from: planned before a byte moves. Values only, no I/O.

Limits of S3, which compatible stores share: 10,000 parts to an object, each of 5 MiB to 5 GiB, the last as small as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from lswap_core.checkpoint import Role
from lswap_core.errors import RecipeError
from lswap_core.plan import OutputFile
from lswap_core.runs import is_plain

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
class Part:
    """Bytes [begin, end) of an output file. Those of a part with an origin are copied by the store, others are sent."""

    number: int
    begin: int
    end: int
    origin: Origin | None

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class _Stretch:
    begin: int
    end: int
    origin: Origin | None

    @property
    def size(self) -> int:
        return self.end - self.begin

    def cut(self, begin: int, end: int) -> _Stretch:
        return _Stretch(begin, end, self.origin and self.origin.after(begin - self.begin))


def part_file(
    file: OutputFile, stored: Collection[tuple[Role, str]], header_of: tuple[Role, str] | None = None
) -> tuple[Part, ...]:
    """The parts of an output file, first to last; together they are the file.

    stored: source files, by role and name, from which the store can copy. header_of: the one that begins with the output
    file's very header, if there is one. Of bytes that could be copied, at most 5 MiB for each stretch of others travel,
    and what lies in stretches of less than 5 MiB. RecipeError for more than 10,000 parts of 5 GiB.
    """
    size = file.header.file_size
    if size > MOST_PARTS * MOST_BYTES:
        raise RecipeError(f"{file.name} would have {size} bytes, more than {MOST_PARTS} parts of 5 GiB; choose a --shard-size")
    stretches = list(_joined(_stretches(file, stored, header_of)))
    factor = 1
    while True:
        least = LEAST_BYTES * factor
        parts = list(
            _cut(_padded(stretches, least), min(SENT_BYTES * factor, MOST_BYTES), min(SPLICED_BYTES * factor, MOST_BYTES))
        )
        if len(parts) <= MOST_PARTS:
            return tuple(Part(number, part.begin, part.end, part.origin) for number, part in enumerate(parts, 1))
        factor *= 2


def _stretches(file: OutputFile, stored: Collection[tuple[Role, str]], header_of: tuple[Role, str] | None) -> Iterator[_Stretch]:
    yield _Stretch(0, file.header.data_begin, None if header_of is None else Origin(*header_of, 0))
    for step in file.steps():
        ref = step.made_of.refs[0]
        copied = is_plain(step) and (ref.role, ref.file) in stored
        yield _Stretch(step.begin, step.end, Origin(ref.role, ref.file, ref.begin) if copied else None)


def _joined(stretches: Iterable[_Stretch]) -> Iterator[_Stretch]:
    """Neighbours that go on where the one before ends, in the source too, as one."""
    pending: _Stretch | None = None
    for stretch in stretches:
        if stretch.size == 0:
            continue
        if pending is None:
            pending = stretch
        elif (pending.origin and pending.origin.after(pending.size)) == stretch.origin:
            pending = _Stretch(pending.begin, stretch.end, pending.origin)
        else:
            yield pending
            pending = stretch
    if pending is not None:
        yield pending


def _padded(stretches: Iterable[_Stretch], least: int) -> list[_Stretch]:
    """What is copied in stretches of `least` bytes or more, and what is sent between them, too, the last stretch excepted.

    What is sent and too short takes bytes from what is copied before or after it, or swallows that.
    """
    short = [_Stretch(s.begin, s.end, s.origin if s.size >= least else None) for s in stretches]
    left = list(reversed(list(_joined(short))))
    done: list[_Stretch] = []
    while left:
        stretch = left.pop()
        if stretch.origin is not None or stretch.size >= least or not left:
            done.append(stretch)
            continue
        need, after = least - stretch.size, left.pop()
        if after.size - need >= least or (not left and after.size > need):
            left.append(after.cut(after.begin + need, after.end))
            done.append(_Stretch(stretch.begin, after.begin + need, None))
        elif done and done[-1].origin is not None and done[-1].size - need >= least:
            before = done.pop()
            done += [before.cut(before.begin, before.end - need), _Stretch(before.end - need, stretch.end, None)]
            left.append(after)
        else:
            end = after.end
            if left and left[-1].origin is None:
                end = left.pop().end
            left.append(_Stretch(stretch.begin, end, None))
    return done


def _cut(stretches: list[_Stretch], sent: int, spliced: int) -> Iterator[_Stretch]:
    """Stretches in parts, none of which is larger than is said: equal ones but for what is sent at the end of a file, where
    all but the last are as large as can be. So a file that is sent whole suits stores that want parts of one size.
    """
    for stretch in stretches:
        most = sent if stretch.origin is None else spliced
        count = -(-stretch.size // most)
        full = stretch.origin is None and stretch is stretches[-1]
        for number in range(count):
            begin, end = (
                (number * most, min((number + 1) * most, stretch.size))
                if full
                else (stretch.size * number // count, stretch.size * (number + 1) // count)
            )
            yield stretch.cut(stretch.begin + begin, stretch.begin + end)
