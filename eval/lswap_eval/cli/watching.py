"""Shows the progress of a run on stderr: problems done, and the accuracy so far with its Wilson interval."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lswap_core.text.plain import one_line
from lswap_eval.log import Header, Key, Record
from lswap_eval.score.scoring import score_log
from lswap_eval.score.statistics import wilson_interval


class ProgressWatcher:
    """A `lswap_eval.generate.runner.Watcher`: a bar on a terminal, elsewhere a line when a language is done.

    The accuracy covers all records of the log under the rule `lswap`, including those from before a resumption.
    """

    def __init__(self, what: str, header: Header, earlier: Sequence[Record], stream: TextIO | None = None) -> None:
        self._what = one_line(what)
        self._stream = stream or sys.stderr
        self._header = header
        self._total = 0
        self._bar: Progress | None = None
        self._of: dict[str, list[bool]] = {}
        self._expected: dict[str, int] = {}
        self._earlier = earlier

    def begin(self, keys: Sequence[Key], known: Sequence[Key]) -> None:
        """See `Watcher`."""
        self._total = len(keys)
        for language, _, _ in keys:
            self._expected[language] = self._expected.get(language, 0) + 1
        there = set(known)
        self._count([record for record in self._earlier if record.key in there])
        if self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(file=self._stream), transient=True)
            self._bar.add_task(self._describe(), total=self._total, completed=len(known))
            self._bar.start()

    def advance(self, records: Sequence[Record]) -> None:
        """See `Watcher`."""
        self._count(records)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=len(records), description=self._describe())
            return
        for language in {record.language: None for record in records}:
            right = self._of[language]
            if len(right) == self._expected[language]:
                self._stream.write(f"{self._what}: {language} {_accuracy(right)}\n")

    def end(self) -> None:
        """See `Watcher`."""
        if self._bar is not None:
            self._bar.stop()
        if self._of:
            self._stream.write(self._describe() + "\n")

    def _count(self, records: Sequence[Record]) -> None:
        for (language, _, _), score in score_log(self._header, records).items():
            self._of.setdefault(language, []).append(score.correct)

    def _describe(self) -> str:
        every = [right for of_language in self._of.values() for right in of_language]
        return f"{self._what}: {_accuracy(every)}"


def _accuracy(right: Sequence[bool]) -> str:
    if not right:
        return "nothing yet"
    interval = wilson_interval(sum(right), len(right))
    return f"{interval.estimate:.1%} ({interval.low:.1%} to {interval.high:.1%}) of {len(right)}"
