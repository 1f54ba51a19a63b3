"""Digests of tensor bytes: `xxh3-128:<hex>`. Fast enough to take from every byte while it is in the cache."""

from __future__ import annotations

import xxhash

ALGORITHM = "xxh3-128"


class Digest:
    """A running digest."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._state.update(data)

    def text(self) -> str:
        """`algorithm:hex` of all bytes so far."""
        return f"{ALGORITHM}:{self._state.hexdigest()}"
