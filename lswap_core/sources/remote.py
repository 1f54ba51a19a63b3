"""Reads checkpoints in ranges over a network: the protocol of remote folders, and the source of their bytes.

Each network protocol has a `Folder` with its `RangeReader`s; see `lswap_core.sources.hub` and
`lswap_core.sources.object_stores`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Protocol

from lswap_core.checkpoint.catalogue import Content, Role, TensorRef
from lswap_core.errors import StalePlanError
from lswap_core.plan.runs import Run
from lswap_core.sources.range_stream import Count, RangeReader, Stream

_STREAMS_OF_A_THREAD = 4
"""Operands that a thread reads in turn: base, math and lang, and one to spare. With more sources there are more."""


class Folder(Protocol):
    """The files of one remote checkpoint."""

    @property
    def root(self) -> str:
        """Its URL, pinned to one revision where there are revisions."""

    @property
    def name(self) -> str:
        """Its name in published files."""

    @property
    def only(self) -> str | None:
        """The one file that the location names, None where it names the folder."""

    def sizes(self) -> Mapping[str, int | None]:
        """The size in bytes of every file by its name below the root; None where the size is unknown."""

    def told(self, name: str) -> Content | None:
        """Size and digest that the store reports without a read, None where it reports neither."""

    def reader(self, name: str) -> RangeReader:
        """The reader of a file. Raises SourceError where it cannot be reached, FileNotFoundError where it does not exist."""

    def copy_of(self, name: str) -> Path | None:
        """The same file on a local disk, if there is one."""

    def mtime_ns(self, name: str) -> int:
        """Time of its last change; 0 where the root pins its content."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Ranges of one file that will be read. They begin in order, and one thread reads each from first to last."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Size of all ranges together; bytes in two of them are read twice."""
        return sum(self.ends) - sum(self.begins)

    def end_of(self, at: int, default: int) -> int:
        """End of the range that contains `at`; `default` where none does."""
        number = bisect_right(self.begins, at) - 1
        return self.ends[number] if number >= 0 and at < self.ends[number] else default


def spans_of(order: Sequence[Run]) -> dict[tuple[Role, str], Spans]:
    """The ranges that runs read, by role and file. Neighbouring copies are one range; an operand of a blend is another."""
    ranges: dict[tuple[Role, str], set[tuple[int, int]]] = {}
    for run in order:
        first = run.source
        if run.copied:
            ranges.setdefault((first.role, first.file), set()).add((first.begin, first.begin + run.size_bytes))
        else:
            for ref in run.steps[0].made_of.refs:
                ranges.setdefault((ref.role, ref.file), set()).add((ref.begin, ref.end))
    return {
        key: Spans(tuple(begin for begin, _ in sorted(of_file)), tuple(end for _, end in sorted(of_file)))
        for key, of_file in ranges.items()
    }


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a remote checkpoint, of `size` bytes. confirm: raises StalePlanError where a reader's file is not the planned
    one; None where no check is needed.
    """

    folder: Folder
    name: str
    size: int
    confirm: Callable[[RangeReader], None] | None = None

    @property
    def path(self) -> str:
        """Its location, for messages."""
        return f"{self.folder.root.rstrip('/')}/{self.name}"

    def open(self) -> RangeReader:
        """Return its reader. Raises StalePlanError where it has another size, and whatever `Folder.reader` raises."""
        reader = self.folder.reader(self.name)
        if reader.size != self.size:
            raise StalePlanError(f"{reader.path}: changed after it was planned ({reader.size} bytes now); plan again")
        return reader


class _FileInUse:
    """A file that several threads read: opened once, confirmed once."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._reader: RangeReader | None = None
        self._opening, self._confirming = Lock(), Lock()
        self.confirmed = file.confirm is None

    def reader(self) -> RangeReader:
        with self._opening:  # one thread opens a file, and the others wait
            if self._reader is None:
                self._reader = self._file.open()
            return self._reader

    def confirm(self, *, wait: bool) -> None:
        """Confirm that it is the planned file. While another thread does that, wait for it, or else return."""
        if self.confirmed or not self._confirming.acquire(blocking=wait):
            return
        try:
            if self._file.confirm is not None and not self.confirmed:
                self._file.confirm(self.reader())
            self.confirmed = True
        finally:
            self._confirming.release()


class RemoteSource:
    """Reads remote files. A thread keeps a stream open for each operand. A stream covers exactly what a run needs of a file;
    the kernel's buffers receive bytes ahead.

    The first thread that reads from a file confirms it, while other threads use the network and its own bytes reach the
    kernel's buffers. Nothing that was read of the file counts before that.
    """

    def __init__(self, files: Mapping[tuple[Role, str], RemoteFile], count: Count = lambda _: None) -> None:
        self._files, self._count = files, count
        self._in_use = {key: _FileInUse(file) for key, file in files.items()}
        self._spans: dict[tuple[Role, str], Spans] = {}
        self._most_streams = max(_STREAMS_OF_A_THREAD, 1 + len({role for role, _ in files}))
        self._mine = local()
        self._open: set[Stream] = set()
        self._lock = Lock()

    def arrange(self, runs: Sequence[Run]) -> list[Run]:
        """Runs with most bytes first, so that no long one is left at the end, when nothing else would use the network."""
        return sorted(runs, key=_travelling_bytes, reverse=True)

    def expect(self, order: Sequence[Run]) -> None:
        """See `lswap_core.io.ports.Source`."""
        self._spans = spans_of(order)

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        """See `lswap_core.io.ports.Source`."""
        at, filled = ref.begin + offset, 0
        while filled < len(buffer):
            stream = self._stream(ref, at, default=max(ref.end, at + len(buffer) - filled))
            taken = min(len(buffer) - filled, stream.end - at)
            stream.read_into(buffer[filled : filled + taken])
            filled, at = filled + taken, at + taken

    def path_of(self, role: Role, file: str) -> str:
        """See `lswap_core.io.ports.Source`."""
        return self._files[role, file].path

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        """See `lswap_core.io.ports.Source`. Confirms that it is the planned file; every response had the ETag and the size of
        the first.
        """
        for ref in refs:
            self._in_use[ref.role, ref.file].confirm(wait=True)

    def close(self) -> None:
        """End all transfers. No thread may be reading."""
        with self._lock:
            while self._open:
                self._open.pop().close()
        self._mine = local()

    def _stream(self, ref: TensorRef, at: int, default: int) -> Stream:
        """The stream of this thread that is at byte `at` of the file of `ref`, or a new one to the end of the span."""
        mine: list[tuple[Role, str, Stream]] = self._mine.__dict__.setdefault("streams", [])
        for role, file, stream in mine:
            if (role, file, stream.at) == (ref.role, ref.file, at) and at < stream.end:
                return stream
        while mine and (mine[0][2].at == mine[0][2].end or len(mine) >= self._most_streams):
            self._give_up(mine.pop(0)[2])
        in_use, spans = self._in_use[ref.role, ref.file], self._spans.get((ref.role, ref.file))
        end = default if spans is None else spans.end_of(at, default)
        stream = Stream(in_use.reader(), at, end, self._count)
        mine.append((ref.role, ref.file, stream))
        with self._lock:
            self._open.add(stream)
        if not in_use.confirmed:
            stream.start()  # the kernel receives bytes in the meantime
            in_use.confirm(wait=False)
        return stream

    def _give_up(self, stream: Stream) -> None:
        stream.close()
        with self._lock:
            self._open.discard(stream)


def _travelling_bytes(run: Run) -> int:
    return run.size_bytes if run.copied else sum(ref.size_bytes for ref in run.steps[0].made_of.refs)
