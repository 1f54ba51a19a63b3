"""MGSM on the result of a layer swap: prompts, logs that survive crashes, scores, error bars, ablations.

    from lswap_eval import extract_answer, read_log

    header, records = read_log("swapped.jsonl")
    print(extract_answer(records[0].output, records[0].language).value)

Names load on first use, so importing the package is cheap. It imports `lswap_core`; `lswap_core` never imports it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lswap_eval.log import Header, Log, Record, read_log
    from lswap_eval.mgsm.answers import Answer, extract_answer
    from lswap_eval.mgsm.download import load_problems
    from lswap_eval.mgsm.problems import Problem, ProblemSet, read_problems
    from lswap_eval.mgsm.prompts import Prompt, build_prompt, stop_strings
    from lswap_eval.score.comparison import compare, read_runs
    from lswap_eval.score.scoring import Score, score_log

_HOME = {
    "Answer": "mgsm.answers",
    "Header": "log",
    "Log": "log",
    "Problem": "mgsm.problems",
    "ProblemSet": "mgsm.problems",
    "Prompt": "mgsm.prompts",
    "Record": "log",
    "Score": "score.scoring",
    "build_prompt": "mgsm.prompts",
    "compare": "score.comparison",
    "extract_answer": "mgsm.answers",
    "load_problems": "mgsm.download",
    "read_log": "log",
    "read_problems": "mgsm.problems",
    "read_runs": "score.comparison",
    "score_log": "score.scoring",
    "stop_strings": "mgsm.prompts",
}

__all__ = [
    "Answer", "Header", "Log", "Problem", "ProblemSet", "Prompt", "Record", "Score", "build_prompt", "compare",
    "extract_answer", "load_problems", "read_log", "read_problems", "read_runs", "score_log", "stop_strings",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
