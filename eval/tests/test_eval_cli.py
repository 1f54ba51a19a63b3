"""The command line: what `score` and `compare` print, write and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lswap_eval import Header, Log, Record, read_problems
from lswap_eval.cli import scoring as scoring_commands
from lswap_eval.cli.main import main
from lswap_eval.score import scoring


@pytest.fixture
def logs(authored: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two logs over the authored problems, in the working directory; the second holds no right answers."""
    folder = authored.parent
    monkeypatch.chdir(folder)
    data = read_problems(authored)
    outputs = {"default": ["Jibu ni 7.", "Jibu ni 1,000."], "top": ["Jibu ni 7.", "sijui"]}
    for name, said in outputs.items():
        golds = data.golds() if name == "default" else None
        header = Header({"identity": name, "setting": name}, {"prompt": "native_cot"}, data.sha256, golds)
        with Log.open(f"{name}.jsonl", header) as log:
            log.append(Record(language, n, 0, "ef", text, "stop") for language in ("sw", "te") for n, text in enumerate(said))
    return ["default.jsonl", "top.jsonl"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def test_score_prints_a_table(logs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "score", "default.jsonl", "--answers")
    assert (status, err) == (0, "")
    assert "100.0 (34.2 to 100.0)" in out
    assert "sw 1 0: correct, 1000 by sentence" in out
    status, out, err = run(capsys, "score", "top.jsonl", "--data", "data", "--json")
    assert (status, err) == (0, "")
    (sw, te, both) = json.loads(out)["scores"]
    assert (sw["language"], te["language"], both["language"]) == ("sw", "te", "all")
    assert (sw["accuracy"], sw["categories"]) == (0.5, {"correct": 1, "unparsable": 1})
    assert run(capsys, "score", "default.jsonl", "--quiet") == (0, "", "")


def test_score_under_another_rule(logs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for rule in scoring.RULES:
        _, out, _ = run(capsys, "score", "default.jsonl", "--rule", rule, "--json", "--answers")
        found[rule] = [answer["correct"] for answer in json.loads(out)["answers"]]
    assert found["lswap"] == found["lm-eval-flexible"] == [True] * 4
    assert found["lm-eval-strict"] == [True, True, False, False]  # it wants Telugu's own sentence
    assert scoring_commands._RULES == scoring.RULES


def test_compare_prints_and_writes(logs: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = run(capsys, "compare", *logs, "--data", "data", "--out", "results")
    assert (status, err) == (0, "")
    assert "less default" in out
    assert "-50.0" in out
    folder = tmp_path / "results"
    assert sorted(path.name for path in folder.iterdir()) == [
        "accuracy.svg",
        "flips.html",
        "results.csv",
        "results.json",
        "results.md",
    ]
    page = (folder / "flips.html").read_text()
    assert "Treni ina watu 1,200" in page
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, out, _ = run(capsys, "compare", *logs, "--data", "data", "--out", "results", "--json")
    assert json.loads(out) == json.loads(before["results.json"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["score", "top.jsonl"], 4, "does not hold the right answers; name the data"),
        (["score", "nowhere.jsonl"], 1, "nowhere.jsonl: No such file"),
        (["score", "data/mgsm_sw.tsv"], 3, "line 1: not valid JSON"),
        (["score", "default.jsonl", "--data", "nowhere"], 4, "nowhere is not a directory"),
        (
            ["compare", "default.jsonl", "top.jsonl", "--data", "data", "--reference", "soup"],
            4,
            "no log is of the reference 'soup'",
        ),
        (["compare", "default.jsonl", "default.jsonl"], 4, "as is a log before it"),
    ],
)
def test_errors_are_one_line(
    logs: list[str], capsys: pytest.CaptureFixture[str], argv: list[str], status: int, said: str
) -> None:
    found, out, err = run(capsys, *argv)
    assert (found, out) == (status, "")
    assert err.startswith("lswap-eval: error: ")
    assert said in err
    assert err.count("\n") == 1
    found, out, err = run(capsys, *argv, "--json")
    assert json.loads(out)["error"]["exit"] == status


@pytest.mark.parametrize("argv", [[], ["score"], ["score", "x", "--rul", "lswap"], ["score", "x", "--rule", "mine"]])
def test_a_wrong_command_line_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2


def test_the_command_starts_without_what_is_slow() -> None:
    code = "import sys, lswap_eval.cli.main as c; c._parser(); print(sorted({'torch', 'transformers', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert subprocess.run([sys.executable, "-m", "lswap_eval", "--help"], capture_output=True, text=True, check=True).stdout


def test_every_public_name_is_there() -> None:
    import lswap_eval

    assert [name for name in dir(lswap_eval) if getattr(lswap_eval, name) is None] == []
    assert set(lswap_eval._HOME) == set(lswap_eval.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lswap_eval.nothing  # type: ignore[attr-defined]
