"""Checkpoints that are read in ranges over a network: a stream that outlives cuts, a catalogue from headers alone, a source.

What speaks a protocol is a `Folder` with its `RangeReader`s; see `lswap_core.sources.hub` and `lswap_core.sources.stores`.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Protocol, TypeVar

from lswap_core.checkpoint import Checkpoint, Role, TensorRef
from lswap_core.errors import SourceError, StalePlanError
from lswap_core.runs import Run

FIRST_WAIT_SECONDS = 0.5
MOST_WAIT_SECONDS = 8.0
ATTEMPTS = 6
"""Tries in a row that bring no byte before a transfer is given up: with the waits between them, about 20 seconds."""
_STREAMS_OF_A_THREAD = 4
"""Operands that a thread reads in turn: base, math and lang, and one to spare."""
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


class Folder(Protocol):
    """The files of one remote checkpoint."""

    @property
    def root(self) -> str:
        """Its URL, pinned to one revision where there are such."""

    @property
    def name(self) -> str:
        """What to call it in what is published."""

    @property
    def only(self) -> str | None:
        """The one file that is meant, where it is not all of them."""

    def sizes(self) -> Mapping[str, int | None]:
        """Every file, by its name below the root, and its size in bytes where that is known."""

    def reader(self, name: str) -> RangeReader:
        """A file's reader. Raises SourceError where it cannot be had, FileNotFoundError where there is no such file."""

    def copy_of(self, name: str) -> Path | None:
        """The same file on a local disk, if it is there already."""

    def mtime_ns(self, name: str) -> int:
        """When it was last changed; 0 where the root pins its content."""


class Stream:
    """Bytes [begin, end) of a file, in order: retried with backoff, and resumed where it was cut."""

    def __init__(self, reader: RangeReader, begin: int, end: int, count: Count = lambda _: None) -> None:
        self._reader, self.at, self.end, self._count = reader, begin, end, count
        self._pieces: Generator[memoryview | bytes, None, None] | None = None
        self._left = memoryview(b"")

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


@dataclass(frozen=True, slots=True)
class Spans:
    """What will be read of one file: ranges that begin in order, each by one thread from first to last."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """All of them together; what two have in common is read twice."""
        return sum(self.ends) - sum(self.begins)

    def end_of(self, at: int, default: int) -> int:
        """Where the range ends that `at` lies in; `default` where it lies in none."""
        found = bisect_right(self.begins, at) - 1
        return self.ends[found] if found >= 0 and at < self.ends[found] else default


def spans_of(order: Sequence[Run]) -> dict[tuple[Role, str], Spans]:
    """The ranges that runs read, by role and file: neighbouring copies are one range, an operand of a blend another."""
    ranges: dict[tuple[Role, str], set[tuple[int, int]]] = {}
    for run in order:
        first = run.source
        if run.copied:
            ranges.setdefault((first.role, first.file), set()).add((first.begin, first.begin + run.size_bytes))
        else:
            for ref in run.steps[0].made_of.refs:
                ranges.setdefault((ref.role, ref.file), set()).add((ref.begin, ref.end))
    return {
        key: Spans(tuple(begin for begin, _ in sorted(found)), tuple(end for _, end in sorted(found)))
        for key, found in ranges.items()
    }


class RemoteSource:
    """Bytes of remote checkpoints. A thread keeps a stream open for each operand: it covers what a run needs of a file and no
    more, and is read on as the run is; the kernel's buffers hold what comes in the meantime.
    """

    sequential = False
    """Every range is a request of its own, and the server keeps no place."""

    def __init__(
        self, checkpoints: Mapping[Role, Checkpoint], folders: Mapping[Role, Folder], count: Count = lambda _: None
    ) -> None:
        self._checkpoints, self._folders, self._count = checkpoints, folders, count
        self._shards = {(role, shard.name): shard for role, c in checkpoints.items() for shard in c.files}
        self._readers: dict[tuple[Role, str], RangeReader] = {}
        self._opening: dict[tuple[Role, str], Lock] = {key: Lock() for key in self._shards}
        self._spans: dict[tuple[Role, str], Spans] = {}
        self._mine = local()
        self._open: set[Stream] = set()
        self._lock = Lock()

    def expect(self, order: Sequence[Run]) -> None:
        """See `lswap_core.ports.Source`."""
        self._spans = spans_of(order)

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        """See `lswap_core.ports.Source`."""
        at, filled = ref.begin + offset, 0
        while filled < len(buffer):
            stream = self._stream(ref, at, default=max(ref.end, at + len(buffer) - filled))
            taken = min(len(buffer) - filled, stream.end - at)
            stream.read_into(buffer[filled : filled + taken])
            filled, at = filled + taken, at + taken

    def descriptor(self, role: Role, file: str) -> int | None:  # noqa: ARG002 - the protocol's
        """See `lswap_core.ports.Source`."""
        return None

    def path_of(self, role: Role, file: str) -> str:
        """See `lswap_core.ports.Source`."""
        return self._checkpoints[role].path_of(file)

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        """Every response was held against the first one's ETag and size already."""

    def check(self) -> None:
        """As `confirm`: what was read is of one content."""

    def close(self) -> None:
        """End what is under way. No thread may be reading."""
        with self._lock:
            while self._open:
                self._open.pop().close()
        self._mine = local()

    def _stream(self, ref: TensorRef, at: int, default: int) -> Stream:
        """The stream of this thread that is at byte `at` of the file of `ref`, or a new one from there to the end of the span."""
        mine: list[tuple[Role, str, Stream]] = self._mine.__dict__.setdefault("streams", [])
        for role, file, stream in mine:
            if (role, file, stream.at) == (ref.role, ref.file, at) and at < stream.end:
                return stream
        while mine and (mine[0][2].at == mine[0][2].end or len(mine) >= _STREAMS_OF_A_THREAD):
            self._give_up(mine.pop(0)[2])
        spans = self._spans.get((ref.role, ref.file))
        end = default if spans is None else spans.end_of(at, default)
        stream = Stream(self._reader((ref.role, ref.file)), at, end, self._count)
        mine.append((ref.role, ref.file, stream))
        with self._lock:
            self._open.add(stream)
        return stream

    def _give_up(self, stream: Stream) -> None:
        stream.close()
        with self._lock:
            self._open.discard(stream)

    def _reader(self, key: tuple[Role, str]) -> RangeReader:
        with self._opening[key]:  # one thread finds a file, the others wait for it
            if key not in self._readers:
                reader = self._folders[key[0]].reader(key[1])
                if reader.size != self._shards[key].header.file_size:
                    raise StalePlanError(f"{reader.path}: changed after it was planned ({reader.size} bytes now); plan again")
                self._readers[key] = reader
            return self._readers[key]
