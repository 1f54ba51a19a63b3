"""Divides the sending of an output to a store among workers. The division depends on the plan, on what the store can copy,
and on the number of workers. Values only, no I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

from lswap_core.plan.division import spread
from lswap_core.plan.plan import OutputFile, Plan, Step
from lswap_core.plan.upload_parts import Stretches, UploadPart, cut_parts


@dataclass(frozen=True, slots=True)
class Share:
    """The work of one worker: steps, in the plan's order, and the upload parts, by file and number, that hold exactly their
    bytes.
    """

    steps: tuple[Step, ...]
    parts: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Division:
    """parts: of every output file. shares: of all workers; every step and every upload part is in exactly one."""

    parts: Mapping[str, tuple[UploadPart, ...]]
    shares: tuple[Share, ...]


@dataclass(slots=True)
class _Unit:
    """The smallest unit of work: a range of a file, with its tensors. sent: the number of their bytes that are sent."""

    file: str
    begin: int
    end: int
    steps: list[Step]
    sent_bytes: int = 0

    @property
    def work_bytes(self) -> int:
        """Bytes that are sent to the store and read from the sources for it; where none are, bytes that the store copies."""
        read = sum(ref.size_bytes for step in self.steps for ref in step.made_of.refs)
        return self.sent_bytes + read if self.sent_bytes else self.end - self.begin


def divide_uploads(plan: Plan, stretches: Mapping[str, Stretches], count: int, *, whole: bool = False) -> Division:
    """Divide the work among `count` workers. stretches: of every output file. whole: give away whole files only.

    Ranges with bytes to send are divided by the bytes that are sent or read, ranges that the store copies by their size. Each
    kind is divided by itself into neighbours, so shares are even, whatever copying costs. A tensor is never divided. A border
    between workers may end an upload part early, but never causes bytes to be sent that the store can copy.
    """
    units = [unit for file in plan.files for unit in _units(file, stretches[file.name], whole=whole)]
    home = [0] * len(units)
    for kind in (True, False):
        of_kind = [at for at, unit in enumerate(units) if bool(unit.sent_bytes) is kind]
        for at, number in zip(of_kind, spread([units[at].work_bytes for at in of_kind], count), strict=True):
            home[at] = number
    owners: dict[str, list[tuple[_Unit, int]]] = {file.name: [] for file in plan.files}
    for unit, number in zip(units, home, strict=True):
        owners[unit.file].append((unit, number))
    parts: dict[str, tuple[UploadPart, ...]] = {}
    mine: list[set[tuple[str, int]]] = [set() for _ in range(count)]
    for name, of_file in owners.items():
        cuts = [unit.begin for (_, before), (unit, number) in pairwise(of_file) if before != number]
        parts[name] = cut_parts(name, stretches[name], cuts)
        at = 0
        for part in parts[name]:
            while part.begin >= of_file[at][0].end:
                at += 1
            mine[of_file[at][1]].add((name, part.number))
    steps: list[list[Step]] = [[] for _ in range(count)]
    for unit, number in zip(units, home, strict=True):
        steps[number] += unit.steps
    return Division(parts, tuple(Share(tuple(s), frozenset(p)) for s, p in zip(steps, mine, strict=True)))


def _units(file: OutputFile, stretches: Stretches, *, whole: bool) -> list[_Unit]:
    """The file's units: it is cut wherever a tensor begins and an upload part may end."""
    units = [_Unit(file.name, 0, file.header.file_size, [])]
    row = iter(stretches.of)
    stretch = next(row)
    for step in file.steps():
        while step.begin >= stretch.end and stretch.end < file.header.file_size:
            stretch = next(row)
        last, least = units[-1].begin, stretches.least_bytes
        between = step.begin - max(last, stretch.begin) >= least and (
            stretch.end - step.begin >= least or stretch.end == file.header.file_size
        )
        if not whole and last < step.begin < file.header.file_size and (step.begin == stretch.begin or between):
            units[-1].end = step.begin
            units.append(_Unit(file.name, step.begin, file.header.file_size, []))
        units[-1].steps.append(step)
    sizes = [0 if stretch.origin else stretch.size_bytes for stretch in stretches.of]
    begins, before = [stretch.begin for stretch in stretches.of], list(accumulate(sizes, initial=0))

    def sent_before(offset: int) -> int:
        at = bisect_right(begins, offset) - 1
        return before[at] + (0 if stretches.of[at].origin else min(offset, stretches.of[at].end) - begins[at])

    for unit in units:
        unit.sent_bytes = sent_before(unit.end) - sent_before(unit.begin)
    return units
