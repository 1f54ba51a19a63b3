"""What each thread keeps for reuse: buffers and open files."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from threading import Lock, local

PAGE_BYTES = 4096


class Buffers:
    """Reusable buffers, by their use. Every thread has its own.

    The alignment of a buffer matters. Reading 5 GB from the page cache took 2.2 to 2.6 s of processor time where the buffer's
    offset in its page was 8, 16 or 24 bytes larger than that of the data. It took 0.5 to 0.6 s where both offsets were equal
    and at all other distances tried, from 40 on and below (AMD Milan). At those three distances the processor seems to assume
    that loads depend on the stores before them. Tensors begin anywhere in a page, and so do Python's objects.
    """

    def __init__(self) -> None:
        self._mine = local()

    def get(self, use: str, size: int, offset: int = 0) -> memoryview:
        """Return `size` bytes of any content. They are valid until the next call of this thread for the same use.

        offset: of the data in their file. The buffer begins at the same offset in a page of memory.
        """
        begin = offset % PAGE_BYTES
        kept: memoryview | None = self._mine.__dict__.get(use)
        if kept is None or kept.nbytes < begin + size:
            pages = -(-(PAGE_BYTES + size) // PAGE_BYTES)
            memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            kept = self._mine.__dict__[use] = memoryview(memory)
        return kept[begin : begin + size]


class Descriptors:
    """File descriptors by (slot, name). A slot holds one file per thread; a request for another name closes the file before.

    So the number of open files depends on threads and slots, never on the number of shards.
    """

    def __init__(self, open_file: Callable[[str, str], int]) -> None:
        self._open_file = open_file
        self._mine = local()
        self._all: set[int] = set()
        self._lock = Lock()

    def get(self, slot: str, name: str) -> int:
        """Return a descriptor of that file. It is valid for this thread until it requests another file in the same slot."""
        held: dict[str, tuple[str, int]] = self._mine.__dict__.setdefault("held", {})
        if slot in held and held[slot][0] == name:
            return held[slot][1]
        fd = self._open_file(slot, name)
        with self._lock:
            self._all.add(fd)
            if slot in held:
                self._all.discard(held[slot][1])
                os.close(held[slot][1])
        held[slot] = (name, fd)
        return fd

    def close(self) -> None:
        """Close all descriptors. No thread may be using one."""
        with self._lock:
            while self._all:
                os.close(self._all.pop())
        self._mine = local()
