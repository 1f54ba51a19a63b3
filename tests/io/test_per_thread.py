"""Buffers lie in memory as bytes lie in their file, and are a thread's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from lswap_core.io.per_thread import PAGE_BYTES, Buffers


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


@pytest.mark.parametrize("offset", [0, 1, 8, 63, 4095, 4096, 12_345_678_901])
@pytest.mark.parametrize("size", [1, 4096, 100_001])
def test_they_begin_as_far_into_a_page_as_the_offset_does(size: int, offset: int) -> None:
    buffers = Buffers()
    for _ in range(2):
        view = buffers.get("x", size, offset)
        assert (view.nbytes, view.readonly) == (size, False)
        assert (address(view) - offset) % PAGE_BYTES == 0
        view[:] = bytes([7]) * size


def test_memory_is_used_again_and_grows() -> None:
    buffers = Buffers()
    small = buffers.get("x", 10)
    assert address(buffers.get("x", 1000, 5)) == address(small) + 5
    large = buffers.get("x", 1 << 20)
    assert large.nbytes == 1 << 20
    small[:] = b"0123456789"  # what was handed out before stays memory
    assert address(buffers.get("y", 10)) != address(large)


def test_every_thread_has_its_own() -> None:
    buffers, together = Buffers(), Barrier(4)

    def fill(number: int) -> bool:
        view = buffers.get("x", 5000)
        together.wait()
        view[:] = bytes([number]) * 5000
        together.wait()
        return bytes(view) == bytes([number]) * 5000

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(4)))
