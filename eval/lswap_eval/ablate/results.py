"""Scores the logs of an ablation, under the names that tables and plots use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from lswap_eval.ablate.pairs import Pair, distinct
from lswap_eval.mgsm.problems import ProblemSet
from lswap_eval.score import comparison
from lswap_eval.score.comparison import Comparison

SWEEP_FILE = "sweep.svg"


def score_pairs(pairs: Sequence[Pair], into: Path, rule: str = "lswap") -> list[comparison.ScoredRun]:
    """Score the runs of all pairs. Settings of a pair that are one model count once, under the first one's name. A log that
    several pairs share counts in each of them, except the base's, which belongs to no pair.
    """
    read: dict[str, comparison.ScoredRun] = {}
    runs: dict[tuple[str, str], comparison.ScoredRun] = {}
    for pair in pairs:
        for run in distinct(pair.runs):
            if run.log not in read:
                (read[run.log],) = comparison.read_runs([into / run.log], rule=rule)
            name = "" if run.setting.recipe == "base" else pair.name
            runs[run.setting.id, name] = replace(read[run.log], setting=run.setting.id, pair=name)
    return list(runs.values())


def write_ablation(pairs: Sequence[Pair], into: Path, data: ProblemSet, reference: str) -> Comparison:
    """Write tables, plot and page of flipped answers to `into`; for a sweep, also a heat map."""
    from lswap_eval.score.plots import draw_sweep, save_figure
    from lswap_eval.score.writing import write_results

    runs = score_pairs(pairs, into)
    results = comparison.compare(runs, reference)
    write_results(results, runs, into, data)
    if points := _points(pairs, runs):
        save_figure(draw_sweep(points), into / SWEEP_FILE)
    return results


def _points(pairs: Sequence[Pair], runs: Sequence[comparison.ScoredRun]) -> dict[tuple[int, int, int], float]:
    """Accuracy of each point of a grid, over languages and pairs. Points that are one model have one accuracy."""
    accuracy = {(run.setting, run.pair): fmean(score.correct for score in run.scores.values()) for run in runs}
    points: dict[tuple[int, int, int], list[float]] = {}
    for pair in pairs:
        first: dict[str, str] = {}
        for run in pair.runs:
            counted_as = first.setdefault(run.identity.digest, run.setting.id)
            if run.setting.point is not None:
                points.setdefault(run.setting.point, []).append(accuracy[counted_as, pair.name])
    return {at: fmean(several) for at, several in points.items()}
