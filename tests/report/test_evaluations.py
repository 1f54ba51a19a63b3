"""Results of an evaluation, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lswap_core.errors import FormatError
from lswap_core.report.evaluations import Accuracy, find_evaluations, find_logs, read_evaluation


def scores() -> dict[str, Any]:
    rows = [("sw", 250, 0.25, 0.2, 0.31), ("all", 250, 0.25, 0.2, 0.31)]
    names = ("language", "answers", "accuracy", "low", "high")
    return {"rule": "lswap", "scores": [dict(zip(names, row, strict=True)) | {"categories": {}, "cut_off": 0} for row in rows]}


def comparison() -> dict[str, Any]:
    interval = {"estimate": 0.5, "low": 0.25, "high": 0.75}
    rows = [
        {"setting": s, "language": lang, "interval": interval, "best_pair": 0.5, "count": 8, "categories": {}, "cut_off": 0}
        for s in ("default", "soup")
        for lang in ("sw", "all")
    ]
    return {"format": "lswap-eval-results/1", "reference": "default", "accuracies": rows}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_scores_of_one_model(tmp_path: Path) -> None:
    found = read_evaluation(write(tmp_path / "x.eval.json", scores()))
    assert (found.name, found.rule, found.settings, found.languages) == ("x.eval.json", "lswap", (None,), ("sw", "all"))
    assert found.accuracies[0] == Accuracy(None, "sw", 250, 0.25, 0.2, 0.31)
    assert found.to_json()["accuracies"][1]["language"] == "all"


def test_a_comparison_of_settings(tmp_path: Path) -> None:
    found = read_evaluation(write(tmp_path / "results.json", comparison()))
    assert (found.rule, found.settings, found.languages) == (None, ("default", "soup"), ("sw", "all"))
    assert found.accuracies[-1] == Accuracy("soup", "all", 8, 0.5, 0.25, 0.75)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (("rule",), None, "rule: expected text"),
        (("scores",), {}, "expected a list"),
        (("scores",), [], "no scores"),
        (("scores", 0, "accuracy"), 25, "a number from 0 to 1"),
        (("scores", 0, "accuracy"), 0.9, "is not between"),
        (("scores", 0, "answers"), -1, "a whole number"),
        (("scores", 0, "language"), "all", "twice"),
        (("scores", 0, "language"), "a\nb", "one line"),
        (("format",), "lswap-eval-results/2", "unknown"),
        (("format",), None, "unknown"),
    ],
)
def test_malformed_scores_are_refused(tmp_path: Path, at: tuple[Any, ...], value: object, words: str) -> None:
    document: Any = scores()
    held = document
    for step in at[:-1]:
        held = held[step]
    held[at[-1]] = value
    with pytest.raises(FormatError, match=words):
        read_evaluation(write(tmp_path / "x.json", document))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": NaN}', '{"scores": [], "scores": []}', '{"scores": [1], "rule": "x"}'])
def test_what_is_no_results_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(FormatError, match=str(tmp_path / "x")):
        read_evaluation(tmp_path / "x")


def test_a_comparison_without_its_members_is_refused(tmp_path: Path) -> None:
    for member in ("setting", "language", "interval", "count"):
        document = comparison()
        del document["accuracies"][1][member]
        with pytest.raises(FormatError, match=f"{member!r} is missing"):
            read_evaluation(write(tmp_path / "x", document))


def test_files_beside_an_output_are_its_own(tmp_path: Path) -> None:
    for name in (
        "swap.eval.json",
        "swap.b.eval.json",
        "swap2.eval.json",
        "swap.jsonl",
        "swap.sw.jsonl",
        "swap2.jsonl",
        "eval.json",
    ):
        (tmp_path / name).write_text("")
    (tmp_path / "swap.directory.eval.json").mkdir()
    assert [file.name for file in find_evaluations(tmp_path / "swap")] == ["swap.b.eval.json", "swap.eval.json", "eval.json"]
    assert [file.name for file in find_logs(tmp_path / "swap")] == ["swap.jsonl", "swap.sw.jsonl"]
