"""Shares of an output in a store: together they are all of it, what travels is what one process sends, and they are even."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from lswap_core.plan.plan import Plan, PlanSource
from lswap_core.plan.upload_division import divide_uploads
from lswap_core.plan.upload_parts import stretch_file
from lswap_core.recipe.expressions import Copy
from tests.plan.test_upload_parts import GIB, MIB, STORED, check, output, parts_of

SIZES = [0, 2, 4096, MIB, 3 * MIB, 5 * MIB, 5 * MIB + 2, 7 * MIB, 40 * MIB, 700 * MIB]


def plan_of(pieces: list[list[tuple[str, int]]]) -> Plan:
    files = tuple(output(of_file, name=f"model-{n}.safetensors", first=1000 * n) for n, of_file in enumerate(pieces))
    return Plan("math", (PlanSource("math", "math", "math", ()),), files, (), "{}", None, None)


@pytest.mark.parametrize("seed", range(40))
def test_shares_are_all_of_it_and_what_travels_is_what_one_process_sends(seed: int) -> None:
    rng = random.Random(seed)
    kinds = ["math", "math", "lang", "blend", "base"]
    pieces = [[(rng.choice(kinds), rng.choice(SIZES)) for _ in range(rng.randint(0, 30))] for _ in range(rng.randint(1, 4))]
    plan, count = plan_of(pieces), rng.choice([1, 2, 3, 16])
    stored = rng.choice([STORED, set()])
    alike = ("math", "m") if stored and rng.random() < 0.5 else None
    done = divide_uploads(plan, {file.name: stretch_file(file, stored, alike) for file in plan.files}, count)
    assert sorted(step.name for share in done.shares for step in share.steps) == sorted(step.name for step in plan.steps)
    assert all([*share.steps] == [step for step in plan.steps if step in share.steps] for share in done.shares)
    every = [key for share in done.shares for key in share.parts]
    assert sorted(every) == sorted((file, part.number) for file, parts in done.parts.items() for part in parts)
    for file in plan.files:
        alone, parts = parts_of(file, stored, alike), done.parts[file.name]
        check(file, parts)
        spliced = [[(p.begin, p.end) for p in of if p.origin is not None] for of in (alone, parts)]
        assert joined(spliced[0]) == joined(spliced[1])
        for share in done.shares:
            mine = joined([(p.begin, p.end) for p in parts if (file.name, p.number) in share.parts])
            for step in share.steps:
                if step.file == file.name and step.size_bytes:
                    assert any(begin <= step.begin and step.end <= end for begin, end in mine)


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, end in ranges:
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


@pytest.mark.parametrize("stored", [True, False])
def test_one_giant_file_is_divided_evenly(stored: bool) -> None:
    pieces = [("math", 90 * MIB)] * 100 + [("blend", 90 * MIB)] * 40 + [("lang", 90 * MIB)] * 60
    plan = plan_of([pieces])
    done = divide_uploads(plan, {file.name: stretch_file(file, STORED if stored else set()) for file in plan.files}, 8)
    (parts,) = done.parts.values()
    for share in done.shares:
        mine = [part for part in parts if ("model-0.safetensors", part.number) in share.parts]
        work = sum(part.size_bytes for part in mine if part.origin is None) + sum(
            ref.size_bytes for s in share.steps if not (stored and isinstance(s.made_of, Copy)) for ref in s.made_of.refs
        )
        total = 120 * 90 * MIB if stored else (160 * 2 + 40 * 3) * 90 * MIB
        assert abs(work - total / 8) <= 3 * 90 * MIB + 5 * MIB
        spliced = sum(part.size_bytes for part in mine if part.origin is not None)
        assert not stored or abs(spliced - 160 * 90 * MIB / 8) <= 2 * 90 * MIB


def test_whole_files_where_parts_must_be_of_one_size() -> None:
    plan = plan_of([[("math", 40 * MIB), ("blend", 33 * MIB)] for _ in range(5)])
    done = divide_uploads(plan, {file.name: stretch_file(file, set()) for file in plan.files}, 3, whole=True)
    assert all({part.size_bytes for part in parts[:-1]} == {16 * MIB} for parts in done.parts.values())
    assert [len({file for file, _ in share.parts}) for share in done.shares] == [2, 1, 2]


def test_as_many_parts_as_there_may_be_and_workers_beside() -> None:
    plan = plan_of([[("blend", 8 * MIB)] * 20_000])
    done = divide_uploads(plan, {file.name: stretch_file(file, STORED) for file in plan.files}, 300)
    (parts,) = done.parts.values()
    assert len(parts) <= 10_000
    assert all(5 * MIB <= part.size_bytes <= 5 * GIB for part in parts[:-1])
    assert all(one.end == two.begin for one, two in pairwise(parts))
