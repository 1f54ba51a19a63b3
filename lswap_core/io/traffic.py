"""How many bytes of an output came to it in which way: for people, never for what is published."""

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
"""Ways, and what people call them."""


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
        """In the order of METHODS, without those that moved nothing."""
        return {method: self._bytes[method] for method in METHODS if self._bytes[method]}
