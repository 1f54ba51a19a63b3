"""What a thread keeps and uses again: buffers, and open files."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from threading import Lock, local

PAGE_BYTES = 4096


class Buffers:
    """Buffers by what they are for; every thread has its own.

    Where they begin matters. Reading 5 GB from the page cache took 2.2 to 2.6 s of processor time where memory began 8, 16 or 24
    bytes further on in its page than the bytes in theirs, and 0.5 to 0.6 s where both began alike and at all other distances
    tried, from 40 on and below (AMD Milan): copying there, the processor seems to take loads to hang on the stores before them.
    Tensors begin anywhere in a page, and so do objects of Python.
    """

    def __init__(self) -> None:
        self._mine = local()

    def get(self, use: str, size: int, offset: int = 0) -> memoryview:
        """`size` bytes of any content, valid until the next that are asked for that use. offset: where in a file they come from
        or go to; they begin as far into a page of memory.
        """
        begin = offset % PAGE_BYTES
        kept: memoryview | None = self._mine.__dict__.get(use)
        if kept is None or kept.nbytes < begin + size:
            pages = -(-(PAGE_BYTES + size) // PAGE_BYTES)
            memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            kept = self._mine.__dict__[use] = memoryview(memory)
        return kept[begin : begin + size]


class Descriptors:
    """File descriptors by (slot, name). A slot holds one file per thread; asking for another name closes the former.

    So the number of open files depends on threads and slots, never on the number of shards.
    """

    def __init__(self, open_file: Callable[[str, str], int]) -> None:
        self._open_file = open_file
        self._mine = local()
        self._all: set[int] = set()
        self._lock = Lock()

    def get(self, slot: str, name: str) -> int:
        """A descriptor of that file, for this thread until it asks for another in that slot."""
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
        """Close them all. No thread may be using one."""
        with self._lock:
            while self._all:
                os.close(self._all.pop())
        self._mine = local()
