"""Bytes of one remote file: a stream of them that outlives cuts, and how long a server that fails is asked again."""

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
"""Tries in a row that bring no byte before a transfer is given up: with the waits between them, about 20 seconds."""
LONGEST_PAUSE_SECONDS = 60.0
"""Longest wait that a server may ask for; beyond it, it is for the user to wait."""
Count = Callable[[int], None]
"""Told how many bytes came over the network."""
Answer = TypeVar("Answer")


class InterruptedTransferError(Exception):
    """A transfer was cut, or refused for now: worth another try, after `after_seconds` if the server said so."""

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class RangeReader(Protocol):
    """One remote file. Safe to use from several threads."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""

    @property
    def size(self) -> int:
        """Bytes in all of it."""

    @property
    def etag(self) -> str | None:
        """The server's name for its present content; None before anything was read, or where there is none."""

    def stream(self, begin: int, end: int) -> Generator[memoryview | bytes, None, None]:
        """Bytes [begin, end) piece by piece; nothing travels before the first is asked for, and closing it ends the transfer.

        May end early. Raises InterruptedTransferError for what another try may mend, StalePlanError where the file is no
        longer what it was when it was first read, SourceError for anything else.
        """


class Stream:
    """Bytes [begin, end) of a file, in order: retried with backoff, and resumed where it was cut."""

    def __init__(self, reader: RangeReader, begin: int, end: int, count: Count = lambda _: None) -> None:
        self._reader, self.at, self.end, self._count = reader, begin, end, count
        self._pieces: Generator[memoryview | bytes, None, None] | None = None
        self._left = memoryview(b"")

    def start(self) -> None:
        """Ask for the bytes and wait for the first: more come into the kernel's buffers while the caller does something else.
        Raises as `read_into`.
        """
        if not self._left and self.at < self.end:
            self._left = memoryview(self._next())

    def read_into(self, buffer: memoryview) -> None:
        """Fill `buffer` with the next bytes. Raises what `RangeReader.stream` does, and SourceError once ATTEMPTS in a row
        brought nothing.
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
            # A connection that breaks as it is given up breaks nothing.
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
    """Wait before the next try; SourceError where there have been enough, or the wait would be too long."""
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
    """`ask()`, again as often as `Stream` would while it raises InterruptedTransferError."""
    failures = 0
    while True:
        try:
            return ask()
        except InterruptedTransferError as error:
            failures += 1
            pause(failures, error, path)


def read_range(reader: RangeReader, begin: int, end: int, count: Count = lambda _: None) -> bytes:
    """Bytes [begin, end) of a file, as `Stream` reads them."""
    data = bytearray(end - begin)
    with closing(Stream(reader, begin, end, count)) as stream:
        stream.read_into(memoryview(data))
    return bytes(data)
