"""MGSM on the result of a layer swap: prompts, logs that survive, scores, honest error bars, ablations.

    from lswap_eval import extract_answer, read_log

    header, records = read_log("swapped.jsonl")
    print(extract_answer(records[0].output, records[0].language).value)

Names load on first use, so that importing the package costs next to nothing. It imports `lswap_core`, never the other way.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lswap_eval.answers import Answer, extract_answer
    from lswap_eval.log import Header, Log, Record, read_log
    from lswap_eval.problems import Problem, ProblemSet, load_problems, read_problems
    from lswap_eval.prompts import Prompt, build_prompt, stop_strings
    from lswap_eval.results import compare, read_runs
    from lswap_eval.scoring import Score, score_log

_HOME = {
    "Answer": "answers",
    "Header": "log",
    "Log": "log",
    "Problem": "problems",
    "ProblemSet": "problems",
    "Prompt": "prompts",
    "Record": "log",
    "Score": "scoring",
    "build_prompt": "prompts",
    "compare": "results",
    "extract_answer": "answers",
    "load_problems": "problems",
    "read_log": "log",
    "read_problems": "problems",
    "read_runs": "results",
    "score_log": "scoring",
    "stop_strings": "prompts",
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
