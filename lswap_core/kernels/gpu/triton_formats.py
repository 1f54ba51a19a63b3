"""Element types in Triton: pointers to them, and conversion from and to their values.

The hardware converts only fp16. bf16 and fp8 are rounded in integer arithmetic, by the same code on a device and in Triton's
interpreter, whose own conversions truncate.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def inlined(function: Any) -> Any:
    """Decorate a function that kernels call. The interpreter runs it as plain Python: a call of a Triton function costs it as
    much as ten operations.
    """
    return function if triton.knobs.runtime.interpret else triton.jit(function)


@inlined
def operand(word: tl.tensor, begin: tl.tensor, FORMAT: tl.constexpr, ALIGNED: tl.constexpr) -> tl.tensor:
    """A pointer to element `begin` of the operand. `word` points at the operand's address."""
    address = tl.load(word)
    if FORMAT == "F64":
        pointer = address.to(tl.pointer_type(tl.uint64))
    elif FORMAT == "F32":
        pointer = address.to(tl.pointer_type(tl.uint32))
    elif FORMAT == "F16" or FORMAT == "BF16":
        pointer = address.to(tl.pointer_type(tl.uint16))
    else:
        pointer = address.to(tl.pointer_type(tl.uint8))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + begin


@inlined
def decode(bits: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """Elements as fp32 (F64 as fp64), exactly."""
    if FORMAT == "F64":
        return bits.to(tl.float64, bitcast=True)
    elif FORMAT == "F32":
        return bits.to(tl.float32, bitcast=True)
    elif FORMAT == "BF16":
        return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif FORMAT == "F16":
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    elif FORMAT == "F8_E5M2":  # the upper half of an fp16
        return (bits.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    else:  # an fp16 with one more bit of exponent and a bias 8 higher, subnormals included
        magnitude = bits.to(tl.uint16) & 0x7F
        half = ((bits.to(tl.uint16) & 0x80) << 8) | (magnitude << 7)
        return tl.where(magnitude == 0x7F, float("nan"), half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0)


@inlined
def encode(values: tl.tensor, FORMAT: tl.constexpr, NANS: tl.constexpr) -> tl.tensor:
    """Round fp32 or fp64 values to elements, to nearest, ties to even. NANS: some values may be NaN, and become the canonical
    NaN.
    """
    if FORMAT == "F64":
        bits = values.to(tl.float64).to(tl.uint64, bitcast=True)
        nan = 0x7FF8_0000_0000_0000
    elif FORMAT == "F32":
        bits = values.to(tl.float32).to(tl.uint32, bitcast=True)
        nan = 0x7FC0_0000
    elif FORMAT == "BF16":
        wide = _to_odd_fp32(values)
        bits = ((wide + (0x7FFF + ((wide >> 16) & 1))) >> 16).to(tl.uint16)
        nan = 0x7FC0
    elif FORMAT == "F16":
        bits = _to_odd_fp32(values).to(tl.float32, bitcast=True).to(tl.float16).to(tl.uint16, bitcast=True)
        nan = 0x7E00
    elif FORMAT == "F8_E5M2":
        bits = _encode_f8(_to_odd_fp32(values), 2, 15, 0x7C)
        nan = 0x7F
    else:
        bits = _encode_f8(_to_odd_fp32(values), 3, 7, 0x7F)
        nan = 0x7F
    if NANS:
        bits = tl.where(values != values, tl.full(bits.shape, nan, bits.dtype), bits)
    return bits


@inlined
def _encode_f8(wide: tl.tensor, MANTISSA: tl.constexpr, BIAS: tl.constexpr, OVERFLOW: tl.constexpr) -> tl.tensor:
    """Bits of fp32 values as fp8 with the given number of mantissa bits. Values that are too large become OVERFLOW."""
    SHIFT: tl.constexpr = 23 - MANTISSA
    # Added to a subnormal, this power of two leaves a sum whose last bit is worth one step of the format.
    RULER: tl.constexpr = (127 + 1 - BIAS + SHIFT) << 23
    SMALLEST_NORMAL: tl.constexpr = (127 + 1 - BIAS) << 23
    magnitude = wide & 0x7FFFFFFF
    ruler = tl.full(wide.shape, RULER, tl.uint32)
    subnormal = (magnitude.to(tl.float32, bitcast=True) + ruler.to(tl.float32, bitcast=True)).to(tl.uint32, bitcast=True) - RULER
    rounded = (magnitude + ((1 << (SHIFT - 1)) - 1 + ((magnitude >> SHIFT) & 1))) >> SHIFT
    normal = rounded - ((127 - BIAS) << MANTISSA)
    code = tl.where(magnitude < SMALLEST_NORMAL, subnormal, tl.minimum(normal, OVERFLOW))
    sign = (wide >> 24) & 0x80
    if OVERFLOW == 0x7F:  # NaN has one form
        sign = tl.where(code == 0x7F, 0, sign)
    return (code | sign).to(tl.uint8)


@inlined
def _to_odd_fp32(values: tl.tensor) -> tl.tensor:
    """Bits of fp32 values. fp64 is rounded to odd, so that a second rounding gives the same result as one rounding."""
    if values.dtype == tl.float32:
        return values.to(tl.uint32, bitcast=True)
    else:
        near = values.to(tl.float32)
        away = tl.abs(near.to(tl.float64)) > tl.abs(values)
        inexact = near.to(tl.float64) != values
        return (near.to(tl.uint32, bitcast=True) - away.to(tl.uint32)) | inexact.to(tl.uint32)
