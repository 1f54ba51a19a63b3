"""Sends runs to an S3-compatible store: in upload parts that wait in memory until they are complete, or that the store
copies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from threading import Lock

from lswap_core.io.per_thread import Buffers
from lswap_core.io.pieces import Pieces
from lswap_core.io.ports import Source, Tally
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan, Step
from lswap_core.plan.runs import Run
from lswap_core.plan.upload_parts import UploadPart
from lswap_core.sinks.s3.bucket import LostUploadError
from lswap_core.sinks.s3.coordination import Coordination, Key, splice
from lswap_core.sinks.s3.part_buffers import PartBuffers
from lswap_core.sinks.s3.state import SharedState

_PIECE_BYTES = 1024 * 1024


class Sender:
    """Delivers each upload part once, when its last byte has come. Safe to use from several threads."""

    def __init__(
        self,
        coordination: Coordination,
        plan: Plan,
        state: SharedState,
        parts: Mapping[str, tuple[UploadPart, ...]],
        there: Collection[Key],
        *,
        options: WriteOptions,
        traffic: Traffic,
    ) -> None:
        """parts: of all files. there: parts that are not delivered here."""
        self._coordination, self._state = coordination, state
        self._options, self._traffic = options, traffic
        self._etags: dict[Key, str] = {}
        self._buffers = Buffers()
        self._lock = Lock()
        self._waiting = PartBuffers(parts, {file.name: file.header.encode() for file in plan.files}, there, self._send)

    @property
    def etags(self) -> dict[Key, str]:
        """ETags of the upload parts that were delivered so far."""
        with self._lock:
            return dict(self._etags)

    @property
    def most_held_bytes(self) -> int:
        """The most memory that upload parts took at a time, in bytes."""
        return self._waiting.most_held_bytes

    def keys(self, step: Step) -> set[Key]:
        """The upload parts of a step's bytes."""
        return {(step.file, part.number) for part, _, _ in self._waiting.spans(step.file, step.begin, step.end)}

    def deliver_heads(self) -> None:
        """See `PartBuffers.deliver_heads`."""
        self._waiting.deliver_heads()

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Writer`."""
        pieces = Pieces(run, source, tally, self._options.digest)
        for part, begin, end in self._waiting.spans(run.file, run.begin, run.end):
            if part.origin is None or self._options.digest == "xxh3":
                self._through(run, part, begin, end, pieces)
            else:
                self._waiting.arrived(run.file, part, end - begin)
                pieces.skip(end - begin)
        return pieces.records()

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Writer`."""
        at = run.begin + offset
        for part, begin, end in self._waiting.spans(run.file, at, at + len(data)):
            room = self._waiting.room(run.file, part, begin, end)
            if room is not None:
                room[:] = data[begin - at : end - at]
            self._waiting.arrived(run.file, part, end - begin)
        self._traffic.add("compute", len(data))

    def _through(self, run: Run, part: UploadPart, begin: int, end: int, pieces: Pieces) -> None:
        """Bring bytes [begin, end) of the output file, which are in `part`, over through memory; or only digest them."""
        room = self._waiting.room(run.file, part, begin, end)
        if room is None and not pieces.digested:
            self._waiting.arrived(run.file, part, end - begin)
            return pieces.skip(end - begin)

        def memory(offset: int, size: int) -> memoryview:
            at = run.begin + offset - begin
            return self._buffers.get("piece", size) if room is None else room[at : at + size]

        for _, piece in pieces.read(begin - run.begin, end - run.begin, _PIECE_BYTES, memory):
            if room is not None:
                self._traffic.add("read_write", len(piece))
            self._waiting.arrived(run.file, part, len(piece))
        return None

    def _send(self, file: str, part: UploadPart, data: bytearray | None) -> None:
        place = self._coordination.place
        try:
            if part.origin is not None:
                etag = splice(place, self._state, file, part, part.origin)
                self._traffic.add("splice", part.size_bytes)
            else:
                assert data is not None
                etag = place.send(file, self._state.uploads[file], part.number, data)
        except LostUploadError:
            raise self._coordination.lose(self._state, file) from None
        with self._lock:
            self._etags[file, part.number] = etag


class Sending:
    """The part of a sink that takes runs. Its subclass creates the sender."""

    in_order = True
    """See `lswap_core.io.ports.Writer`."""
    most_workers: int | None = None
    """See `lswap_core.io.ports.Writer`."""
    _sender: Sender

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Writer`."""
        return self._sender.copy(run, source, tally)

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Writer`."""
        self._sender.write(run, offset, data)
