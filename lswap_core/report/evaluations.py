"""Reads evaluation results beside an output; nothing is computed here.

It knows two forms, both JSON: the output of `lswap-eval score LOG --json` (one model, a score per language), and the
`results.json` of `lswap-eval compare` (format `lswap-eval-results/1`: several settings). All accuracies are fractions of one.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lswap_core.text.strict_json import Node, parse_object

COMPARISON = "lswap-eval-results/1"
RESULTS_SUFFIX = ".eval.json"
LOG_SUFFIX = ".jsonl"
SHARED_FILE = "eval.json"
ALL = "all"
"""In place of a language: all languages together."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Fraction of right answers and its confidence interval, as fractions of one. setting: None in the results of one model."""

    setting: str | None
    language: str
    answers: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One file of results. rule: how answers were read from the model's outputs, None where the file does not say."""

    name: str
    rule: str | None
    accuracies: tuple[Accuracy, ...]

    @property
    def settings(self) -> tuple[str | None, ...]:
        """The settings, in order."""
        return tuple(dict.fromkeys(accuracy.setting for accuracy in self.accuracies))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(dict.fromkeys(accuracy.language for accuracy in self.accuracies))

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON."""
        return asdict(self)


def read_evaluation(path: str | os.PathLike[str]) -> Evaluation:
    """Read the results in a file, in either form. Raises FormatError for anything else."""
    where = os.fspath(path)
    document = Node(parse_object(Path(path).read_bytes(), path=where), path=where)
    name = Path(path).name
    if "format" not in document:
        if "scores" not in document:
            raise document.refuse(f"no results: expected 'scores', as `score --json` prints, or the format {COMPARISON!r}")
        rows = [_score(entry) for entry in document["scores"].elements()]
        evaluation = Evaluation(name, document["rule"].line(), tuple(rows))
    elif document["format"].value == COMPARISON:
        evaluation = Evaluation(name, None, tuple(_compared(entry) for entry in document["accuracies"].elements()))
    else:
        raise document["format"].refuse(f"{document['format'].value!r:.60} is unknown; expected {COMPARISON!r}")
    if not evaluation.accuracies:
        raise document.refuse("it holds no scores")
    if len({(row.setting, row.language) for row in evaluation.accuracies}) < len(evaluation.accuracies):
        raise document.refuse("a language is there twice")
    return evaluation


def find_evaluations(output: Path) -> tuple[Path, ...]:
    """Find results beside an output: `<output>.eval.json`, `<output>.*.eval.json` and, in the same directory, `eval.json`."""
    return _beside(output, RESULTS_SUFFIX) + tuple(file for file in (output.parent / SHARED_FILE,) if file.is_file())


def find_logs(output: Path) -> tuple[Path, ...]:
    """Find logs of an evaluation beside an output: `<output>.jsonl` or `<output>.*.jsonl`."""
    return _beside(output, LOG_SUFFIX)


def _beside(output: Path, suffix: str) -> tuple[Path, ...]:
    # with the dot after the name, so that results of `swap2` do not count for `swap`
    return tuple(
        sorted(
            file
            for file in output.parent.iterdir()
            if file.name.startswith(output.name + ".") and file.name.endswith(suffix) and file.is_file()
        )
    )


def _score(entry: Node) -> Accuracy:
    numbers = (entry[name].number(0, 1) for name in ("accuracy", "low", "high"))
    return _ordered(entry, Accuracy(None, entry["language"].line(), entry["answers"].integer(), *numbers))


def _compared(entry: Node) -> Accuracy:
    numbers = (entry["interval"][name].number(0, 1) for name in ("estimate", "low", "high"))
    return _ordered(entry, Accuracy(entry["setting"].line(), entry["language"].line(), entry["count"].integer(), *numbers))


def _ordered(entry: Node, row: Accuracy) -> Accuracy:
    slack = 1e-9  # an estimate of 0 or 1 equals an end of its interval, up to rounding
    if not row.low - slack <= row.estimate <= row.high + slack:
        raise entry.refuse(f"accuracy {row.estimate} is not between {row.low} and {row.high}")
    return row
