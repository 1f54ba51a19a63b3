"""Streams the bytes of one remote file: retries after errors and resumes after interruptions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Protocol, TypeVar

from lswap_core.errors import SourceError

FIRST_WAIT_SECONDS = 0.5
MOST_WAIT_SECONDS = 8.0
ATTEMPTS = 6
"""Attempts without a byte before a transfer fails: with the waits between them, about 20 seconds."""
LONGEST_PAUSE_SECONDS = 60.0
"""Longest wait in seconds that a server may ask for. For a longer one, the user must wait."""
Count = Callable[[int], None]
"""Called with the number of bytes received over the network."""
Answer = TypeVar("Answer")


class InterruptedTransferError(Exception):
    """A transfer was interrupted, or refused for now. Another attempt may succeed, after `after_seconds` if the server said
    so.
    """

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class RangeReader(Protocol):
    """Reads one remote file. Safe to use from several threads."""

    @property
    def path(self) -> str:
        """Its location, for messages."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def etag(self) -> str | None:
        """The server's identifier of its current content; None before the first read, or where the server has none."""

    def stream(self, begin: int, end: int) -> Generator[memoryview | bytes, None, None]:
        """Yield bytes [begin, end) in pieces; may end early. The transfer begins with the first piece, and closing the
        generator ends it.

        Raises InterruptedTransferError where another attempt may succeed, StalePlanError where the file has changed since the
        first read, and SourceError for anything else.
        """


class Stream:
    """Bytes [begin, end) of a file, in order. Retries with backoff, and resumes where it was interrupted."""

    def __init__(self, reader: RangeReader, begin: int, end: int, count: Count = lambda _: None) -> None:
        self._reader, self.at, self.end, self._count = reader, begin, end, count
        self._pieces: Generator[memoryview | bytes, None, None] | None = None
        self._left = memoryview(b"")

    def start(self) -> None:
        """Request the bytes and wait for the first. The kernel's buffers receive more while the caller does something else.
        Raises as `read_into`.
        """
        if not self._left and self.at < self.end:
            self._left = memoryview(self._next())

    def read_into(self, buffer: memoryview) -> None:
        """Fill `buffer` with the next bytes. Raises what `RangeReader.stream` raises, and SourceError after ATTEMPTS attempts
        in a row without a byte.
        """
        filled = 0
        while filled < len(buffer):
            if not self._left:
                self._left = memoryview(self._next())
            taken = min(len(self._left), len(buffer) - filled)
            buffer[filled : filled + taken] = self._left[:taken]
            self._left = self._left[taken:]
            filled += taken
            self.at += taken
        if self.at == self.end and self._pieces is not None:
            with suppress(InterruptedTransferError):  # to the end of the response, so that its connection is used again
                if any(len(piece) for piece in self._pieces):
                    raise SourceError(f"{self._reader.path}: the server sent more than was asked for; try another mirror")
            self.close()

    def close(self) -> None:
        """End the transfer."""
        if self._pieces is not None:
            # Errors while a connection is being closed do not matter.
            with suppress(InterruptedTransferError):
                self._pieces.close()
            self._pieces = None

    def _next(self) -> memoryview | bytes:
        """The next piece, which is not empty."""
        failures = 0
        while True:
            try:
                if self._pieces is None:
                    self._pieces = self._reader.stream(self.at, self.end)
                for piece in self._pieces:
                    if len(piece) > self.end - self.at:
                        raise SourceError(f"{self._reader.path}: the server sent more than was asked for; try another mirror")
                    if len(piece):
                        self._count(len(piece))
                        return piece
                raise InterruptedTransferError(f"ended at byte {self.at}, {self.end - self.at} bytes too early")
            except InterruptedTransferError as error:
                self.close()
                failures += 1
                pause(failures, error, self._reader.path)


def pause(failures: int, error: InterruptedTransferError, path: str) -> None:
    """Wait before the next attempt. Raises SourceError where there were enough, or the wait would be too long."""
    if failures >= ATTEMPTS:
        raise SourceError(f"{path}: {error}, {failures} times in a row; try again later, what is done is kept") from None
    backoff = min(FIRST_WAIT_SECONDS * 2 ** (failures - 1), MOST_WAIT_SECONDS) * random.uniform(0.5, 1)
    if error.after_seconds is None:
        time.sleep(backoff)
    elif error.after_seconds > LONGEST_PAUSE_SECONDS:
        raise SourceError(f"{path}: {error}; the server asks to wait {error.after_seconds:.0f} s, try again then") from None
    else:
        time.sleep(error.after_seconds)


def persist(path: str, ask: Callable[[], Answer]) -> Answer:
    """Call `ask`, again as often as `Stream` would while it raises InterruptedTransferError."""
    failures = 0
    while True:
        try:
            return ask()
        except InterruptedTransferError as error:
            failures += 1
            pause(failures, error, path)


def read_range(reader: RangeReader, begin: int, end: int, count: Count = lambda _: None) -> bytes:
    """Return bytes [begin, end) of a file, read as `Stream` reads them."""
    data = bytearray(end - begin)
    with closing(Stream(reader, begin, end, count)) as stream:
        stream.read_into(memoryview(data))
    return bytes(data)
