"""Written pages pushed out behind the writer, so that the last sync is short and dirty memory stays flat."""

from __future__ import annotations

from threading import local

from lswap_core.sinks.extents import finish_writing, start_writing

WINDOW_BYTES = 8 * 1024 * 1024
"""What a thread writes before it pushes; twice as much may be dirty for each."""


class Writeback:
    """Told of every range that is written. Each thread has a window of its own."""

    def __init__(self) -> None:
        self._mine = local()

    def wrote(self, fd: int, begin: int, end: int) -> None:
        """Bytes [begin, end) were written. While a full window goes out, the thread waits for the one before it."""
        held, at, to = getattr(self._mine, "window", (-1, 0, 0))
        if (held, to) != (fd, begin):
            self._mine.before = None
            at = begin
        self._mine.window = (fd, at, end)
        if end - at >= WINDOW_BYTES:
            start_writing(fd, at, end)
            if (before := self._mine.before) is not None:
                finish_writing(fd, *before)
            self._mine.before = (at, end)
            self._mine.window = (fd, end, end)
