"""Task vectors and TIES, in numpy. The order of operations is fixed, so every machine gives the same bits.

The caller, the evaluator, has checked the buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.reference import Bits, Floats, decode, encode

_DIGIT_BITS = 16


def add_task_vectors(
    base: memoryview, experts: Sequence[memoryview], scales: Sequence[float], *, dtype: DType, out: memoryview
) -> None:
    """Add task vectors: out = round(base + sum of scales[k] * (experts[k] - base)).

    Every operation is rounded to fp32 (F64: fp64), first expert first. Where all experts have base's bits, out has them.
    Every buffer holds equally many elements of `dtype`.
    """
    with np.errstate(all="ignore"):
        base_bits, sides = _bits(base, dtype), [_bits(expert, dtype) for expert in experts]
        start = decode(base_bits, dtype)
        mixed = start
        for side, scale in zip(sides, scales, strict=True):
            mixed = mixed + start.dtype.type(scale) * (decode(side, dtype) - start)
        _store(out, mixed, base_bits, sides, dtype)


def merge_ties(
    base: memoryview,
    experts: Sequence[memoryview],
    thresholds: Sequence[int],
    scales: Sequence[float],
    strength: float,
    *,
    dtype: DType,
    out: memoryview,
) -> None:
    """Merge with TIES (Yadav et al., arXiv 2306.01708): out = round(base + strength * mean of scales[k] * change[k]).

    change[k] = experts[k] - base. A change is kept where its magnitude, as bits, is at least thresholds[k]. Of these, the
    mean takes the ones whose sign is that of the kept changes' sum. Rounding and equal bits as for `add_task_vectors`.
    """
    with np.errstate(all="ignore"):
        base_bits, sides = _bits(base, dtype), [_bits(expert, dtype) for expert in experts]
        start = decode(base_bits, dtype)
        changes = [decode(side, dtype) - start for side in sides]
        kept = [np.where(_magnitude(c) >= least, c, c.dtype.type(0)) for c, least in zip(changes, thresholds, strict=True)]
        mass = np.zeros_like(start)
        for change in kept:
            mass = mass + change
        elected = np.where(mass >= 0, start.dtype.type(1), start.dtype.type(-1))
        total, counted = np.zeros_like(start), np.zeros_like(start)
        for change, scale in zip(kept, scales, strict=True):
            agrees = np.sign(change) == elected
            total, counted = total + np.where(agrees, start.dtype.type(scale) * change, start.dtype.type(0)), counted + agrees
        mixed = start + start.dtype.type(strength) * (total / np.maximum(counted, 1))
        _store(out, mixed, base_bits, sides, dtype)


class Largest:
    """Finds the threshold that the `keep` largest changes of a tensor reach: a magnitude, as bits. Equal magnitudes all
    count.

    Call `see` for every element once in each of `passes` rounds. Each round finds some digits of the threshold, highest
    first.
    """

    def __init__(self, keep: int, dtype: DType) -> None:
        self._width = 64 if dtype.name == "F64" else 32
        self._dtype = dtype
        self._left = keep
        self._found = 0
        self._shift = self._width - _DIGIT_BITS
        self._counts = np.zeros(1 << _DIGIT_BITS, np.int64)
        self.passes = self._width // _DIGIT_BITS if keep > 0 else 0

    def see(self, base: memoryview, expert: memoryview) -> None:
        """Count the changes of one chunk."""
        with np.errstate(all="ignore"):
            change = decode(_bits(expert, self._dtype), self._dtype) - decode(_bits(base, self._dtype), self._dtype)
            magnitude = _magnitude(change)
        above = self._shift + _DIGIT_BITS
        if above < self._width:
            magnitude = magnitude[(magnitude >> magnitude.dtype.type(above)) == self._found >> above]
        digits = (magnitude >> magnitude.dtype.type(self._shift)) & magnitude.dtype.type((1 << _DIGIT_BITS) - 1)
        self._counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT_BITS)

    def end_round(self) -> None:
        """End the round. The caller has passed every chunk of the tensor to `see`."""
        from_above = np.cumsum(self._counts[::-1])
        reaching = int(np.searchsorted(from_above, self._left))
        digit = min(len(self._counts) - 1, reaching)
        self._left -= int(from_above[digit - 1]) if digit else 0
        self._found |= (len(self._counts) - 1 - digit) << self._shift
        self._shift -= _DIGIT_BITS
        self._counts[:] = 0

    @property
    def threshold(self) -> int:
        """The smallest magnitude that counts; larger than every magnitude where `keep` is 0."""
        return self._found if self.passes else 1 << self._width


def to_fp32(data: memoryview, dtype: DType) -> NDArray[np.float32]:
    """Return elements as fp32. F64 is rounded."""
    return decode(_bits(data, dtype), dtype).astype(np.float32)


def _store(out: memoryview, mixed: Floats, base: Bits, sides: Sequence[Bits], dtype: DType) -> None:
    unchanged = np.logical_and.reduce([side == base for side in sides])
    _bits(out, dtype)[:] = np.where(unchanged, base, encode(mixed, dtype))


def _magnitude(change: Floats) -> Bits:
    """Magnitudes of changes as bits, which have the same order as the magnitudes."""
    bits: Bits = np.abs(change).view(np.uint64 if change.dtype == np.float64 else np.uint32)
    return bits


def _bits(data: memoryview, dtype: DType) -> Bits:
    return np.frombuffer(data, f"<u{dtype.bits // 8}")
