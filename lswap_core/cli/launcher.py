"""Determines a worker's part for `--part auto`, from the environment of Slurm, torchrun and Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lswap_core.errors import RecipeError
from lswap_core.plan.division import Part

AUTO = "auto"


def parse_part(text: str, environ: Mapping[str, str]) -> Part:
    """Parse `k/n`, `auto` or `auto/n`. For `auto`, see `part_of`. Raises RecipeError for anything else."""
    if match := re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII):
        return Part(int(match[1]), int(match[2]))
    if match := re.fullmatch(rf"{AUTO}(?:/(\d{{1,6}}))?", text, re.ASCII):
        return part_of(environ, None if match[1] is None else int(match[1]))
    raise RecipeError(f"--part is {text!r}; expected k/n with k from 1 to n, as 3/16, or auto, or auto/16")


def part_of(environ: Mapping[str, str], count: int | None = None) -> Part:
    """The part of this process, from its launcher's variables: RANK of WORLD_SIZE (torchrun), SLURM_PROCID of SLURM_NTASKS
    (srun), SLURM_ARRAY_TASK_ID in a job array without gaps, or JOB_COMPLETION_INDEX (a Kubernetes job, which gives its index
    alone; `count` gives the number).

    Raises RecipeError where no variable is set, where two differ, or where the number of parts is unknown. A Slurm step of
    one task is ignored beside another launcher, which was started in it.
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


def _task_of_array(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Index, from 0 on, and number of the tasks of a Slurm array. Raises RecipeError for an array with gaps: a task that is
    left out, or repeated alone, must not change the parts of the others.
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
