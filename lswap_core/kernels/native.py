"""The kernels in C++ (`csrc/`), called with ctypes, which releases the interpreter lock meanwhile."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from lswap_core.checkpoint.dtypes import DType
from lswap_core.errors import became_shorter
from lswap_core.kernels import library
from lswap_core.kernels.backend import BackendUnavailable, Bytes, FileRange
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.kernels.library import DTYPE_NUMBERS, Function, find_library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIBRARY = "liblswap_cpu.so"
_ABI = 3
_FILE_ENDED, _READ_FAILED = 4, 5
LARGE_FROM_BYTES = 8 << 20
"""Operands of this size make a call large: it is split over the processors, and writes `out`, which no cache would hold, with
non-temporal stores. Each large call starts its threads, which takes about as long as 0.3 MiB of work. The pipeline has its
own threads and soon reuses its buffers, so its chunks must stay far below this size."""


class _Stats(ctypes.Structure):
    """struct lswap_stats."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("sum_abs", "sum_squares", "max_abs", "dot", "x_squares", "y_squares")),
        *((name, ctypes.c_uint64) for name in ("differing", "x_nonfinite", "y_nonfinite")),
    ]

    @classmethod
    def of(cls, stats: DifferenceStats) -> _Stats:
        return cls(
            stats.sum_abs, stats.sum_squares, stats.max_abs, stats.dot, stats.x_squares, stats.y_squares,
            stats.differing, stats.x_nonfinite, stats.y_nonfinite,
        )  # fmt: skip

    def value(self, count: int) -> DifferenceStats:
        return DifferenceStats(
            count, self.differing, self.sum_abs, self.sum_squares, self.max_abs, self.dot, self.x_squares, self.y_squares,
            self.x_nonfinite, self.y_nonfinite,
        )  # fmt: skip


class _Range(ctypes.Structure):
    """struct lswap_range."""

    _fields_ = (("begin", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


class _Pair(ctypes.Structure):
    """struct lswap_pair."""

    _fields_ = (("x", ctypes.c_uint32), ("y", ctypes.c_uint32))


class Native:
    """The kernels for one instruction set.

    A call whose operands have `large_from_bytes` each or more is split over `threads`, and writes with non-temporal stores.
    """

    def __init__(self, library: ctypes.CDLL, isa: int, *, threads: int, large_from_bytes: int = LARGE_FROM_BYTES) -> None:
        self._library = library
        self._isa = isa
        self._threads = threads
        self._large_from_bytes = large_from_bytes

    def blend_stats(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: Bytes, before: DifferenceStats
    ) -> DifferenceStats:
        """See `lswap_core.kernels.blend_stats`; arguments are checked there."""
        return self._blend(x, y, weight, dtype, out.ctypes.data, before)

    def stats(self, x: Bytes, y: Bytes, dtype: DType, before: DifferenceStats) -> DifferenceStats:
        """See `lswap_core.kernels.stats`; arguments are checked there."""
        return self._blend(x, y, 0, dtype, None, before)

    def stats_of_files(
        self,
        ranges: Sequence[FileRange],
        pairs: Sequence[tuple[int, int]],
        count: int,
        dtype: DType,
        before: Sequence[DifferenceStats],
        scratch: memoryview,
    ) -> list[DifferenceStats]:
        """See `lswap_core.kernels.stats_of_files`; arguments are checked there."""
        statistics = (_Stats * len(pairs))(*map(_Stats.of, before))
        failed, error = ctypes.c_uint32(), ctypes.c_int32()
        status = self._library.lswap_stats_files(
            self._isa, DTYPE_NUMBERS[dtype.name],
            (_Range * len(ranges))(*(_Range(each.begin, each.descriptor) for each in ranges)), len(ranges),
            (_Pair * len(pairs))(*(_Pair(x, y) for x, y in pairs)), len(pairs), count,
            ctypes.byref(ctypes.c_uint8.from_buffer(scratch)), scratch.nbytes, statistics,
            ctypes.byref(failed), ctypes.byref(error),
        )  # fmt: skip
        if status == _FILE_ENDED:
            raise became_shorter(ranges[failed.value].path)
        if status == _READ_FAILED:
            raise OSError(error.value, os.strerror(error.value), ranges[failed.value].path)
        _check(status)
        return [one.value(earlier.count + count) for one, earlier in zip(statistics, before, strict=True)]

    def blend_many(self, inputs: Sequence[Bytes], weights: Sequence[float], dtype: DType, out: Bytes) -> None:
        """See `lswap_core.kernels.blend_many`; arguments are checked there."""
        count = len(inputs)
        addresses = (ctypes.c_void_p * count)(*(data.ctypes.data for data in inputs))
        shares = (ctypes.c_double * count)(*weights)
        elements, threads = out.nbytes * 8 // dtype.bits, self._threads if self._is_large(out) else 1
        number = DTYPE_NUMBERS[dtype.name]
        _check(self._library.lswap_blend_many(self._isa, number, addresses, shares, count, out.ctypes.data, elements, threads))

    def cast(self, x: Bytes, source: DType, out: Bytes, target: DType) -> None:
        """See `lswap_core.kernels.cast`; arguments are checked there."""
        elements, threads = x.nbytes * 8 // source.bits, self._threads if self._is_large(x) else 1
        numbers = DTYPE_NUMBERS[source.name], DTYPE_NUMBERS[target.name]
        _check(self._library.lswap_cast(self._isa, numbers[0], x.ctypes.data, numbers[1], out.ctypes.data, elements, threads))

    def change_of(
        self, left: NDArray[np.float32], right: NDArray[np.float32], scale: float, *, first: int, count: int
    ) -> NDArray[np.float32]:
        """See `lswap_core.kernels.low_rank.ChangeOf`."""
        import numpy as np  # imported here, since statistics of files do without it

        sides = np.ascontiguousarray(left), np.ascontiguousarray(right)
        change = np.empty(count, np.float32)
        addresses = [side.ctypes.data for side in sides]
        _check(self._library.lswap_low_rank(self._isa, *addresses, *right.shape, scale, first, change.ctypes.data, count))
        return change

    def _blend(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: int | None, before: DifferenceStats
    ) -> DifferenceStats:
        count, large = x.nbytes * 8 // dtype.bits, self._is_large(x)
        s = _Stats.of(before)
        _check(
            self._library.lswap_blend_stats(
                self._isa, DTYPE_NUMBERS[dtype.name], x.ctypes.data, y.ctypes.data, weight, out, count,
                self._threads if large else 1, large, ctypes.byref(s),
            )
        )  # fmt: skip
        return s.value(before.count + count)

    def _is_large(self, data: Bytes) -> bool:
        return data.nbytes >= self._large_from_bytes


def load(isa: str | None = None, *, threads: int | None = None, large_from_bytes: int = LARGE_FROM_BYTES) -> Native:
    """The kernels for one instruction set, by default the best one of this processor. threads: by default one per processor.

    Raises BackendUnavailable where the library or this processor does not have the instruction set.
    """
    opened, known = open_library(), instruction_sets()
    runs = [name for number, name in enumerate(known) if opened.lswap_isa_runs(number)]
    if isa is not None and isa not in known:
        raise BackendUnavailable(f"the library was built without {isa}; it has {', '.join(known)}")
    if isa is not None and isa not in runs:
        raise BackendUnavailable(f"this processor has no {isa}")
    threads = threads or len(os.sched_getaffinity(0))
    return Native(opened, known.index(isa or runs[0]), threads=threads, large_from_bytes=large_from_bytes)


@cache
def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that the library was built with, best first. Raises BackendUnavailable."""
    opened = open_library()
    names: list[str] = []
    while name := opened.lswap_isa_name(len(names)):
        names.append(name.decode())
    return tuple(names)


@cache
def open_library() -> ctypes.CDLL:
    """Open the library. Raises BackendUnavailable where it was not built or belongs to another version of this package."""
    if sys.byteorder != "little":
        raise BackendUnavailable("this machine is big-endian")
    pointer, i32, u32, u64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint64
    functions: list[Function] = [
        ("isa_name", ctypes.c_char_p, [i32]),
        ("isa_runs", i32, [i32]),
        ("blend_stats", i32, [i32, i32, pointer, pointer, ctypes.c_double, pointer, u64, u32, i32, pointer]),
        ("stats_files", i32, [i32, i32, pointer, u32, pointer, u32, u64, pointer, u64, pointer, pointer, pointer]),
        ("blend_many", i32, [i32, i32, pointer, pointer, u32, pointer, u64, u32]),
        ("cast", i32, [i32, i32, pointer, i32, pointer, u64, u32]),
        ("low_rank", i32, [i32, pointer, pointer, u64, u64, ctypes.c_double, u64, pointer, u64]),
    ]
    path = find_library(LIBRARY, built_with="a C++ compiler")
    return library.open_library(path, prefix="lswap_", abi=_ABI, functions=functions)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the native kernels refused a call with status {status}; this is a bug")
