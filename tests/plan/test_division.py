"""Dividing a plan's work, and being told which share is one's own."""

from __future__ import annotations

import random

import pytest

from lswap_core import LayerSwap, RecipeError, lay_out, open_checkpoint
from lswap_core.cli.launcher import parse_part, part_of
from lswap_core.plan.division import Part, divide, work_bytes
from lswap_core.plan.plan import Plan, Step
from tests.build import llama_pair

COUNTS = (1, 2, 3, 16, 1000)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    pair = llama_pair(tmp_path_factory.mktemp("shares"), 12)
    math, lang = open_checkpoint(pair.math, role="math"), open_checkpoint(pair.lang, role="lang")
    return lay_out(LayerSwap(bottom=3, top=2, transition=2).draft(math=math, lang=lang))


def of_kind(steps: tuple[Step, ...], copied: bool) -> list[Step]:
    return [step for step in steps if (len(step.made_of.refs) == 1) is copied]


@pytest.mark.parametrize("count", COUNTS)
def test_every_step_is_in_one_part_and_parts_are_even(plan: Plan, count: int) -> None:
    parts = divide(plan, count)
    assert len(parts) == count
    assert sorted(step.name for part in parts for step in part) == sorted(step.name for step in plan.steps)
    order = {step.name: number for number, step in enumerate(plan.steps)}
    for copied in (True, False):
        whole = of_kind(plan.steps, copied)
        # Neighbours lie in one part or in neighbouring ones.
        laid = [order[step.name] for part in parts for step in of_kind(part, copied)]
        assert laid == sorted(laid)
        # Runs are as fine as an eighth of a part, or one tensor; a part ends at the run that is nearest.
        largest = max(sum(step.size_bytes for step in plan.steps) // (8 * count), *(work_bytes([step]) for step in whole))
        for part in parts:
            assert abs(work_bytes(of_kind(part, copied)) - work_bytes(whole) / count) <= largest + 1


def test_it_hangs_on_the_plan_and_the_count_alone(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json(), path="plan.json")
    assert divide(again, 7) == divide(plan, 7)


def test_work_is_what_is_written_and_of_blends_what_is_read(plan: Plan) -> None:
    copied, blended = of_kind(plan.steps, True), of_kind(plan.steps, False)
    assert blended
    assert work_bytes(copied) == sum(step.size_bytes for step in copied)
    assert work_bytes(blended) == 3 * sum(step.size_bytes for step in blended)


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "0/0", "-1/3", "1/-3", "x/y", "1/", "/3", "3", "", "1/3/5", "1.0/3", "٣/٣", "auto/", "auto/x"]
)
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(RecipeError, match="--part is .*; expected k/n"):
        parse_part(text, {})


def test_a_part_by_number() -> None:
    assert parse_part("3/16", {"RANK": "0", "WORLD_SIZE": "2"}) == Part(3, 16)
    assert str(Part(3, 16)) == "3/16"


RANKS = {"RANK": "2", "WORLD_SIZE": "8"}
STEP = {"SLURM_PROCID": "2", "SLURM_NTASKS": "8"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


def array(task: int, first: int, last: int, step: int = 1, count: int | None = None) -> dict[str, str]:
    said = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count or (last - first) // step + 1}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in said.items()}


@pytest.mark.parametrize(
    ("environ", "text", "part"),
    [
        (RANKS, "auto", Part(3, 8)),
        (STEP, "auto", Part(3, 8)),
        (RANKS | STEP, "auto", Part(3, 8)),
        (RANKS | BATCH, "auto", Part(3, 8)),
        (RANKS | {"SLURM_PROCID": "0"}, "auto", Part(3, 8)),
        (BATCH, "auto", Part(1, 1)),
        (array(1, 1, 16), "auto", Part(1, 16)),
        (array(16, 1, 16) | BATCH, "auto/16", Part(16, 16)),
        (array(0, 0, 3), "auto", Part(1, 4)),
        (array(5, 1, 7, 2), "auto", Part(3, 4)),
        ({"JOB_COMPLETION_INDEX": "0"}, "auto/16", Part(1, 16)),
        ({"JOB_COMPLETION_INDEX": "15"}, "auto/16", Part(16, 16)),
    ],
)
def test_what_launchers_say(environ: dict[str, str], text: str, part: Part) -> None:
    assert parse_part(text, environ | {"HOME": "x"}) == part


@pytest.mark.parametrize(
    ("environ", "text", "said"),
    [
        ({}, "auto", "none of RANK, SLURM_PROCID, SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX is set"),
        ({"WORLD_SIZE": "8"}, "auto", "none of"),
        ({"JOB_COMPLETION_INDEX": "0"}, "auto", "JOB_COMPLETION_INDEX does not say of how many; say that, as --part auto/16"),
        ({"RANK": "0"}, "auto", "RANK does not say of how many"),
        (RANKS | {"SLURM_PROCID": "1", "SLURM_NTASKS": "8"}, "auto", "RANK says 2 of 8, SLURM_PROCID says 1 of 8"),
        (RANKS | {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, "auto", "do not go together"),
        (array(3, 1, 16) | STEP, "auto", "SLURM_PROCID says 2 of 8, SLURM_ARRAY_TASK_ID says 2 of 16"),
        (RANKS, "auto/16", "--part auto/16: RANK says 2 of 8"),
        (array(7, 3, 7, 1, 2), "auto", "no plain range of tasks"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "auto", "no plain range of tasks"),
        (array(4, 1, 7, 2), "auto", "no plain range of tasks"),
        ({"RANK": "two", "WORLD_SIZE": "8"}, "auto", "RANK is 'two', not a whole number"),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "auto", "--part is 9/8"),
        ({"JOB_COMPLETION_INDEX": "0"}, "auto/0", "--part is 1/0"),
    ],
)
def test_what_launchers_say_that_cannot_be(environ: dict[str, str], text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said.replace("(", r"\(")):
        parse_part(text, environ)


def test_every_rank_of_any_launcher_has_a_part_of_its_own() -> None:
    rng = random.Random(5)
    for _ in range(50):
        count, first, step = rng.randrange(1, 40), rng.randrange(0, 5), rng.randrange(1, 4)
        tasks = [first + step * k for k in range(count)]
        by_launcher = [
            [part_of({"RANK": str(k), "WORLD_SIZE": str(count)}) for k in range(count)],
            [part_of({"SLURM_PROCID": str(k), "SLURM_NTASKS": str(count)}) for k in range(count)],
            [part_of(array(task, tasks[0], tasks[-1], step)) for task in tasks],
            [part_of({"JOB_COMPLETION_INDEX": str(k)}, count) for k in range(count)],
        ]
        for parts in by_launcher:
            assert parts == [Part(k, count) for k in range(1, count + 1)]
