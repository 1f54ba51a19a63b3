"""Open files, few at a time: every thread keeps the one it used last in each place."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock, local


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
