"""A batch of tensors as a GPU kernel takes it: one launch over a table of tiles, in which each tile names its tensor.

The tables are numpy arrays here; the launcher copies them to the device. Triton and CUDA C++ read the same tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.difference import BLOCK_ELEMENTS, DifferenceStats

STATISTICS = tuple(f.name for f in fields(DifferenceStats))
"""Columns of a table of statistics in fp64, with one row per tensor. Counts are exact up to 2^53."""
SUMS = 5
"""Sums of each block: |d|, d^2, x y, x^2, y^2, in fp64. The table has a row per sum and a column per block of the batch."""
TALLIES = 4 + 3 * SUMS
"""Tallies of each tile: differing, max |d|, non-finite x, non-finite y; then for each of the sums, over the tile's blocks:
their sum, the sum of their magnitudes, and the exponent of the lowest bit set in any of them. All in fp64. The table has a
row per tally and a column per tile."""
RECORD = 8
"""64-bit words in a tensor's record: addresses of x, y and out, number of elements, first tile, first block, and w0 and w1 as
fp64 bits, rounded to the compute type."""


@dataclass(frozen=True, slots=True)
class Operands:
    """One tensor: addresses on the device, each a multiple of the element's size. `out` is 0 where only statistics are
    wanted.
    """

    x: int
    y: int
    out: int
    elements: int
    weight: float


@dataclass(frozen=True, slots=True)
class Batch:
    """The tables of one launch. records: int64 (tensors, RECORD). tiles: int32 (tiles), the index of each tile's tensor."""

    records: NDArray[np.int64]
    tiles: NDArray[np.int32]
    blocks: int


def lay_out_batch(tensors: Sequence[Operands], dtype: DType, *, tile_blocks: int) -> Batch:
    """Cut the tensors into tiles of `tile_blocks` blocks of 1,024 elements. A tile never spans two tensors."""
    elements = np.array([tensor.elements for tensor in tensors], np.int64)
    blocks = -(-elements // BLOCK_ELEMENTS)
    tiles = -(-blocks // tile_blocks)
    records = np.empty((len(tensors), RECORD), np.int64)
    records[:, :3] = np.array([(t.x, t.y, t.out) for t in tensors], np.uint64).reshape(-1, 3).view(np.int64)
    records[:, 3] = elements
    records[:, 4] = np.cumsum(tiles) - tiles
    records[:, 5] = np.cumsum(blocks) - blocks
    records[:, 6:] = np.array([rounded_weights(tensor.weight, dtype) for tensor in tensors]).reshape(-1, 2).view(np.int64)
    return Batch(records, np.repeat(np.arange(len(tensors), dtype=np.int32), tiles), int(blocks.sum()))


def rounded_weights(weight: float, dtype: DType) -> tuple[float, float]:
    """Return the weights w0 and w1 as the reference computes them, in the compute type."""
    compute = np.float64 if dtype.name == "F64" else np.float32
    w1 = compute(weight)
    return float(compute(1) - w1), float(w1)


def to_row(statistics: DifferenceStats) -> list[float]:
    """Return statistics as a row of the statistics table."""
    return [float(value) for value in astuple(statistics)]


def from_row(row: Sequence[float]) -> DifferenceStats:
    """The inverse of `to_row`."""
    exact = {"count", "differing", "x_nonfinite", "y_nonfinite"}
    return DifferenceStats(**{name: int(v) if name in exact else v for name, v in zip(STATISTICS, row, strict=True)})  # type: ignore[arg-type]
