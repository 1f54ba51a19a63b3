"""Divides a plan's work into parts, one for each worker. The division depends only on the plan and the number of parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lswap_core.errors import RecipeError
from lswap_core.plan.plan import Plan, Step
from lswap_core.plan.runs import RUN_BYTES, is_plain, runs

_FINENESS = 8
"""Each part gets at least this many runs of copies, where tensors are small enough. More runs make the parts more even."""


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number` of `count`, counted from 1. Raises RecipeError where `number` is not from 1 to `count`."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise RecipeError(f"--part is {self}; expected k/n with k from 1 to n, as 3/16")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def divide(plan: Plan, count: int) -> list[tuple[Step, ...]]:
    """Divide the steps into `count` parts, each in the plan's order. Every step is in exactly one part.

    Copied runs are divided by the bytes that they move, computed ones by the bytes that they read and write. Each kind is
    divided by itself, so the parts are even whether or not the filesystem copies for free. A part's runs of one kind are
    neighbours, so few files have work of several parts. A tensor is never divided.
    """
    most_bytes = min(RUN_BYTES, max(1, sum(step.size_bytes for step in plan.steps) // (count * _FINENESS)))
    every = list(runs(plan.steps, most_bytes=most_bytes))
    home: dict[str, int] = {}
    for kind in (True, False):
        of_kind = [run for run in every if run.copied is kind]
        for run, number in zip(of_kind, spread([work_bytes(run.steps) for run in of_kind], count), strict=True):
            home |= dict.fromkeys((step.name for step in run.steps), number)
    parts: list[list[Step]] = [[] for _ in range(count)]
    for step in plan.steps:
        parts[home[step.name]].append(step)
    return [tuple(steps) for steps in parts]


def spread(sizes: Sequence[int], count: int) -> list[int]:
    """Distribute a sequence of items evenly, in order, over `count` groups. Returns each item's group, from 0 on."""
    total, at, numbers = sum(sizes), 0, []
    for size in sizes:
        # The item's middle decides, in integers, so that no machine rounds differently. Empty items at the very end go to
        # the last group.
        numbers.append(min((2 * at + size) * count // max(2 * total, 1), count - 1))
        at += size
    return numbers


def work_bytes(steps: Iterable[Step]) -> int:
    """Bytes that the steps write, plus the bytes that computed steps read."""
    return sum(step.size_bytes + (0 if is_plain(step) else sum(ref.size_bytes for ref in step.made_of.refs)) for step in steps)
