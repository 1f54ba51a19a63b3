"""Counts how the bytes of an output got there, by method: for progress and summaries, never for published files."""

from __future__ import annotations

from collections import Counter
from threading import Lock

METHODS = {
    "link": "hard-linked",
    "clone": "shared with the source",
    "copy_file_range": "copied by copy_file_range",
    "sendfile": "copied by sendfile",
    "splice": "copied within the store",
    "read_write": "copied by read and write",
    "compute": "computed",
    "resume": "there already",
    "fetch": "fetched",
}
"""Methods, and their names in messages."""


class Traffic:
    """Bytes by method. Safe to use from several threads."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, method: str, count: int) -> None:
        """Count `count` bytes."""
        with self._lock:
            self._bytes[method] += count

    @property
    def bytes_by_method(self) -> dict[str, int]:
        """In the order of METHODS, without methods that moved nothing."""
        return {method: self._bytes[method] for method in METHODS if self._bytes[method]}
