"""A plan's work in parts, one for each of several workers. Who does what follows from the plan and the number of parts alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lswap_core.errors import RecipeError
from lswap_core.plan.plan import Plan, Step
from lswap_core.plan.runs import RUN_BYTES, is_plain, runs

_FINENESS = 8
"""Runs that a part's share of the copies has at least, as far as tensors are small enough: how even parts are."""


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`-th of `count` parts, counted from 1. RecipeError where there is no such part."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise RecipeError(f"--part is {self}; expected k/n with k from 1 to n, as 3/16")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def divide(plan: Plan, count: int) -> list[tuple[Step, ...]]:
    """The steps of each of `count` parts, in the plan's order; together they are all steps, each once.

    Copied runs are divided by the bytes that they move, computed ones by those that they read and write, each kind by itself
    and into neighbours. So parts are even whether or not copying costs anything, which hangs on the filesystem, and a file
    has few places where two parts meet. A tensor is never divided.
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
    """For each of a row of things of these sizes, to which of `count` neighbours it goes, from 0 on: evenly, in their order."""
    total, at, numbers = sum(sizes), 0, []
    for size in sizes:
        # By its middle, in whole numbers: no machine rounds otherwise. What has no bytes at the very end is the last one's.
        numbers.append(min((2 * at + size) * count // max(2 * total, 1), count - 1))
        at += size
    return numbers


def work_bytes(steps: Iterable[Step]) -> int:
    """Bytes that the steps write, and of computed ones those that they read."""
    return sum(step.size_bytes + (0 if is_plain(step) else sum(ref.size_bytes for ref in step.made_of.refs)) for step in steps)
