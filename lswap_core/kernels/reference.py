"""The definition of the arithmetic, in numpy. Other backends must give the same bytes.

Blend: with w1 = fp32(weight) and w0 = fp32(1 - w1), out = round(fp32(w0 * x) + fp32(w1 * y)). Both products and their sum are
rounded to fp32 one by one (no fused multiply-add), then once to the dtype, to nearest, ties to even. F64 does the same in
fp64. Where x and y have equal bits, out has those bits; any other NaN is the canonical one. Overflow gives infinity, or NaN
in F8_E4M3, which has no infinity.

Statistics: blocks of 1,024 elements, the last one padded with zeros. In a block element i belongs to lane i mod 16. Each lane
adds up its 64 terms in order, in the compute type. A block's sum is its lanes added in order in fp64, and the tensor's is its
blocks added in order in fp64. Pairs in which either is not finite are counted and add nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import Backend, Bytes
from lswap_core.kernels.difference import BLOCK_ELEMENTS, DifferenceStats

Bits = NDArray[Any]
Floats = NDArray[Any]
"""`Bits` are unsigned integers as wide as an element; `Floats` are fp32, or fp64 for F64."""
_LANES = 16
CANONICAL_NAN = {
    "F64": 0x7FF8_0000_0000_0000, "F32": 0x7FC0_0000, "F16": 0x7E00, "BF16": 0x7FC0, "F8_E4M3": 0x7F, "F8_E5M2": 0x7F,
}  # fmt: skip


def load() -> Backend:
    """Return the backend, which works on every machine."""
    return sys.modules[__name__]


def blend_stats(x: Bytes, y: Bytes, weight: float, dtype: DType, out: Bytes, before: DifferenceStats) -> DifferenceStats:
    """See `lswap_core.kernels.blend_stats`; arguments are checked there."""
    with np.errstate(all="ignore"):
        x_bits, y_bits = _bits(x, dtype), _bits(y, dtype)
        x_values, y_values = decode(x_bits, dtype), decode(y_bits, dtype)
        compute = x_values.dtype.type
        w1 = compute(weight)
        mixed = (compute(1) - w1) * x_values + w1 * y_values
        equal = x_bits == y_bits
        _bits(out, dtype)[:] = np.where(equal, x_bits, encode(mixed, dtype))
        return _add_statistics(before, x_values, y_values, int(np.count_nonzero(~equal)))


def stats(x: Bytes, y: Bytes, dtype: DType, before: DifferenceStats) -> DifferenceStats:
    """See `lswap_core.kernels.stats`; arguments are checked there."""
    with np.errstate(all="ignore"):
        x_bits, y_bits = _bits(x, dtype), _bits(y, dtype)
        differing = int(np.count_nonzero(x_bits != y_bits))
        return _add_statistics(before, decode(x_bits, dtype), decode(y_bits, dtype), differing)


def blend_many(inputs: Sequence[Bytes], weights: Sequence[float], dtype: DType, out: Bytes) -> None:
    """See `lswap_core.kernels.blend_many`; arguments are checked there."""
    with np.errstate(all="ignore"):
        bits = [_bits(data, dtype) for data in inputs]
        values = [decode(side, dtype) for side in bits]
        compute = values[0].dtype.type
        mixed = compute(weights[0]) * values[0]
        for weight, side in zip(weights[1:], values[1:], strict=True):
            mixed = mixed + compute(weight) * side
        equal = np.logical_and.reduce([side == bits[0] for side in bits])
        _bits(out, dtype)[:] = np.where(equal, bits[0], encode(mixed, dtype))


def cast(x: Bytes, source: DType, out: Bytes, target: DType) -> None:
    """See `lswap_core.kernels.cast`; arguments are checked there."""
    with np.errstate(all="ignore"):
        _bits(out, target)[:] = encode(decode(_bits(x, source), source), target)


def decode(bits: Bits, dtype: DType) -> Floats:
    """Elements as fp32 (F64 as fp64), exactly."""
    if dtype.name == "F64":
        return bits.view(np.float64)
    if dtype.name == "F32":
        return bits.view(np.float32)
    if dtype.name == "F16":
        return bits.view(np.float16).astype(np.float32)
    if dtype.name == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    values: Floats = _F8_VALUES[dtype.name][bits]
    return values


def encode(values: Floats, dtype: DType) -> Bits:
    """Round fp32 or fp64 values to elements, to nearest, ties to even. Every NaN becomes the canonical NaN."""
    nan = np.isnan(values)
    bits: Bits
    if dtype.name == "F64":
        bits = values.astype(np.float64).view(np.uint64)
    elif dtype.name == "F32":
        bits = values.astype(np.float32).view(np.uint32)
    elif dtype.name == "F16":
        bits = values.astype(np.float16).view(np.uint16)
    elif dtype.name == "BF16":
        wide = _to_odd_float32(values).view(np.uint32)
        bits = ((wide + (0x7FFF + ((wide >> 16) & 1))) >> 16).astype(np.uint16)
    else:
        bits = _encode_f8(_to_odd_float32(values), dtype.name)
    return np.where(nan, bits.dtype.type(CANONICAL_NAN[dtype.name]), bits)


def _bits(raw: Bytes, dtype: DType) -> Bits:
    return raw.view(f"<u{dtype.bits // 8}")


def _f8_values(exponent_bits: int, mantissa_bits: int, *, infinities: bool) -> NDArray[np.float32]:
    """The values of the 256 bit patterns (Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433)."""
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values = np.ldexp(fraction, np.maximum(exponent, 1) - bias).astype(np.float32)
    top = exponent == (1 << exponent_bits) - 1
    if infinities:
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    else:
        values[127] = np.nan
    return np.concatenate([values, -values])


_F8_VALUES = {
    "F8_E4M3": _f8_values(4, 3, infinities=False),
    "F8_E5M2": _f8_values(5, 2, infinities=True),
}
_F8_FINITE = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
"""Number of finite patterns from 0 on. The next pattern is the result of overflow (NaN or infinity)."""


def _encode_f8(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Find the nearest pattern by the midpoints between neighbouring values. A tie goes to the even pattern."""
    finite = _F8_VALUES[name][: _F8_FINITE[name]].astype(np.float64)
    beyond = 2 * finite[-1] - finite[-2]
    midpoints = (finite + np.append(finite[1:], beyond)) / 2
    magnitude = np.abs(values).astype(np.float64)
    below = np.searchsorted(midpoints, magnitude, side="left")
    above = np.searchsorted(midpoints, magnitude, side="right")
    code = np.where(below % 2 == 0, below, above)
    signed = np.signbit(values) & (code != CANONICAL_NAN[name])  # F8_E4M3 overflows to NaN, which has one form
    return (code + np.where(signed, 0x80, 0)).astype(np.uint8)


def _to_odd_float32(values: Floats) -> Floats:
    """Round fp64 to fp32 and set the last bit where the result is inexact (round to odd).

    A second rounding, to a type with at least two bits less, then gives the same result as one rounding (Boldo and Melquiond,
    Emulation of FMA and Correctly Rounded Sums).
    """
    if values.dtype == np.float32:
        return values
    near = values.astype(np.float32)
    away = np.abs(near.astype(np.float64)) > np.abs(values)
    bits: Bits = near.view(np.uint32) - away  # towards zero: magnitudes are ordered as their bit patterns
    odd: Floats = (bits | (near != values)).view(np.float32)
    return odd


def _add_statistics(before: DifferenceStats, x: Floats, y: Floats, differing: int) -> DifferenceStats:
    finite = np.isfinite(x) & np.isfinite(y)
    shape = (-(-x.size // BLOCK_ELEMENTS), BLOCK_ELEMENTS // _LANES, _LANES)
    x_terms, y_terms = (_padded(np.where(finite, side, side.dtype.type(0)), shape) for side in (x, y))
    d = y_terms - x_terms
    terms = np.stack([np.abs(d), d * d, x_terms * y_terms, x_terms * x_terms, y_terms * y_terms])
    lanes = np.zeros((len(terms), shape[0], _LANES), x.dtype)
    for row in range(shape[1]):
        lanes += terms[:, :, row]
    blocks = np.zeros((len(terms), shape[0]))
    for lane in range(_LANES):
        blocks += lanes[:, :, lane]
    sums = (before.sum_abs, before.sum_squares, before.dot, before.x_squares, before.y_squares)
    # `accumulate` adds one element after the other; `sum` does not
    totals = [float(np.add.accumulate(np.append(start, row))[-1]) for start, row in zip(sums, blocks, strict=True)]
    return DifferenceStats(
        count=before.count + x.size,
        differing=before.differing + differing,
        sum_abs=totals[0],
        sum_squares=totals[1],
        max_abs=max(before.max_abs, float(terms[0].max(initial=0))),
        dot=totals[2],
        x_squares=totals[3],
        y_squares=totals[4],
        x_nonfinite=before.x_nonfinite + int(np.count_nonzero(~np.isfinite(x))),
        y_nonfinite=before.y_nonfinite + int(np.count_nonzero(~np.isfinite(y))),
    )


def _padded(values: Floats, shape: tuple[int, int, int]) -> Floats:
    blocks = np.zeros(shape, values.dtype)
    blocks.reshape(-1)[: values.size] = values
    return blocks
