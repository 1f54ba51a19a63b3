"""What a run says of itself: problems done, and the accuracy of all that the log holds, with Wilson's interval."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from lswap_eval.cli.watching import ProgressWatcher
from lswap_eval.log import Header, Record

HEADER = Header({"identity": "ab"}, {"prompt": "native_cot"}, "cd", {"sw": [7] * 8, "en": [7] * 8})


def record(language: str, problem: int, *, right: bool) -> Record:
    return Record(
        language, problem, 0, "ef", f"{'Jibu ni' if language == 'sw' else 'The answer is'} {7 if right else 8}.", "stop", 1, 1
    )


SW = [record("sw", number, right=number < 3) for number in range(8)]
EN = [record("en", number, right=True) for number in range(8)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(right: int, count: int) -> str:
    bounds = binomtest(right, count).proportion_ci(method="wilson")
    return f"{right / count:.1%} ({bounds.low:.1%} to {bounds.high:.1%}) of {count}"


def watch(stream: io.StringIO, known: int) -> None:
    """All of Swahili, of which the log had the first `known`, then all of English."""
    watcher = ProgressWatcher("m\ny", HEADER, SW[:known], stream)
    watcher.begin([r.key for r in (*SW, *EN)], [r.key for r in SW[:known]])
    for batch in (SW[known:6], SW[6:], EN[:4], EN[4:]):
        watcher.advance(batch)
    watcher.end()


@pytest.mark.parametrize("known", [0, 2, 5])
def test_a_line_for_each_language_where_there_is_no_terminal(known: int) -> None:
    stream = io.StringIO()
    watch(stream, known)
    first, second, last = stream.getvalue().splitlines()
    assert "\n" not in first
    assert first.endswith(f"sw {said(3, 8)}")
    assert second.endswith(f"en {said(8, 8)}")
    assert last.endswith(said(11, 16))


def test_a_bar_on_a_terminal_and_a_line_at_the_end() -> None:
    stream = Terminal()
    watch(stream, 2)
    assert "16/16" in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].endswith(said(11, 16))


def test_nothing_done_says_nothing() -> None:
    stream = io.StringIO()
    watcher = ProgressWatcher("m", replace(HEADER), [], stream)
    watcher.begin([SW[0].key], [])
    watcher.end()
    assert stream.getvalue() == ""
