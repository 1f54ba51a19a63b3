"""Element-wise kernels in Triton: weighted sums of many tensors, and casts. They take no statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from lswap_core.kernels.gpu.triton_formats import decode, encode, inlined, operand


@triton.jit
def blend_many_kernel(
    addresses: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    elements: tl.tensor,
    inputs: tl.tensor,
    FORMAT: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    """One chunk of a weighted sum. addresses: int64 (inputs). weights: fp64 (inputs), rounded to the compute
    type.

    out: int64 (1), the address. ALIGNED: every address is a multiple of 16.
    """
    COMPUTE: tl.constexpr = tl.float64 if FORMAT == "F64" else tl.float32
    at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    first = _elements(addresses, at, elements, FORMAT, CHUNK, ALIGNED)
    mixed = tl.load(weights).to(COMPUTE) * decode(first, FORMAT)
    equal = first == first
    for number in range(1, inputs):
        bits = _elements(addresses + number, at, elements, FORMAT, CHUNK, ALIGNED)
        mixed += tl.load(weights + number).to(COMPUTE) * decode(bits, FORMAT)
        equal = equal & (bits == first)
    mixed = tl.where(equal, first, encode(mixed, FORMAT, True))
    _put(out, at, mixed, elements, FORMAT, CHUNK, ALIGNED)


@triton.jit
def cast_kernel(
    x: tl.tensor,
    out: tl.tensor,
    elements: tl.tensor,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    """One chunk of a cast. x, out: int64 (1), the addresses."""
    at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    values = decode(_elements(x, at, elements, SOURCE, CHUNK, ALIGNED), SOURCE)
    _put(out, at, encode(values, TARGET, True), elements, TARGET, CHUNK, ALIGNED)


@inlined
def _elements(
    word: tl.tensor, at: tl.tensor, elements: tl.tensor, FORMAT: tl.constexpr, CHUNK: tl.constexpr, ALIGNED: tl.constexpr
) -> tl.tensor:
    pointer = operand(word, 0, FORMAT, ALIGNED)
    if ALIGNED and (tl.program_id(0).to(tl.int64) + 1) * CHUNK <= elements:
        bits = tl.load(pointer + at, eviction_policy="evict_first")
    else:
        bits = tl.load(pointer + at, mask=at < elements, other=0)
    return bits


@inlined
def _put(
    word: tl.tensor,
    at: tl.tensor,
    bits: tl.tensor,
    elements: tl.tensor,
    FORMAT: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    pointer = operand(word, 0, FORMAT, ALIGNED)
    if ALIGNED and (tl.program_id(0).to(tl.int64) + 1) * CHUNK <= elements:
        tl.store(pointer + at, bits, eviction_policy="evict_first")
    else:
        tl.store(pointer + at, bits, mask=at < elements)
