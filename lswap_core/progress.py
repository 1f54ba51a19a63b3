"""A progress bar on a terminal: bytes, rate, time left."""

from __future__ import annotations

from threading import Lock
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_REFRESH_SECONDS = 0.1


class Bar:
    """A `lswap_core.io.ports.Progress` on stderr. Workers report every piece; the terminal hears of it ten times a second."""

    def __init__(self, what: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(what, total=None)
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
        """Take the bar away."""
        self._progress.advance(self._task, self._unreported)
        self._progress.stop()
