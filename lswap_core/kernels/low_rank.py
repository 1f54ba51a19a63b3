"""Low-rank changes of matrices (LoRA, Hu et al., arXiv 2106.09685), with the definition of their arithmetic in numpy.

    out = round(x + fp32(fp32(scale) * (left @ right)))

Each element of left @ right is a chain of fused multiply-adds in fp32, s = fp32(s + left[i, k] * right[k, j]), which starts
with k = 0 and s = 0. More than MOST_TERMS ranks are divided into chains of `chain_terms(rank)`; the chains' sums are added in
fp32, first chain first. The change is added to x in fp32 (F64: in fp64) and rounded once. IEEE 754 defines each of these
steps, so every machine gives the same bits.

The libraries behind torch, which PEFT's `merge_and_unload` calls, add in this order too: `(B @ A) * scale`, then the sum. A
matrix product from such a library would depend on the machine and on its number of threads.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.kernels import native
from lswap_core.kernels.backend import BackendUnavailable
from lswap_core.kernels.contract import cast

MOST_TERMS = 192
"""The most terms in one chain. torch 2.13.0 with MKL 2024.2 on an AMD EPYC with AVX2 adds in the same order: its fp32 matrix
products had these bits at every rank tried from 1 to 768, with one thread and with two, except for outputs with fewer than 12
rows or columns. On an Intel Xeon with AVX-512, MKL divides ranks above 192 differently."""
_TILE_ELEMENTS = 32 * 1024
"""Elements that numpy processes at once, in fp64: 256 KiB, so that a sum and a product stay in an L2 cache of 512 KiB."""
_SAFE = 2.0**-132
"""Where no product is nearer to zero than this, no sum that fp64 rounds is subnormal in fp32."""

Matrix = NDArray[np.float32]


class ChangeOf(Protocol):
    """Computes elements of `scale * (left @ right)`, from `first` on, in row-major order. See the module for the rounding."""

    def __call__(self, left: Matrix, right: Matrix, scale: float, *, first: int, count: int) -> Matrix: ...


def add_low_rank(
    x: memoryview, left: Matrix, right: Matrix, scale: float, *, first: int, dtype: DType, out: memoryview, to: DType
) -> None:
    """Add a low-rank change: out = round(x + scale * (left @ right)), for the elements from `first` on in row-major order.

    left: (rows, rank); right: (rank, columns). x: elements of `dtype`; out: equally many elements of `to`. See the module for
    the rounding.
    """
    wide = DTYPES["F64" if dtype.name == "F64" else "F32"]
    count = len(x) * 8 // dtype.bits
    changed: NDArray[Any] = np.empty(count, np.float64 if wide.name == "F64" else np.float32)
    cast(x, dtype=dtype, out=changed, to=wide)
    with np.errstate(all="ignore"):
        changed += _best()(left, right, scale, first=first, count=count)
    cast(changed, dtype=wide, out=out, to=to)


def chain_terms(rank: int) -> int:
    """Number of ranks in one chain of additions; the last chain may have fewer."""
    return rank if rank <= MOST_TERMS else min(MOST_TERMS, rank // 2)


def change_of(left: Matrix, right: Matrix, scale: float, *, first: int, count: int) -> Matrix:
    """The definition in numpy. See `ChangeOf`."""
    columns = right.shape[1]
    change = np.empty(count, np.float32)
    begin = 0
    with np.errstate(all="ignore"):
        while begin < count:
            row, column = divmod(first + begin, columns)
            if column or columns > min(_TILE_ELEMENTS, count - begin):  # the rest of a row, or a section of it
                rows, part = slice(row, row + 1), slice(column, min(columns, column + min(_TILE_ELEMENTS, count - begin)))
            else:
                rows, part = slice(row, row + min(_TILE_ELEMENTS, count - begin) // columns), slice(0, columns)
            tile = _tile(left[rows], right[:, part]).reshape(-1)
            np.multiply(tile, np.float32(scale), out=change[begin : begin + tile.size])
            begin += tile.size
    return change


def _tile(left: Matrix, right: Matrix) -> Matrix:
    rank, terms = right.shape[0], chain_terms(right.shape[0])
    sums = [_chain(left[:, k : k + terms], right[k : k + terms]) for k in range(0, rank, terms)]
    total = sums[0]
    for following in sums[1:]:
        total += following
    return total


def _chain(left: Matrix, right: Matrix) -> Matrix:
    """One chain of fused multiply-adds, emulated in fp64.

    A product is exact in fp64, but the sum is rounded twice, to fp64 and then to fp32. The result differs from one rounding
    where the fp64 sum is inexact and halfway between two fp32 values, or where fp32 is subnormal and its halves differ. There
    the fp64 sum is rounded to odd instead (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008).
    """
    a, b = left.astype(np.float64), right.astype(np.float64)
    subnormal = _least(a) * _least(b) < _SAFE
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    before, product, exact = (np.empty(total.shape) for _ in range(3))
    halves = np.empty(total.shape, np.int64)
    for k in range(a.shape[1]):
        before[:] = total
        np.multiply(a[:, k, None], b[k], out=product)
        np.add(before, product, out=exact)
        np.bitwise_and(exact.view(np.int64), 0x1FFF_FFFF, out=halves)
        if subnormal or (halves == 0x1000_0000).any():
            _round_to_odd(exact, before, product)
        total[:] = exact
    return total


def _least(values: NDArray[np.float64]) -> float:
    return float(np.abs(values).min(where=values != 0, initial=np.inf))


def _round_to_odd(total: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Change `total` = x + y, rounded to nearest, to round-to-odd: an inexact, even total moves to its neighbour beyond x +
    y.
    """
    of_y = total - x
    lost = (x - (total - of_y)) + (y - of_y)  # exact (Knuth's TwoSum)
    bits: Any = total.view(np.int64)
    even = (bits & 1 == 0) & (lost != 0) & np.isfinite(lost)
    bits += np.where(even, np.where((lost > 0) == (total > 0), 1, -1), 0)


@cache
def _best() -> ChangeOf:
    try:
        return native.load().change_of
    except BackendUnavailable:
        return change_of
