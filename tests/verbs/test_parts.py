"""One output by many workers: the same bytes as by one, in whatever order and however often the parts are done."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lswap_core import (
    FormatError,
    LayerSwap,
    Part,
    RecipeError,
    StalePlanError,
    WriteOptions,
    apply_part,
    execute,
    lay_out,
    open_checkpoint,
    publish,
    verify,
)
from lswap_core.cli.main import main
from lswap_core.options import DigestKind
from lswap_core.plan.division import divide
from lswap_core.plan.plan import Plan
from lswap_core.recipe.draft import Draft
from lswap_core.sinks.disk.build_directory import Build
from lswap_core.verbs.merge import write_plan
from tests.build import HANG_SECONDS, Pair, llama_pair, normal, tree, unmeasured, write_model

COPIED = WriteOptions(copy_method="read_write")
"""The same records on every filesystem."""


@dataclass(frozen=True)
class Case:
    """A plan, its file, and what one process makes of it."""

    plan: Plan
    file: Path
    pair: Pair
    expected: dict[str, bytes]

    @property
    def root(self) -> Path:
        return self.file.parent

    def argv(self, out: Path, part: Part, *more: str) -> list[str]:
        argv = [sys.executable, "-m", "lswap_core", "apply", str(self.file), "--out", str(out), "--part", str(part)]
        return [*argv, "--copy-method", "read_write", "--quiet", *more]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("parts"))


def make_case(root: Path) -> Case:
    pair = llama_pair(root, 10)
    (pair.math / "nested").mkdir()
    (pair.math / "nested" / "code.py").write_text("x = 1\n")
    plan = make_plan(pair)
    write_plan(plan, root / "plan.json")
    execute(plan, into=root / "one", options=COPIED)
    return Case(plan, root / "plan.json", pair, tree(root / "one"))


def make_plan(pair: Pair, **swap: Any) -> Plan:
    math, lang = open_checkpoint(pair.math, role="math"), open_checkpoint(pair.lang, role="lang")
    return lay_out(LayerSwap(**{"bottom": 3, "top": 2, "transition": 1, **swap}).draft(math=math, lang=lang))


def build_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("seed", range(3))
def test_any_parts_in_any_order_make_what_one_process_makes(case: Case, tmp_path: Path, count: int, seed: int) -> None:
    out = tmp_path / "out"
    numbers = list(range(1, count + 1))
    random.Random(seed).shuffle(numbers)
    for number in numbers:
        assert not out.exists()
        done = apply_part(case.plan, Part(number, count), into=out, options=COPIED)
        assert done.anew
        assert done.tensors == len(divide(case.plan, count)[number - 1])
    publish(case.plan, into=out)
    assert tree(out) == case.expected
    assert sorted(os.listdir(tmp_path)) == ["out"]
    verify(out, locations={"math": case.pair.math, "lang": case.pair.lang})


@pytest.mark.parametrize("digest", ["none", "xxh3", "sha256", "auto"])
def test_digests_are_those_of_one_process(case: Case, tmp_path: Path, digest: DigestKind) -> None:
    options = replace(COPIED, digest=digest)
    execute(case.plan, into=tmp_path / "one", options=options)
    for number in (2, 1, 3):
        apply_part(case.plan, Part(number, 3), into=tmp_path / "many", options=options)
    publish(case.plan, into=tmp_path / "many")
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


def test_at_once_in_processes_of_their_own(case: Case, tmp_path: Path) -> None:
    """Two of them do the same part."""
    out = tmp_path / "out"
    parts = [Part(k, 4) for k in (1, 2, 2, 3, 4)]
    workers = [subprocess.Popen(case.argv(out, part), env=unmeasured(), stderr=subprocess.PIPE) for part in parts]
    for worker in workers:
        _, said = worker.communicate(timeout=HANG_SECONDS)
        assert (worker.returncode, said) == (0, b"")
    assert main(["publish", str(case.file), "--out", str(out), "--quiet"]) == 0
    assert tree(out) == case.expected


def test_every_file_has_its_full_length_from_the_first_part_on(case: Case, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        apply_part(case.plan, Part(number, 3), into=tmp_path / "out", options=COPIED)
        for path in (build_of(tmp_path / "out") / "output").iterdir():
            assert path.stat().st_size == len(case.expected[path.name])


def test_another_layout_with_tensors_of_no_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model = {f"t{k}": normal("F32", (k % 4 * 3, 5), rng) for k in range(30)}
    plan = lay_out(Draft.of(open_checkpoint(write_model(tmp_path / "math", model), role="math")), 500)
    assert len(plan.files) > 5
    assert sum(step.size_bytes == 0 for step in plan.steps) == 8
    check_parts(plan, 40, tmp_path)


def test_nothing_but_a_header(tmp_path: Path) -> None:
    """Of the plan's only file no part has a step."""
    plan = lay_out(Draft.of(open_checkpoint(write_model(tmp_path / "math", {}), role="math")))
    assert (len(plan.files), plan.steps) == (1, ())
    check_parts(plan, 2, tmp_path)


def check_parts(plan: Plan, count: int, root: Path) -> None:
    execute(plan, into=root / "one", options=COPIED)
    for number in range(count, 0, -1):
        apply_part(plan, Part(number, count), into=root / "many", options=COPIED)
    publish(plan, into=root / "many")
    assert tree(root / "many") == tree(root / "one")


def test_a_missing_part_is_named(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match="there are no parts of .*out; make them first"):
        publish(case.plan, into=out)
    for number in (1, 2, 4, 5):
        apply_part(case.plan, Part(number, 5), into=out, options=COPIED)
    said = "^part 3 of 5 is missing; run `lswap-core apply PLAN --part 3/5`$"
    with pytest.raises(RecipeError, match=said):
        publish(case.plan, into=out)
    (build_of(out) / "part-3-of-5.json").write_bytes(b'{"format":"lswap-part/1","plan":')
    with pytest.raises(RecipeError, match=said):
        publish(case.plan, into=out)
    assert apply_part(case.plan, Part(3, 5), into=out, options=COPIED).anew
    publish(case.plan, into=out)
    assert tree(out) == case.expected


def test_damaged_terms_and_records_are_never_believed(case: Case, tmp_path: Path) -> None:
    """Cut short, or with one byte changed: refused, or as if it was not there, or else the very same."""
    rng = random.Random(11)
    out = tmp_path / "out"
    apply_part(case.plan, Part(1, 1), into=out, options=COPIED)
    for name in ("build.json", "part-1-of-1.json"):
        path = build_of(out) / name
        whole = path.read_bytes()
        for _ in range(60):
            raw = bytearray(whole)
            if rng.random() < 0.5:
                raw = raw[: rng.randrange(len(raw) - 1)]
            else:
                raw[rng.randrange(len(raw) - 1)] ^= 1 << rng.randrange(7)
            path.write_bytes(raw)
            with pytest.raises((FormatError, RecipeError)):
                publish(case.plan, into=out)
        path.write_bytes(whole)
    publish(case.plan, into=out)
    assert tree(out) == case.expected


def test_many_missing_parts_are_counted(case: Case, tmp_path: Path) -> None:
    apply_part(case.plan, Part(2, 20), into=tmp_path / "out", options=COPIED)
    with pytest.raises(RecipeError, match="^parts 1, 3, 4, 5, 6, 7, 8, 9 and 11 more of 20 are missing; run .* 1/20` and so on$"):
        publish(case.plan, into=tmp_path / "out")


def test_what_is_done_is_not_done_again_unless_restarted(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        apply_part(case.plan, Part(number, 2), into=out, options=COPIED)
    before = {path: path.stat().st_mtime_ns for path in build_of(out).rglob("*")}
    assert not apply_part(case.plan, Part(1, 2), into=out, options=COPIED).anew
    assert {path: path.stat().st_mtime_ns for path in build_of(out).rglob("*")} == before
    other = (build_of(out) / "part-2-of-2.json").stat().st_mtime_ns
    for path in (build_of(out) / "output").iterdir():
        damage(path)
    for number in (1, 2):
        assert apply_part(case.plan, Part(number, 2), into=out, options=COPIED, restart=True).anew
        assert ((build_of(out) / "part-2-of-2.json").stat().st_mtime_ns == other) == (number == 1)
    publish(case.plan, into=out)
    assert tree(out) == case.expected


def damage(path: Path) -> None:
    """Zeros for every byte, header included."""
    size = path.stat().st_size
    path.write_bytes(bytes(size))


def test_parts_that_do_not_go_together(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    apply_part(case.plan, Part(1, 3), into=out, options=COPIED)
    before = tree(build_of(out))
    other = make_plan(case.pair, bottom=2)
    refused: list[tuple[Plan, Part, WriteOptions, str]] = [
        (other, Part(2, 3), COPIED, "of another plan, not of this one; finish that first, or remove that directory"),
        (case.plan, Part(2, 4), COPIED, "divided into 3 parts, not into 4"),
        (case.plan, Part(2, 3), replace(COPIED, digest="sha256"), "begun with --digest auto, not with --digest sha256"),
        (case.plan, Part(2, 3), replace(COPIED, link="hard"), "--link hard is not to be had with --part"),
    ]
    for plan, part, options, said in refused:
        for restart in (False, True):
            with pytest.raises(RecipeError, match=said):
                apply_part(plan, part, into=out, options=options, restart=restart)
    with pytest.raises(RecipeError, match="holds the parts of another plan"):
        publish(other, into=out)
    assert tree(build_of(out)) == before


def test_a_part_of_another_plan_that_somebody_put_there(case: Case, tmp_path: Path) -> None:
    other = make_plan(case.pair, bottom=2)
    for plan, name in ((case.plan, "out"), (other, "other")):
        for number in (1, 2):
            apply_part(plan, Part(number, 2), into=tmp_path / name, options=COPIED)
    shutil.copy(build_of(tmp_path / "other") / "part-2-of-2.json", build_of(tmp_path / "out"))
    with pytest.raises(RecipeError, match=r"part-2-of-2\.json does not belong to this merge; remove it and run"):
        publish(case.plan, into=tmp_path / "out")
    shutil.copy(build_of(tmp_path / "out") / "part-1-of-2.json", build_of(tmp_path / "out") / "part-2-of-2.json")
    with pytest.raises(RecipeError, match="does not belong"):
        publish(case.plan, into=tmp_path / "out")


def test_a_part_that_was_divided_otherwise(case: Case, tmp_path: Path) -> None:
    for number in (1, 2):
        apply_part(case.plan, Part(number, 2), into=tmp_path / "out", options=COPIED)
    build = Build(tmp_path / "out")
    terms = build.terms()
    assert terms is not None
    build.note(Part(2, 2), terms, (build.records(Part(2, 2), terms) or [])[:-1])
    with pytest.raises(RecipeError, match="part 2 of 2 .* divides otherwise; run `lswap-core apply PLAN --part 2/2` again"):
        publish(case.plan, into=tmp_path / "out")
    assert apply_part(case.plan, Part(2, 2), into=tmp_path / "out", options=COPIED).anew
    publish(case.plan, into=tmp_path / "out")
    assert tree(tmp_path / "out") == case.expected


@pytest.mark.parametrize("what", ["cut short", "gone", "another header"])
def test_files_that_are_not_what_the_parts_made(case: Case, tmp_path: Path, what: str) -> None:
    apply_part(case.plan, Part(1, 1), into=tmp_path / "out", options=COPIED)
    path = build_of(tmp_path / "out") / "output" / case.plan.files[1].name
    if what == "cut short":
        os.truncate(path, path.stat().st_size - 1)
    elif what == "gone":
        path.unlink()
    else:
        with open(path, "r+b") as file:
            file.write(b"\xff")
    with pytest.raises(RecipeError, match=f"{path.name} is not what the parts made"):
        publish(case.plan, into=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_published_once_and_for_all(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["publish", str(case.file), "--out", str(tmp_path / "out")]
    apply_part(case.plan, Part(1, 1), into=tmp_path / "out", options=COPIED)
    assert main([*argv, "--json"]) == 0
    assert capsys.readouterr().out.encode() == case.expected["lswap_manifest.json"]
    assert main(argv) == 4
    assert "exists; an output is never written over" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="exists"):
        apply_part(case.plan, Part(1, 1), into=tmp_path / "out", options=COPIED)
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_two_that_publish_at_once(case: Case, tmp_path: Path) -> None:
    """One does; the other is told so, or finds the directory gone."""
    out = tmp_path / "out"
    for number in (1, 2):
        apply_part(case.plan, Part(number, 2), into=out, options=COPIED)
    argv = [sys.executable, "-m", "lswap_core", "publish", str(case.file), "--out", str(out), "--quiet"]
    both = [subprocess.Popen(argv, env=unmeasured(), stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=HANG_SECONDS)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes[0] == 0, said
    assert codes[1] in (1, 4), said
    assert tree(out) == case.expected


def test_cut_off_between_its_last_two_acts_it_clears_up(case: Case, tmp_path: Path) -> None:
    apply_part(case.plan, Part(1, 1), into=tmp_path / "out", options=COPIED)
    shutil.copytree(build_of(tmp_path / "out"), tmp_path / "kept")
    publish(case.plan, into=tmp_path / "out")
    shutil.rmtree(tmp_path / "kept" / "output")
    (tmp_path / "kept").rename(build_of(tmp_path / "out"))
    with pytest.raises(RecipeError, match="exists; an output is never written over"):
        publish(case.plan, into=tmp_path / "out")
    assert tree(tmp_path / "out") == case.expected
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_somebody_elses_directory_of_that_name_does_not_lose_the_parts(case: Case, tmp_path: Path) -> None:
    apply_part(case.plan, Part(1, 2), into=tmp_path / "out", options=COPIED)
    before = tree(build_of(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    for act in (
        lambda: apply_part(case.plan, Part(2, 2), into=tmp_path / "out"),
        lambda: publish(case.plan, into=tmp_path / "out"),
    ):
        with pytest.raises(RecipeError, match="exists"):
            act()
    assert tree(build_of(tmp_path / "out")) == before


def test_a_stranger_in_the_way(case: Case, tmp_path: Path) -> None:
    build_of(tmp_path / "out").mkdir()
    (build_of(tmp_path / "out") / "mine").write_text("x")
    with pytest.raises(RecipeError, match="is in the way and not of this program's making"):
        apply_part(case.plan, Part(1, 2), into=tmp_path / "out")
    assert os.listdir(build_of(tmp_path / "out")) == ["mine"]


def test_a_source_that_changes_between_parts(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    out = tmp_path / "out"
    apply_part(case.plan, Part(1, 2), into=out, options=COPIED)
    (file, *_) = sorted(case.pair.lang.glob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(StalePlanError, match="plan again"):
        apply_part(case.plan, Part(2, 2), into=out, options=COPIED)
    with pytest.raises(RecipeError, match="part 2 of 2 is missing"):
        publish(case.plan, into=out)


def test_sources_that_lie_elsewhere_by_now(tmp_path: Path) -> None:
    case = make_case(tmp_path / "before")
    moved = {role: shutil.move(tmp_path / "before" / role, tmp_path / f"moved-{role}") for role in ("math", "lang")}
    for number in (1, 2):
        apply_part(case.plan, Part(number, 2), into=tmp_path / "out", locations=moved, options=COPIED)
    where = [f"--{role}={path}" for role, path in moved.items()]
    assert main(["publish", str(case.file), "--out", str(tmp_path / "out"), "--quiet", *where]) == 0
    assert tree(tmp_path / "out") == case.expected


def test_the_host_changed_before_publishing(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    apply_part(case.plan, Part(1, 1), into=tmp_path / "out", options=COPIED)
    (case.pair.math / "tokenizer.json").write_text("{}")
    with pytest.raises(StalePlanError, match=r"tokenizer\.json: changed after it was planned"):
        publish(case.plan, into=tmp_path / "out")


@pytest.mark.parametrize("part", ["0/3", "4/3", "x/y", "3"])
def test_wrong_parts_are_refused_before_anything_is_made(
    case: Case, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", str(case.file), "--out", str(tmp_path / "out"), "--part", part]) == 4
    assert "--part is" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_part_is_not_pushed(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["apply", str(case.file), "--out", str(tmp_path / "out"), "--part", "1/2", "--push", "me/it"]
    assert main(argv) == 4
    assert "--push has no effect with --part" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_the_command_line_tells_what_is_next(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in ("SLURM_PROCID", "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ["apply", str(case.file), "--out", str(tmp_path / "out"), "--part", "auto"]
    steps = divide(case.plan, 2)[1]
    assert main(argv) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'out'}: part 2/2 is done: {len(steps)} tensors")
    assert second == f"- when all 2 are: lswap-core publish {case.file} --out {tmp_path / 'out'}"
    assert main([*argv, "--json"]) == 0
    told = {"part": 2, "parts": 2, "tensors": len(steps), "bytes": sum(step.size_bytes for step in steps), "anew": False}
    assert json.loads(capsys.readouterr().out) == told


def test_nothing_is_locked(case: Case, tmp_path: Path) -> None:
    """A process that ends itself when it locks a file does its part and publishes; `apply` without parts, which locks, ends."""
    guard = (
        "import os, sys; locks = ('fcntl.flock', 'fcntl.lockf', 'fcntl.fcntl');"
        "sys.addaudithook(lambda event, _: os._exit(99) if event in locks else None);"
        "from lswap_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*argv: str) -> int:
        return subprocess.run(
            [sys.executable, "-c", guard, *argv, "--quiet"], env=unmeasured(), timeout=HANG_SECONDS, check=False
        ).returncode

    out = str(tmp_path / "out")
    for number in (1, 2):
        assert run("apply", str(case.file), "--out", out, "--part", f"{number}/2", "--copy-method", "read_write") == 0
    assert run("publish", str(case.file), "--out", out) == 0
    assert tree(tmp_path / "out") == case.expected
    assert run("apply", str(case.file), "--out", str(tmp_path / "alone")) == 99
