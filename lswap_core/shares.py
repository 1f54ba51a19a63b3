"""A plan's work in parts, one for each of several workers. Who does what follows from the plan and the number of parts alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lswap_core.errors import RecipeError
from lswap_core.plan import Plan, Step
from lswap_core.runs import RUN_BYTES, is_plain, runs

AUTO = "auto"
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


def parse_part(text: str, environ: Mapping[str, str]) -> Part:
    """`k/n`; or `auto` or `auto/n`: what a launcher says in `environ`, see `part_of`. RecipeError for anything else."""
    if match := re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII):
        return Part(int(match[1]), int(match[2]))
    if match := re.fullmatch(rf"{AUTO}(?:/(\d{{1,6}}))?", text, re.ASCII):
        return part_of(environ, None if match[1] is None else int(match[1]))
    raise RecipeError(f"--part is {text!r}; expected k/n with k from 1 to n, as 3/16, or auto, or auto/16")


def part_of(environ: Mapping[str, str], count: int | None = None) -> Part:
    """The part that this process is to do, by the variables that its launcher sets: RANK of WORLD_SIZE (torchrun), SLURM_PROCID
    of SLURM_NTASKS (srun), SLURM_ARRAY_TASK_ID in a job array without gaps, or JOB_COMPLETION_INDEX (a Kubernetes job, which
    says its index and not of how many: `count` does).

    RecipeError where none is set, where two differ, or where nobody says of how many. A Slurm step of one task says nothing
    beside another launcher: it is what that one was started in.
    """
    told = {
        "RANK": (_number(environ, "RANK"), _number(environ, "WORLD_SIZE")),
        "SLURM_PROCID": (_number(environ, "SLURM_PROCID"), _number(environ, "SLURM_NTASKS")),
        "SLURM_ARRAY_TASK_ID": _task_of_array(environ),
        "JOB_COMPLETION_INDEX": (_number(environ, "JOB_COMPLETION_INDEX"), None),
    }
    set_ones = {name: said for name, said in told.items() if said[0] is not None}
    if len(set_ones) > 1 and set_ones.get("SLURM_PROCID") in ((0, 1), (0, None)):
        del set_ones["SLURM_PROCID"]
    if not set_ones:
        raise RecipeError(f"--part {AUTO}: none of {', '.join(told)} is set; say which part of how many, as --part 3/16")
    indices = {index for index, _ in set_ones.values()}
    counts = {of for _, of in set_ones.values() if of is not None} | ({count} if count is not None else set())
    if len(indices) > 1 or len(counts) > 1:
        said = [f"{name} says {index}" + (f" of {of}" if of is not None else "") for name, (index, of) in set_ones.items()]
        raise RecipeError(
            f"--part {AUTO}{'' if count is None else f'/{count}'}: {', '.join(said)} (from 0 on), which do not go together; "
            "say which part of how many, as --part 3/16"
        )
    (index,) = indices
    if index is None or not counts:
        raise RecipeError(f"--part {AUTO}: {min(set_ones)} does not say of how many; say that, as --part {AUTO}/16")
    return Part(index + 1, counts.pop())


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


def _task_of_array(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Index, from 0 on, and number of the tasks of a Slurm array. RecipeError for one with gaps: that a task was left out, or
    is done again by itself, must not change what the others have done.
    """
    task = _number(environ, "SLURM_ARRAY_TASK_ID")
    if task is None:
        return None, None
    first, last = _number(environ, "SLURM_ARRAY_TASK_MIN"), _number(environ, "SLURM_ARRAY_TASK_MAX")
    count, step = _number(environ, "SLURM_ARRAY_TASK_COUNT"), _number(environ, "SLURM_ARRAY_TASK_STEP") or 1
    if first is None or last is None or count is None or (last - first) // step + 1 != count or (task - first) % step:
        raise RecipeError(
            f"--part {AUTO}: the job array is no plain range of tasks; say which part of how many, counting from 1, as "
            '--part "$SLURM_ARRAY_TASK_ID/16"'
        )
    return (task - first) // step, count


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise RecipeError(f"--part {AUTO}: {name} is {text!r}, not a whole number; say which part of how many, as --part 3/16")
    return int(text)
