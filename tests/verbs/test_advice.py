"""`analyze`, `--auto` and `--ramp mav` on the command line, over experts with changes planted by `make_experts.py`."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lswap_core import LayerSwap, merge
from lswap_core.cli.main import main
from tests.build import llama_pair, tree

MAKE = Path(__file__).parents[2] / "benchmarks" / "make_experts.py"
PAIR = ["--math", "math", "--lang", "lang"]
BASE = ["--base", "base"]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("advice") / "models"
    subprocess.run([sys.executable, MAKE, root], check=True, capture_output=True)
    return root


@pytest.fixture(autouse=True)
def here(experts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(experts)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(argv)
    return (status, *capsys.readouterr())


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    status, out, err = run(capsys, "plan", *PAIR, *argv, "--json")
    assert (status, err) == (0, "")
    return dict(json.loads(out))


def test_the_tables_and_findings(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "analyze", *PAIR, *BASE, "--suggest")
    assert (status, err) == (0, "")
    assert len(re.findall(r"^ layer \d+ ", out, re.M)) == 12
    for shown in ("embeddings", "final norm", "mlp.up_proj", "math and lang look like fine-tunes of one base"):
        assert shown in out
    assert "lang looks like a fine-tune of base" in out
    assert "suggestion --bottom 3 --top 3 --transition 1: a heuristic" in out
    status, out, _ = run(capsys, "analyze", *PAIR)
    assert status == 0
    assert "elements that differ" in out
    assert run(capsys, "analyze", *PAIR, "--quiet") == (0, "", "")


def test_math_in_the_middle_and_language_at_the_ends_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "analyze", *PAIR, *BASE, "--suggest", "--json")[1])
    by_layer = {n: [t for t in found["tensors"].values() if t["layer"] == n and len(t["shape"]) == 2] for n in range(12)}
    size = {s: {n: sum(t[s]["relative_norm"] for t in held) for n, held in by_layer.items()} for s in ("math", "lang")}
    assert sorted(sorted(size["math"], key=size["math"].__getitem__)[-2:]) == [5, 6]
    assert sorted(sorted(size["lang"], key=size["lang"].__getitem__)[-2:]) == [0, 11]
    assert {k: v for k, v in found["suggestion"].items() if k != "dominance"} == {
        "bottom": 3, "top": 3, "transition": 1, "heuristic": True,
    }  # fmt: skip
    assert [each["verdict"] for each in found["kinship"]] == ["one base"] * 3


def test_csv_and_profiles(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "changes.csv"
    status, out, _ = run(capsys, "analyze", *PAIR, *BASE, "--csv", str(path), "--profiles", "--json")
    assert status == 0
    rows = list(csv.DictReader(path.read_text().splitlines()))
    document = json.loads(out)
    assert [row["tensor"] for row in rows] == list(document["tensors"])
    assert len(document["tensors"]["model.layers.0.mlp.up_proj.weight"]["profiles"]["lang"]["rows"]) == 160
    assert run(capsys, "analyze", *PAIR, "--csv", str(path), "--quiet")[0] == 4  # it is there already


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["analyze", *PAIR, "--suggest"], "--suggest needs --base"),
        (["analyze", *PAIR, "--profiles"], "--json alone"),
        (["merge", *PAIR, "--auto"], "either --base or --changes"),
        (["merge", *PAIR, "--auto", *BASE, "--top", "2"], "leave out --top"),
        (["plan", *PAIR, "--bottom", "2", *BASE], "nothing here needs --base"),
        (["plan", *PAIR, "--bottom", "2", "--transition", "1", "--ramp", "mav"], "either --base or --changes"),
        (["plan", "--math", "lang", "--lang", "math", "--auto", *BASE], "nothing speaks for a layer swap"),
    ],
)
def test_impossible_requests(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    status, _, err = run(capsys, *argv)
    assert status == 4
    assert said in err


def test_experts_the_wrong_way_round_get_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "analyze", "--math", "lang", "--lang", "math", *BASE, "--suggest")
    assert status == 0
    assert "no suggestion: nothing speaks for a layer swap" in out


def test_auto_is_the_suggestion_and_its_command_repeats_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, argv in (("auto", ["--auto", *BASE]), ("hand", ["--bottom", "3", "--top", "3", "--transition", "1"])):
        assert run(capsys, "merge", *PAIR, *argv, "--out", str(tmp_path / name), "--quiet")[0] == 0
    weights = [{n: b for n, b in tree(tmp_path / d).items() if n.endswith(".safetensors")} for d in ("auto", "hand")]
    assert weights[0] == weights[1]
    card = (tmp_path / "auto" / "README.md").read_text()
    assert "layers chosen by what changed from base" in card
    (command,) = re.findall(r"^lswap-core (merge .*)$", card, re.M)
    assert shlex.split(command)[1:] == [*PAIR, "--bottom", "3", "--top", "3", "--transition", "1"]


def test_mav_from_a_base_and_from_an_analysis_are_one_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seams = ["--bottom", "3", "--top", "2", "--transition", "2", "--ramp", "mav"]
    changes = tmp_path / "changes.json"
    changes.write_text(run(capsys, "analyze", *PAIR, *BASE, "--json")[1])
    direct = plan(capsys, *seams, *BASE)
    assert plan(capsys, *seams, "--changes", str(changes)) == direct
    assert {source["role"] for source in direct["sources"]} == {"math", "lang"}
    assert direct["swap"]["base"] == "base"
    document = json.loads(changes.read_text())
    for number in (3, 4, 8, 9):
        held = [t for t in document["tensors"].values() if t["layer"] == number]
        math, lang = (sum(t[role]["sum_abs"] for t in held) for role in ("math", "lang"))
        assert direct["swap"]["shares"][number] == pytest.approx(math / (math + lang), rel=1e-12)


def test_a_mav_plan_applies_and_its_card_names_the_base(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seams = ["--bottom", "2", "--transition", "1", "--ramp", "mav"]
    made = tmp_path / "plan.json"
    assert run(capsys, "plan", *PAIR, *seams, *BASE, "--base-name", "org/base", "--out", str(made), "--quiet")[0] == 0
    assert run(capsys, "apply", str(made), "--out", str(tmp_path / "one"), "--quiet")[0] == 0
    merge(LayerSwap(bottom=2, transition=1, ramp="mav"), math="math", lang="lang", base="base", into=tmp_path / "two")
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert {n: b for n, b in one.items() if n.endswith(".safetensors")} == {
        n: b for n, b in two.items() if n.endswith(".safetensors")
    }
    assert b"--base org/base" in one["README.md"]
    assert run(capsys, "verify", str(tmp_path / "one"), *PAIR, "--quiet")[0] == 0


def test_a_mav_plan_whose_copied_layers_were_tampered_with_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = plan(capsys, "--bottom", "2", "--transition", "1", "--ramp", "mav", *BASE)
    document["swap"]["shares"][5] = 0.5
    (tmp_path / "plan.json").write_text(json.dumps(document))
    status, _, err = run(capsys, "apply", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out"))
    assert status == 3
    assert "not what swap.options give" in err


def test_a_merge_of_strangers_with_auto_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = llama_pair(tmp_path, seed=1)
    monkeypatch.chdir(tmp_path)
    base = ["--base", str(llama_pair(tmp_path / "third", seed=2).math)]
    status, out, _ = run(capsys, "plan", *PAIR, "--bottom", "1", "--transition", "1", "--ramp", "mav", *base)
    assert status == 0
    assert "math and lang do NOT look like fine-tunes of one base" in out
    assert pair.math.is_dir()
