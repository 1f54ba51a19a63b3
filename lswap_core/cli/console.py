"""Prints for the command line: lines, tables, JSON, progress."""

from __future__ import annotations

import argparse
import json
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from lswap_core.text.plain import one_line

if TYPE_CHECKING:
    from lswap_core.io.ports import Progress
    from lswap_core.report.tables import Table

_WIDE = 160
_REFRESH_SECONDS = 0.1


def say(line: str) -> None:
    """Print one line. Names in it come from files; none can break the line or control the terminal."""
    print(one_line(line))


def print_json(value: Any) -> None:
    """Print a value as the library serialises it."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def load_tables() -> None:
    """Load what `print_table` needs, to save the time later."""
    from rich import box, console, markup, table  # noqa: F401


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or wide enough for a file."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(table.columns):
        drawn.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(one_line(cell)) for cell in row))
    Console(width=None if _is_terminal(sys.stdout) else _WIDE).print(drawn)


def progress_bar(arguments: argparse.Namespace, what: str) -> Progress | None:
    """Return a progress bar on a terminal, else None."""
    if not shows_progress(arguments):
        return None
    return Bar(what)


def shows_progress(arguments: argparse.Namespace) -> bool:
    """Whether stderr is a terminal."""
    return not arguments.quiet and _is_terminal(sys.stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # Python has None for a stream that is closed from the start


class Bar:
    """A `lswap_core.io.ports.Progress` on stderr. Workers report every piece; the terminal is updated ten times a second."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(what, total=None)
        from threading import Lock  # not for `--help`

        self._lock = Lock()
        self._unreported = 0
        self._reported_at = 0.0

    def begin(self, total_bytes: int) -> None:
        """Show the bar."""
        self._progress.update(self._task, total=total_bytes)
        self._progress.start()

    def advance(self, done_bytes: int) -> None:
        """Count bytes."""
        with self._lock:
            self._unreported += done_bytes
            if monotonic() - self._reported_at < _REFRESH_SECONDS:
                return
            self._progress.advance(self._task, self._unreported)
            self._unreported, self._reported_at = 0, monotonic()

    def end(self) -> None:
        """Remove the bar."""
        self._progress.advance(self._task, self._unreported)
        self._progress.stop()
