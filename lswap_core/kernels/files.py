"""Statistics of tensors that lie in open files, whose bytes need not pass through Python. Needs no numpy where the native
kernels are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

from lswap_core.checkpoint.dtypes import DType
from lswap_core.errors import became_shorter, located
from lswap_core.kernels.backend import BackendUnavailable, FileRange, check_before, checked_dtype
from lswap_core.kernels.difference import BLOCK_ELEMENTS, DifferenceStats
from lswap_core.kernels.native import Native, load

MOST_RANGES, LINE_BYTES = 8, 64
"""As the native kernels have it, which read where in a cache line the bytes lie in their file."""


def stats_of_files(
    ranges: Sequence[FileRange],
    pairs: Sequence[tuple[int, int]],
    count: int,
    *,
    dtype: DType | str,
    before: Sequence[DifferenceStats],
    scratch: memoryview,
    backend: str = "auto",
) -> list[DifferenceStats]:
    """How pairs of ranges differ, `count` elements of `dtype` in each; every range is read once, in pieces.

    pairs: numbers of ranges, x and y. before: for each pair the statistics of the chunks before this one, as for
    `blend_stats`. scratch: writable memory to read into, shared out among the ranges, of which there are 1 to 8; at least 1,024
    elements and 64 bytes for each, and best what stays in the second-level cache. Raises StalePlanError where a file ends too
    soon, OSError where it cannot be read, ValueError for anything else. The files' offsets are neither used nor changed.
    """
    kind = checked_dtype("dtype", dtype)
    if count < 0:
        raise ValueError(f"count is {count}; expected a number of elements")
    if len(before) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs, but {len(before)} statistics before them")
    for pair in pairs:
        if not all(0 <= number < len(ranges) for number in pair):
            raise ValueError(f"pair {pair} names no two of {len(ranges)} ranges")
    for each in before:
        check_before(each)
    if not 1 <= len(ranges) <= MOST_RANGES:
        raise ValueError(f"there are {len(ranges)} ranges; expected 1 to {MOST_RANGES}")
    block_bytes = BLOCK_ELEMENTS * kind.bits // 8 + LINE_BYTES
    if scratch.readonly or scratch.nbytes < len(ranges) * block_bytes:
        raise ValueError(f"scratch has {scratch.nbytes} bytes to write to; expected {block_bytes} or more for each range")
    native = _native() if backend in ("auto", "native") else None
    if native is not None:
        return native.stats_of_files(ranges, pairs, count, kind, before, scratch)
    return _in_pieces(ranges, pairs, count * kind.bits // 8, kind, before, scratch, backend)


@cache
def _native() -> Native | None:
    try:
        return load()
    except BackendUnavailable:
        return None


def _in_pieces(
    ranges: Sequence[FileRange],
    pairs: Sequence[tuple[int, int]],
    total_bytes: int,
    dtype: DType,
    before: Sequence[DifferenceStats],
    scratch: memoryview,
    backend: str,
) -> list[DifferenceStats]:
    from lswap_core.kernels.contract import stats

    block_bytes = BLOCK_ELEMENTS * dtype.bits // 8
    piece_bytes = scratch.nbytes // len(ranges) // block_bytes * block_bytes
    found = list(before)
    for begin in range(0, total_bytes, piece_bytes):
        size = min(piece_bytes, total_bytes - begin)
        data = [scratch[k * piece_bytes : k * piece_bytes + size] for k in range(len(ranges))]
        for each, buffer in zip(ranges, data, strict=True):
            _fill(buffer, each, begin)
        found = [
            stats(data[x], data[y], dtype=dtype, before=earlier, backend=backend)
            for (x, y), earlier in zip(pairs, found, strict=True)
        ]
    return found


def _fill(buffer: memoryview, place: FileRange, begin: int) -> None:
    done = 0
    while done < buffer.nbytes:
        with located(place.path):
            got = os.preadv(place.descriptor, [buffer[done:]], place.begin + begin + done)
        if got == 0:
            raise became_shorter(place.path)
        done += got
