"""Buffers upload parts whose bytes come from several threads, in any order. Each part is delivered once, when it is complete."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from threading import Lock

from lswap_core.plan.upload_parts import UploadPart

Deliver = Callable[[str, UploadPart, bytearray | None], None]
"""Called with a file, a part of it, and the part's bytes; None for a part that the store copies."""


class PartBuffers:
    """The upload parts of all files. A part that is sent takes memory from its first byte until it is delivered. So memory
    holds the parts in which threads work, and those that wait for a neighbour's bytes.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[UploadPart, ...]],
        heads: Mapping[str, bytes],
        there: Collection[tuple[str, int]],
        deliver: Deliver,
    ) -> None:
        """heads: the first bytes of files, which no step writes. there: parts, by file and number, that are not delivered;
        their bytes are ignored.
        """
        self._parts, self._heads = parts, heads
        self._begins = {file: [part.begin for part in of_file] for file, of_file in parts.items()}
        self._there = frozenset(there)
        self._deliver = deliver
        self._left = {
            (file, part.number): part.size_bytes - len(heads[file][part.begin : part.end])
            for file, of_file in parts.items()
            for part in of_file
        }
        self._buffers: dict[tuple[str, int], bytearray] = {}
        self._held_bytes = 0
        self.most_held_bytes = 0
        """The most memory that parts took at a time, in bytes."""
        self._lock = Lock()

    def deliver_heads(self) -> None:
        """Deliver the parts that hold nothing but the head of a file."""
        for file, of_file in self._parts.items():
            for part in of_file:
                key = (file, part.number)
                if self._left[key] == 0 and key not in self._there:
                    self._deliver(file, part, bytearray(self._heads[file][part.begin : part.end]))

    def spans(self, file: str, begin: int, end: int) -> Iterator[tuple[UploadPart, int, int]]:
        """The parts of bytes [begin, end) of a file, each with its range of them."""
        parts = self._parts[file]
        number = bisect_right(self._begins[file], begin) - 1
        while begin < end:
            stop = min(parts[number].end, end)
            yield parts[number], begin, stop
            begin, number = stop, number + 1

    def room(self, file: str, part: UploadPart, begin: int, end: int) -> memoryview | None:
        """The buffer for bytes [begin, end) of the file, which are in `part`. None where they are not wanted."""
        key = (file, part.number)
        if part.origin is not None or key in self._there:
            return None
        with self._lock:
            buffer = self._buffers.get(key)
            if buffer is None:
                buffer = self._buffers[key] = bytearray(part.size_bytes)
                head = self._heads[file][part.begin : part.end]
                buffer[: len(head)] = head
                self._held_bytes += part.size_bytes
                self.most_held_bytes = max(self.most_held_bytes, self._held_bytes)
        return memoryview(buffer)[begin - part.begin : end - part.begin]

    def arrived(self, file: str, part: UploadPart, count: int) -> None:
        """Report that `count` more bytes of a part are there or not needed. After the last ones, this thread delivers the
        part.
        """
        key = (file, part.number)
        if key in self._there:
            return
        with self._lock:
            self._left[key] -= count
            whole = self._left[key] == 0
        if whole:
            self._deliver(file, part, self._buffers.get(key))
            with self._lock:
                if self._buffers.pop(key, None) is not None:
                    self._held_bytes -= part.size_bytes
