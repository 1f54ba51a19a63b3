"""Inputs that tell a right kernel from a wrong one. Seeded, and made without the package under test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.kernels.conformance.backends import Speed

NUMPY = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
FLOATS = tuple(NUMPY)
WEIGHTS = (0.5, 0.1, 1 / 3, 0.999, 1e-30, 0.0, 1.0)
SIZES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 255, 1000, 1023, 1024, 1025, 1040, 2047, 2048, 3001, 5 * 1024 + 8, 20_011)
SLOW_SIZES = (0, 1, 1025)

Bits = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Case:
    """Two operands as bytes, and y's weight. `name` tells a failure apart from its neighbours."""

    name: str
    dtype: str
    x: bytes
    y: bytes
    weight: float


def word(dtype: str) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"<u{NUMPY[dtype].itemsize}")


def random_bits(dtype: str, count: int, seed: int) -> Bits:
    """Any patterns: NaN payloads, infinities and subnormals among them."""
    rng = np.random.default_rng([seed, count, FLOATS.index(dtype)])
    return rng.integers(0, 256, count * NUMPY[dtype].itemsize, np.uint8).view(word(dtype))


def ordinary(dtype: str, count: int, seed: int) -> Bits:
    """What weights look like: every value is finite."""
    rng = np.random.default_rng([seed, count, FLOATS.index(dtype)])
    return (rng.standard_normal(count) * 0.05).astype(NUMPY[dtype]).view(word(dtype))


def spread(dtype: str, count: int, seed: int) -> Bits:
    """Values of every magnitude that the type has, down into the subnormals: finite, but their squares overflow."""
    bits = random_bits(dtype, count, seed)
    return np.where(finite(dtype, bits), bits, word(dtype).type(1)).astype(word(dtype))


def finite(dtype: str, bits: Bits) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.isfinite(bits.view(NUMPY[dtype]).astype(np.float64))


def half_equal(x: Bits, y: Bits) -> Bits:
    """y with every other element of x."""
    mixed = y.copy()
    mixed[::2] = x[::2]
    return mixed


def special(dtype: str) -> list[int]:
    """Patterns at the edges: zeros, subnormals, one, largest, infinity, quiet and signalling NaN, both signs."""
    info = ml_dtypes.finfo(NUMPY[dtype])
    kind = NUMPY[dtype].type
    values = [kind(0), info.smallest_subnormal, kind(info.tiny), kind(1), kind(1) + info.eps, kind(1.5), info.max]
    patterns = [int(np.asarray(v, NUMPY[dtype]).view(word(dtype))) for v in values]
    patterns.append(patterns[2] - 1)  # largest subnormal
    patterns += range(patterns[6] + 1, patterns[6] + 4)  # infinity and NaNs next to it, or the NaN of F8_E4M3 and -0
    top = 1 << (word(dtype).itemsize * 8 - 1)
    patterns.append(top - 1)  # a NaN with every bit set
    return sorted({p & (2 * top - 1) for q in patterns for p in (q, q | top)})


def blends(dtype: str, speed: Speed) -> Iterator[Case]:
    """Everything for one dtype except sizes and alignment."""
    if word(dtype).itemsize == 2:
        yield from _every_pattern(dtype, speed)
    if word(dtype).itemsize == 1:
        yield from _every_pair(dtype, speed)
    count = 3 * 1024 + 100 if speed == "slow" else 20_011
    edges = np.array(special(dtype), word(dtype))
    first, second = (side.ravel() for side in np.meshgrid(edges, edges))
    for weight in WEIGHTS[2:3] if speed == "slow" else WEIGHTS:
        yield _case("edges against edges", dtype, first, second, weight)
    for number, weight in enumerate((0.7,) if speed == "slow" else (0.25, 0.7, *WEIGHTS)):
        for make in (random_bits, ordinary, spread):
            x, y = make(dtype, count, 2 * number), make(dtype, count, 2 * number + 1)
            yield _case(f"{make.__name__} {number}, half equal", dtype, x, half_equal(x, y), weight)
            if speed == "slow":
                continue
            yield _case(f"{make.__name__} {number}", dtype, x, y, weight)
            yield _case(f"{make.__name__} {number}, equal", dtype, x, x, weight)
    yield from _lonely_nonfinite(dtype, speed)


def _every_pattern(dtype: str, speed: Speed) -> Iterator[Case]:
    every = np.arange(1 << 16, dtype=np.uint16)
    partners = special(dtype) + [int(b) for b in random_bits(dtype, 8, 99)]
    if speed == "slow":
        partners = partners[1::18]
    for number, partner in enumerate(partners):
        for weight in (WEIGHTS[number % len(WEIGHTS)],) if speed == "slow" else WEIGHTS:
            yield _case(f"every pattern against {partner:#06x}", dtype, every, np.full_like(every, partner), weight)
    for weight in (1 / 3,) if speed == "slow" else WEIGHTS:
        yield _case("every pattern against the next", dtype, every, every + np.uint16(1), weight)
        yield _case("every pattern against a random one", dtype, every, random_bits(dtype, 1 << 16, 98), weight)
        if speed == "fast":
            yield _case("every pattern against itself", dtype, every, every, weight)
            yield _case("every pattern against its opposite", dtype, every, every ^ np.uint16(0x8000), weight)


def _every_pair(dtype: str, speed: Speed) -> Iterator[Case]:
    first, second = (side.ravel() for side in np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8)))
    for weight in (1 / 3,) if speed == "slow" else WEIGHTS:
        yield _case("every pair", dtype, first, second, weight)


def _lonely_nonfinite(dtype: str, speed: Speed) -> Iterator[Case]:
    """One element that is not finite, in one operand: its block alone is special, and in it only that pair."""
    values = np.arange(1 << 16 if word(dtype).itemsize > 1 else 256, dtype=word(dtype))
    if word(dtype).itemsize > 2:
        values = np.array(special(dtype), word(dtype))
    bad = values[~finite(dtype, values)]
    picked = [int(b) for b in (bad[0], bad[-1])][: 1 if speed == "slow" else 2]
    for place in (1500,) if speed == "slow" else (0, 15, 16, 1023, 1024, 2047, 3000, 3010):
        for side in ("x", "y"):
            for pattern in picked:
                x, y = ordinary(dtype, 3011, 1), ordinary(dtype, 3011, 2)
                (x if side == "x" else y)[place] = pattern
                yield _case(f"{pattern:#x} at {place} of {side}", dtype, x, y, 0.3)


def cast_inputs(source: str, target: str, speed: Speed) -> Iterator[tuple[str, bytes]]:
    """Patterns to round from `source` to `target`: ties and their neighbours among them."""
    width = word(source).itemsize
    if width <= 2:
        yield "every pattern", np.arange(1 << (8 * width), dtype=word(source)).tobytes()
    count = 2000 if speed == "slow" else 30_011
    for make in (random_bits, ordinary, spread):
        yield make.__name__, make(source, count, 7).tobytes()
    rng = np.random.default_rng(8)
    with np.errstate(all="ignore"):
        wide = rng.standard_normal(count) * 2.0 ** rng.integers(-160, 140, count)
        yield "every magnitude", wide.astype(NUMPY[source]).tobytes()
        yield "ties", _ties(target, count).astype(NUMPY[source]).tobytes()


def _ties(target: str, count: int) -> NDArray[np.float64]:
    """Midpoints between neighbours in `target`, exact in fp64 where it has less precision, and what lies beside them."""
    bits = np.sort(spread(target, count // 6, 9) & word(target).type((1 << (8 * word(target).itemsize - 1)) - 1))
    low, high = (b.view(NUMPY[target]).astype(np.float64) for b in (bits, bits + word(target).type(1)))
    largest = float(ml_dtypes.finfo(NUMPY[target]).max)
    high = np.where(np.isfinite(high), high, 2 * largest - low)
    middle = low / 2 + high / 2
    beside = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    return np.concatenate([beside, -beside])


def _case(name: str, dtype: str, x: Bits, y: Bits, weight: float) -> Case:
    return Case(f"{name}, weight {weight:.3g}", dtype, x.tobytes(), y.tobytes(), weight)
