"""Bringing runs to an S3-compatible store: in parts that wait in memory until they are whole, or that the store copies itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from threading import Lock

from lswap_core.errors import LswapError
from lswap_core.io.digests import RunDigests
from lswap_core.io.per_thread import Buffers
from lswap_core.io.ports import Source, Tally
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import Run
from lswap_core.sinks.s3.bucket import LostUploadError, Place, UnknownCallError
from lswap_core.sinks.s3.copy_sources import Origins
from lswap_core.sinks.s3.multipart import Part
from lswap_core.sinks.s3.part_buffers import Assembly

_PIECE_BYTES = 1024 * 1024
Key = tuple[str, int]
"""A part of an output file: the file's name, the part's number."""


class Sender:
    """Delivers parts of unfinished uploads, each once, when its last byte has come. Safe to use from several threads."""

    def __init__(
        self,
        place: Place,
        plan: Plan,
        parts: Mapping[str, tuple[Part, ...]],
        origins: Origins,
        ids: Mapping[str, str],
        etags: Mapping[Key, str],
        *,
        options: WriteOptions,
        traffic: Traffic,
        on_loss: Callable[[str], LswapError] | None = None,
    ) -> None:
        """parts: of all files. ids: of the uploads, by file. etags: of the parts that the store has already. on_loss: called
        with the name of a file of which the store no longer has the upload; returns what is raised.
        """
        self._on_loss = on_loss
        self.parts, self.origins, self._ids = parts, origins, ids
        self._place, self._options, self._traffic = place, options, traffic
        self._etags = dict(etags)
        self._heads = {file.name: file.header.encode() for file in plan.files}
        self._buffers = Buffers()
        self._lock = Lock()

    @property
    def etags(self) -> dict[Key, str]:
        """Of the parts that the store has by now."""
        with self._lock:
            return dict(self._etags)

    @property
    def most_held_bytes(self) -> int:
        """The most memory that parts took at a time."""
        return self._assembly.most_held_bytes

    def can_splice(self, among: Collection[Key]) -> bool:
        """Whether the store knows how to copy parts: the first that it can copy is, of those `among` which are not there. True
        where nothing is left to try that on.
        """
        for file, parts in self.parts.items():
            for part in parts:
                if part.origin is not None and (file, part.number) in among and (file, part.number) not in self._etags:
                    try:
                        self._deliver(file, part, None)
                    except UnknownCallError:
                        return False
                    return True
        return True

    def begin(self, theirs: Collection[Key] = ()) -> None:
        """Take bytes from now on. theirs: parts that others send."""
        self._assembly = Assembly(self.parts, self._heads, {*self._etags, *theirs}, self._deliver)

    def deliver_heads(self) -> None:
        """See `Assembly.deliver_heads`."""
        self._assembly.deliver_heads()

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Writer`."""
        digests = None if self._options.digest == "none" else RunDigests(run.steps)
        for part, begin, end in self._assembly.spans(run.file, run.begin, run.end):
            if part.origin is None or self._options.digest == "xxh3":
                self._through(run, part, begin, end, source, tally, digests)
            else:
                self._assembly.arrived(run.file, part, end - begin)
                tally(end - begin)
        return [StepRecord(step.name, None) for step in run.steps] if digests is None else digests.records()

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Writer`."""
        at = run.begin + offset
        for part, begin, end in self._assembly.spans(run.file, at, at + len(data)):
            room = self._assembly.room(run.file, part, begin, end)
            if room is not None:
                room[:] = data[begin - at : end - at]
            self._assembly.arrived(run.file, part, end - begin)
        self._traffic.add("compute", len(data))

    def disown_spliced(self) -> None:
        """Forget the parts that the store copied."""
        with self._lock:
            self._etags = {key: etag for key, etag in self._etags.items() if self.parts[key[0]][key[1] - 1].origin is None}

    def _through(
        self, run: Run, part: Part, begin: int, end: int, source: Source, tally: Tally, digests: RunDigests | None
    ) -> None:
        """Bring bytes [begin, end) of the output file, which lie in `part`, over through memory; or only digest them."""
        for at in range(begin, end, _PIECE_BYTES):
            stop = min(at + _PIECE_BYTES, end)
            room = self._assembly.room(run.file, part, at, stop)
            piece = self._buffers.get("piece", stop - at) if room is None else room
            if room is not None or digests is not None:
                source.read_into(run.source, at - run.begin, piece)
            if digests is not None:
                digests.feed(at, piece)
            if room is not None:
                self._traffic.add("read_write", stop - at)
            self._assembly.arrived(run.file, part, stop - at)
            tally(stop - at)

    def _deliver(self, file: str, part: Part, data: bytearray | None) -> None:
        try:
            etag = self._send(file, part, data)
        except LostUploadError:
            if self._on_loss is None:
                raise
            raise self._on_loss(file) from None
        with self._lock:
            self._etags[file, part.number] = etag

    def _send(self, file: str, part: Part, data: bytearray | None) -> str:
        upload = self._ids[file]
        if part.origin is None:
            assert data is not None
            return self._place.send(file, upload, part.number, data)
        url, version = self.origins[part.origin.role, part.origin.file]
        begin = part.origin.begin
        etag = self._place.splice(file, upload, part.number, url, version, begin, begin + part.size_bytes)
        self._traffic.add("splice", part.size_bytes)
        return etag
