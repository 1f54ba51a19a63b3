"""Sums how much the rows and the columns of a matrix changed, as its elements pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lswap_core.analysis.changes import Profile, Side
from lswap_core.checkpoint.dtypes import DType
from lswap_core.io.ports import Kernels


class ProfileSums:
    """Mean changes of the rows and columns of one matrix, for several pairs of checkpoints."""

    def __init__(self, pairs: Mapping[Side, tuple[int, int]], shape: tuple[int, ...], dtype: DType, kernels: Kernels) -> None:
        """pairs: indices of the operands x and y that `add` receives."""
        self._pairs = pairs
        self._dtype = dtype
        self._kernels = kernels
        self._sums = {side: _Sums(shape) for side in pairs}

    def add(self, first: int, data: Sequence[memoryview]) -> None:
        """Add a chunk: `operands` begin with element number `first`."""
        for side, (x, y) in self._pairs.items():
            self._sums[side].add(first, _distances(data[x], data[y], self._dtype, self._kernels))

    def profiles(self) -> dict[Side, Profile]:
        """Return the profiles, once all elements were added."""
        return {side: sums.profile() for side, sums in self._sums.items()}


def _distances(x: memoryview, y: memoryview, dtype: DType, kernels: Kernels) -> NDArray[Any]:
    """|y - x| in fp32 (F64: fp64); 0 where either is not finite, as in the statistics."""
    with np.errstate(all="ignore"):
        if dtype.name == "F64":
            distances = np.abs(np.frombuffer(y, "<f8") - np.frombuffer(x, "<f8"))
        else:
            distances = np.abs(kernels.to_fp32(y, dtype) - kernels.to_fp32(x, dtype))
    return np.where(np.isfinite(distances), distances, 0)


class _Sums:
    """Sums in fp64 of the rows and columns of a matrix, whose elements come in order, in pieces."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rows, self._columns = (np.zeros(length) for length in shape)

    def add(self, first: int, values: NDArray[Any]) -> None:
        """Add elements, from number `first` on."""
        width, begin = self._columns.size, 0
        while begin < values.size:
            row, column = divmod(first + begin, width)
            rows = 1 if column else max(1, (values.size - begin) // width)
            piece = values[begin : begin + rows * width - column].astype(np.float64)
            begin += piece.size
            if piece.size < rows * width:  # part of one row
                self._rows[row] += piece.sum()
                self._columns[column : column + piece.size] += piece
            else:
                block = piece.reshape(rows, width)
                self._rows[row : row + rows] += block.sum(axis=1)
                self._columns += block.sum(axis=0)

    def profile(self) -> Profile:
        rows, columns = self._rows / max(1, self._columns.size), self._columns / max(1, self._rows.size)
        return Profile(tuple(rows.tolist()), tuple(columns.tolist()))
