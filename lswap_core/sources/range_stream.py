"""Streams the bytes of one remote file: retries after errors and resumes after interruptions."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Protocol

from lswap_core.errors import SourceError
from lswap_core.io.retries import InterruptedTransferError, pause

Count = Callable[[int], None]
"""Called with the number of bytes received over the network."""


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


def read_range(reader: RangeReader, begin: int, end: int, count: Count = lambda _: None) -> bytes:
    """Return bytes [begin, end) of a file, read as `Stream` reads them."""
    data = bytearray(end - begin)
    with closing(Stream(reader, begin, end, count)) as stream:
        stream.read_into(memoryview(data))
    return bytes(data)
