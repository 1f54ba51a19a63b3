"""The functions of the task files: prompts as `lswap_eval` builds them, and its answer rule beside lm-eval's own.

The data directory comes from `--metadata '{"data": "DIR", "exemplars": 8}'` or from the environment's LSWAP_MGSM. Without
either, the data come from the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lswap_eval.mgsm.answers import extract_answer
from lswap_eval.mgsm.download import load_problems
from lswap_eval.mgsm.prompts import build_prompt


def load(language: str, style: str, data: str | None = None, exemplars: int = 8, **_: object) -> dict[str, Any]:
    """Return the split `test`: one row per problem, with its prompt and its right answer. Other metadata are lm-eval's own."""
    import datasets

    problems = load_problems(data or os.environ.get("LSWAP_MGSM", "hub"))
    rows = [
        {
            "language": language,
            "number": problem.number,
            "prompt": build_prompt(problems, problem, style, exemplars).text,
            "gold": str(problem.gold),
        }
        for problem in problems.choose([language])
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def judge(responses: Iterable[Sequence[str]], docs: Iterable[Mapping[str, str]]) -> list[list[str]]:
    """A filter that returns the right answer where `extract_answer` reads it, else "[wrong]". lm-eval's metric drops signs
    and points.
    """
    return [
        [doc["gold"] if extract_answer(text, doc["language"]).value == int(doc["gold"]) else "[wrong]" for text in texts]
        for texts, doc in zip(responses, docs, strict=True)
    ]
