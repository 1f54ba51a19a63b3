"""A page to browse the answers that flipped between the reference and a setting: one HTML file, no network, no libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from lswap_eval.score.comparison import Comparison, ScoredRun, pair_runs


def list_flips(runs: Sequence[ScoredRun], reference: str, golds: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """List every answer that is right in one of reference and setting only: setting, pair, problem, both outputs."""
    flips = []
    for setting in dict.fromkeys(run.setting for run in runs if run.setting != reference):
        for against, run in pair_runs(runs, setting, reference):
            for key, score in run.scores.items():
                if score.correct != against.scores[key].correct:
                    language, problem, sample = key
                    flips.append(
                        {
                            "kind": "gained" if score.correct else "lost",
                            "setting": setting,
                            "pair": run.pair or against.pair,
                            "language": language,
                            "problem": problem,
                            "sample": sample,
                            "gold": golds[language][problem],
                            "was": _side(against, key),
                            "now": _side(run, key),
                        }
                    )
    return flips


def _side(run: ScoredRun, key: tuple[str, int, int]) -> dict[str, Any]:
    score = run.scores[key]
    return {"value": score.value, "found_by": score.found_by, "cut_off": score.cut_off, "output": run.outputs[key]}


def render_page(
    results: Comparison,
    runs: Sequence[ScoredRun],
    golds: Mapping[str, Sequence[int]],
    questions: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Render the page. questions: language -> texts by problem number, shown where given.

    Texts go in as JSON and are shown as text: no output of a model can become markup or code.
    """
    flips = list_flips(runs, results.reference, golds)
    for flip in flips:
        flip["question"] = questions[flip["language"]][flip["problem"]] if questions else None
    data = json.dumps({"reference": results.reference, "flips": flips}, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    page = files("lswap_eval.score").joinpath("flips_page.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", data)
