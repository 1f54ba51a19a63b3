"""Statistics of tensors in open files. With the native kernels the bytes do not pass through Python, and numpy is not needed."""

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
"""As in the native kernels. They place data at the same offset in a cache line in memory as in the file."""


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
    """Compare pairs of file ranges, each of `count` elements of `dtype`. Returns one DifferenceStats per pair. Reads each
    range once, in pieces.

    ranges: 1 to 8. pairs: indices into `ranges`, of x and y. before: for each pair the statistics of earlier chunks, as for
    `blend_stats`. scratch: writable memory to read into, divided among the ranges: at least 1,024 elements and 64 bytes for
    each; fastest where it fits into the L2 cache. Raises StalePlanError where a file ends too soon, OSError where it cannot
    be read, and ValueError for any other argument. The file positions are neither used nor changed.
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
    statistics = list(before)
    for begin in range(0, total_bytes, piece_bytes):
        size = min(piece_bytes, total_bytes - begin)
        data = [scratch[k * piece_bytes : k * piece_bytes + size] for k in range(len(ranges))]
        for each, buffer in zip(ranges, data, strict=True):
            _fill(buffer, each, begin)
        statistics = [
            stats(data[x], data[y], dtype=dtype, before=earlier, backend=backend)
            for (x, y), earlier in zip(pairs, statistics, strict=True)
        ]
    return statistics


def _fill(buffer: memoryview, place: FileRange, begin: int) -> None:
    done = 0
    while done < buffer.nbytes:
        with located(place.path):
            got = os.preadv(place.descriptor, [buffer[done:]], place.begin + begin + done)
        if got == 0:
            raise became_shorter(place.path)
        done += got
