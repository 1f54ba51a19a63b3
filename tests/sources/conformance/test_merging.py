"""A plan gives the same bytes wherever its sources are, and what it reads over a network is what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lswap_core import (
    LayerSwap,
    Part,
    Plan,
    SourceError,
    StalePlanError,
    analyze,
    apply_part,
    diff,
    execute,
    lay_out,
    merge,
    open_checkpoint,
    publish,
    verify,
    write_plan,
)
from lswap_core.checkpoint.header import LENGTH_BYTES
from lswap_core.io.traffic import Traffic
from lswap_core.sources.directory import SAMPLE_BYTES
from lswap_core.sources.remote_catalogue import FIRST_GUESS_BYTES
from lswap_core.verbs.merge import travel
from tests.build import HANG_SECONDS, Pair, llama_pair, tree
from tests.sources.conformance.places import Place, Placed

RECIPE = LayerSwap(bottom=2, top=1, transition=1)
BESIDE = "additional_chat_templates/tool.jinja"
"""What is found beside the weights only where files are listed."""
NAMING = ("lswap_manifest.json", "README.md")
"""Files of an output that name its sources."""
SHARD_BYTES = LENGTH_BYTES + FIRST_GUESS_BYTES + 6 * SAMPLE_BYTES
"""What may be read of a shard beside its tensors: header and samples."""
SIDECAR_BYTES = 1000
"""More than all files beside the weights have."""


@pytest.fixture(scope="module")
def expected(experts: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The merge on a disk, without what names the sources."""
    out = tmp_path_factory.mktemp("local") / "out"
    merge(RECIPE, math=experts.math, lang=experts.lang, into=out)
    return unnamed(out)


def unnamed(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if name not in NAMING}


def from_place(place: Place, expected: dict[str, bytes]) -> dict[str, bytes]:
    """What a merge from `place` gives: without the files that only a list shows."""
    return {name: data for name, data in expected.items() if place.lists_files or name != BESIDE}


def plan_of(math: Placed | Path, lang: Placed | Path) -> Plan:
    at = [where.location if isinstance(where, Placed) else where for where in (math, lang)]
    return lay_out(RECIPE.draft(math=open_checkpoint(at[0], role="math"), lang=open_checkpoint(at[1], role="lang")))


def most_bytes(plan: Plan) -> int:
    """The most that executing a plan may fetch: its tensors, and headers and samples of the files that it reads."""
    files = {(ref.role, ref.file) for step in plan.steps for ref in step.made_of.refs}
    return plan.read_bytes + len(files) * SHARD_BYTES + SIDECAR_BYTES


def test_of_one_role_here_and_one_there_only_the_latter_is_fetched(
    place: Place, experts: Pair, expected: dict[str, bytes], tmp_path: Path
) -> None:
    plan, traffic = plan_of(experts.math, place.shared(experts.lang)), Traffic()
    execute(plan, into=tmp_path / "out", traffic=traffic)
    assert unnamed(tmp_path / "out") == expected
    needed = sum(ref.size_bytes for step in plan.steps for ref in step.made_of.refs if ref.role == "lang")
    whole = sum(file.stat().st_size for file in experts.lang.glob("*.safetensors"))
    fetched = traffic.bytes_by_method.get("fetch", 0)
    assert (needed <= fetched <= needed + 3 * SHARD_BYTES < whole) if place.remote else fetched == 0


def test_a_plan_needs_what_it_says_and_fetches_it_once(
    place: Place, experts: Pair, expected: dict[str, bytes], tmp_path: Path
) -> None:
    math, lang, traffic = place.shared(experts.math), place.shared(experts.lang), Traffic()
    plan = plan_of(math, lang)
    place.forget()
    execute(plan, into=tmp_path / "out", traffic=traffic)
    assert unnamed(tmp_path / "out") == from_place(place, expected)
    said = travel(plan)
    if not place.remote:
        assert said is None
        return
    assert said is not None
    shards = sum(file.stat().st_size for root in (experts.math, experts.lang) for file in root.glob("*.safetensors"))
    assert shards < said.download < shards + SIDECAR_BYTES
    assert plan.read_bytes < said.needed < plan.read_bytes + SIDECAR_BYTES
    assert said.needed < traffic.bytes_by_method["fetch"] <= most_bytes(plan) < said.download
    read = {(ref.role, ref.file) for step in plan.steps for ref in step.made_of.refs}
    for role, placed in (("math", math), ("lang", lang)):
        asked = {name: ranges for name, ranges in place.ranges(placed).items() if name.endswith(".safetensors")}
        assert {(role, name) for name in asked} == {file for file in read if file[0] == role}
        assert all(count_bytes(ranges) <= count_bytes(union(ranges)) + SHARD_BYTES for ranges in asked.values())


def count_bytes(ranges: list[tuple[int, int]]) -> int:
    return sum(end - begin for begin, end in ranges)


def union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def test_a_plan_is_the_same_wherever_it_is_made_and_fits_copies(
    place: Place, experts: Pair, expected: dict[str, bytes], tmp_path: Path
) -> None:
    math, lang = place.shared(experts.math), place.shared(experts.lang)
    plan = plan_of(math, lang)
    assert unplaced(plan, place) == unplaced(plan_of(experts.math, experts.lang), place)
    assert [source.location for source in plan.sources] == [math.path, lang.path]
    traffic = Traffic()
    execute(plan, into=tmp_path / "out", locations={"math": experts.math, "lang": experts.lang}, traffic=traffic)
    assert unnamed(tmp_path / "out") == from_place(place, expected)
    assert "fetch" not in traffic.bytes_by_method


def unplaced(plan: Plan, place: Place) -> dict[str, Any]:
    """A plan's JSON without places and times, and without what only a list shows."""
    document: dict[str, Any] = json.loads(plan.to_json())
    for source in document["sources"]:
        del source["location"], source["name"]
        for file in source["files"]:
            del file["mtime_ns"]
    if not place.lists_files:
        document["sidecars"] = [entry for entry in document["sidecars"] if entry["name"] != BESIDE]
    return document


def test_a_merge_by_a_new_process_is_the_one_on_the_disk_and_is_verified(
    place: Place, experts: Pair, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """That process knows nothing but the plan."""
    math, lang, out = place.shared(experts.math), place.shared(experts.lang), tmp_path / "out"
    write_plan(plan_of(math, lang), tmp_path / "plan.json")
    command = [sys.executable, "-m", "lswap_core", "apply", str(tmp_path / "plan.json"), "--out", str(out), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert unnamed(out) == from_place(place, expected)
    verify(out, locations={"math": experts.math, "lang": lang.location})


def test_what_is_measured_is_the_same_wherever_it_is(place: Place, experts: Pair) -> None:
    math, lang = (place.shared(root).location for root in (experts.math, experts.lang))
    assert diff(math, experts.math).differing == 0
    there, here = (
        analyze(math=open_checkpoint(a, role="math"), lang=open_checkpoint(b, role="lang")).to_json()
        for a, b in ((math, lang), (experts.math, experts.lang))
    )
    del there["sources"], here["sources"]
    assert there == here


def test_parts_fetch_what_they_need_and_no_more(place: Place, experts: Pair, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Each of three workers asks for the ranges of its own part."""
    plan, fetched = plan_of(place.shared(experts.math), place.shared(experts.lang)), []
    for number in (3, 1, 2):
        traffic = Traffic()
        apply_part(plan, Part(number, 3), into=tmp_path / "out", traffic=traffic)
        fetched.append(traffic.bytes_by_method.get("fetch", 0))
    publish(plan, into=tmp_path / "out")
    assert unnamed(tmp_path / "out") == from_place(place, expected)
    if place.remote:
        assert plan.read_bytes <= sum(fetched) <= plan.read_bytes + 3 * (most_bytes(plan) - plan.read_bytes)
        assert max(fetched) <= 0.5 * plan.read_bytes + most_bytes(plan) - plan.read_bytes


def test_a_source_that_changed_after_planning_is_refused_and_nothing_of_it_counts(place: Place, tmp_path: Path) -> None:
    """Once the file is what it was, the output has nothing of the other one."""
    pair, out = llama_pair(tmp_path / "pair", 6), tmp_path / "out"
    lang = place.put(pair.lang)
    plan = plan_of(pair.math, lang)
    name = plan.sources[1].files[0].name
    data = (pair.lang / name).read_bytes()
    place.change(lang, name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StalePlanError, match="plan again") as caught:
        execute(plan, into=out)
    assert f"{lang.path}/{name}" in str(caught.value)
    assert not tree(out)
    place.change(lang, name, data)
    execute(plan_of(pair.math, lang) if place.keeps_times else plan, into=out)
    merge(RECIPE, math=pair.math, lang=pair.lang, into=tmp_path / "here")
    assert unnamed(out) == unnamed(tmp_path / "here")


def test_a_merge_that_failed_goes_on_even_over_bad_connections(
    place: Place, experts: Pair, expected: dict[str, bytes], tmp_path: Path
) -> None:
    if not place.remote:
        pytest.skip("a disk has no server")
    plan, traffic = plan_of(place.shared(experts.math), place.shared(experts.lang)), Traffic()
    place.refuse(403, first=40)
    with pytest.raises(SourceError, match="refuses it") as caught:
        execute(plan, into=tmp_path / "out", workers=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    place.cut(70_000, 4, first=8)
    execute(plan, into=tmp_path / "out", traffic=traffic)
    assert unnamed(tmp_path / "out") == from_place(place, expected)
    assert traffic.bytes_by_method["resume"] > 0
    assert traffic.bytes_by_method["fetch"] < most_bytes(plan)
