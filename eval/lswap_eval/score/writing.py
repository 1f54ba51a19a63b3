"""Writes results: tables, JSON, a plot, and the page of flips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lswap_eval.mgsm.problems import ProblemSet
    from lswap_eval.score.comparison import Comparison, ScoredRun


def write_results(results: Comparison, runs: Sequence[ScoredRun], folder: Path, data: ProblemSet | None = None) -> None:
    """Write results.md, results.csv, results.json, accuracy.svg and flips.html into `folder`, creating it where necessary."""
    from lswap_eval.score import flips, plots, tables

    folder.mkdir(parents=True, exist_ok=True)
    golds: Mapping[str, Sequence[int]] = (data.golds() if data is not None else runs[0].header.golds) or {}
    questions = None if data is None else {lang: [p.question for p in problems] for lang, problems in data.problems.items()}
    texts = {
        "results.md": tables.to_markdown(results),
        "results.csv": tables.to_csv(results),
        "results.json": json.dumps(results.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "flips.html": flips.render_page(results, runs, golds, questions),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    plots.save_figure(plots.draw_accuracies(results), folder / "accuracy.svg")
