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

_HOME = {
    **dict.fromkeys(("Answer", "extract_answer"), "answers"),
    **dict.fromkeys(("Header", "Log", "Record", "read_log"), "log"),
}

__all__ = ["Answer", "Header", "Log", "Record", "extract_answer", "read_log"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
