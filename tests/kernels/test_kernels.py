"""The reference kernel against ml_dtypes and numpy in fp64."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lswap_core.kernels import blend_many, blend_stats, cast, stats
from lswap_core.kernels.difference import DifferenceStats
from tests import oracle
from tests.build import Tensor, tensor

FLOATS = tuple(oracle.NUMPY)
WEIGHTS = (0.5, 0.25, 0.1, 1 / 3, 0.999, 1e-30)


def pair(dtype: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([seed, count])
    x, y = tensor(dtype, (count,), rng), tensor(dtype, (count,), rng)
    half = len(x.data) // 2 // 8 * 8
    return x, Tensor(dtype, (count,), x.data[:half] + y.data[half:])  # half of the elements agree


def ordinary(dtype: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([seed, count])
    sides = (rng.standard_normal(count).astype(np.float32).astype(oracle.NUMPY[dtype]) for _ in range(2))
    x, y = (Tensor(dtype, (count,), side.tobytes()) for side in sides)
    return x, y


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_blend_equals_the_oracle_on_random_bits(dtype: str, weight: float) -> None:
    for count in (0, 1, 7, 1023, 1024, 1025, 40_000):
        x, y = pair(dtype, count, 1)
        out = bytearray(b"\xa5" * len(x.data))
        found = blend_stats(x.data, y.data, weight, dtype=dtype, out=out, backend="reference")
        assert bytes(out) == oracle.blend(x, y, weight)
        assert found.to_json() == stats(x.data, y.data, dtype=dtype, backend="reference").to_json()  # a dot product may be NaN


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_every_pair_of_fp8_patterns(dtype: str) -> None:
    first, second = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    x, y = (Tensor(dtype, (65536,), side.tobytes()) for side in (first, second))
    for weight in WEIGHTS:
        out = bytearray(65536)
        blend_stats(x.data, y.data, weight, dtype=dtype, out=out, backend="reference")
        assert bytes(out) == oracle.blend(x, y, weight)


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_cast_rounds_once(source: str, target: str) -> None:
    rng = np.random.default_rng(3)
    bits = tensor(source, (50_000,), rng)
    spread = rng.standard_normal(50_000) * 2.0 ** rng.integers(-160, 140, 50_000)
    with np.errstate(all="ignore"):
        wide = Tensor(source, (50_000,), spread.astype(oracle.NUMPY[source]).tobytes())
    for x in (bits, wide):
        expected = double_rounding_free(x, target)
        out = bytearray(len(expected))
        cast(x.data, dtype=source, out=out, to=target, backend="reference")
        assert bytes(out) == expected


def double_rounding_free(x: Tensor, target: str) -> bytes:
    """ml_dtypes may round fp64 twice, by way of fp32; there, decide by exact comparison with the neighbours."""
    near = oracle.cast(x, target)
    if x.dtype != "F64" or target in ("F64", "F32", "F16"):
        return near.data
    with np.errstate(all="ignore"):
        return nearest(x, near, target)


def nearest(x: Tensor, near: Tensor, target: str) -> bytes:
    exact = oracle.values(x)
    word = f"u{np.dtype(oracle.NUMPY[target]).itemsize}"
    bits = np.frombuffer(near.data, word).astype(np.int64)
    sign = 1 << (np.dtype(word).itemsize * 8 - 1)
    magnitude = bits & (sign - 1)
    table = np.arange(sign, dtype=word).view(oracle.NUMPY[target]).astype(np.float64)
    finite = table[: np.argmax(~np.isfinite(table))]
    best = magnitude.copy()
    for step in (-1, 1):
        other = magnitude + step
        usable = (other >= 0) & (other < len(finite)) & (magnitude < len(finite))
        safe = np.where(usable, other, 0)
        here = np.abs(np.abs(exact) - finite[np.where(magnitude < len(finite), magnitude, 0)])
        there = np.abs(np.abs(exact) - finite[safe])
        better = usable & ((there < here) | ((there == here) & (other % 2 == 0)))
        best = np.where(better, other, best)
    return ((bits & sign) | best).astype(word).tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_statistics_against_fp64(dtype: str) -> None:
    x, y = ordinary(dtype, 30_000, 4)
    found = stats(x.data, y.data, dtype=dtype, backend="reference")
    a, b = oracle.values(x), oracle.values(y)
    d = b - a
    assert found.count == 30_000
    assert found.differing == np.count_nonzero(a != b)
    for got, exact in (
        (found.sum_abs, np.abs(d).sum()),
        (found.sum_squares, (d * d).sum()),
        (found.max_abs, np.abs(d).max()),
        (found.x_squares, (a * a).sum()),
        (found.y_squares, (b * b).sum()),
        (found.mean_abs, np.abs(d).mean()),
        (found.rms, math.sqrt((d * d).mean())),
        (found.relative_norm, np.linalg.norm(d) / np.linalg.norm(a)),
    ):
        assert got == pytest.approx(exact, rel=1e-6)
    assert found.dot == pytest.approx((a * b).sum(), abs=1e-6 * math.sqrt(found.x_squares * found.y_squares))
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def test_statistics_follow_the_written_order_of_summation() -> None:
    x, y = ordinary("F32", 3000, 5)
    a, b = (np.frombuffer(t.data, np.float32) for t in (x, y))
    total = 0.0
    for start in range(0, 3000, 1024):
        lanes = [np.float32(0)] * 16
        for i, (p, q) in enumerate(zip(a[start : start + 1024], b[start : start + 1024], strict=True)):
            lanes[i % 16] = np.float32(lanes[i % 16] + np.abs(np.float32(q - p)))
        block = 0.0
        for lane in lanes:
            block += float(lane)
        total += block
    assert stats(x.data, y.data, dtype="F32", backend="reference").sum_abs == total


@pytest.mark.parametrize("dtype", FLOATS)
def test_statistics_of_chunks_continue_to_those_of_the_whole(dtype: str) -> None:
    x, y = pair(dtype, 9000, 6)
    width = len(x.data) // 9000
    whole = stats(x.data, y.data, dtype=dtype)
    so_far = DifferenceStats()
    for begin, end in ((0, 1024), (1024, 4096), (4096, 9000)):
        part = slice(begin * width, end * width)
        so_far = stats(x.data[part], y.data[part], dtype=dtype, before=so_far)
    assert so_far.to_json() == whole.to_json()


def test_pairs_that_are_not_finite_are_counted_and_left_out() -> None:
    x = np.array([1, np.nan, np.inf, 2, np.nan], np.float32)
    y = np.array([3, 1, 1, np.nan, np.nan], np.float32)
    found = stats(x.tobytes(), y.tobytes(), dtype="F32")
    assert (found.x_nonfinite, found.y_nonfinite, found.count) == (3, 2, 5)
    assert (found.sum_abs, found.sum_squares, found.max_abs, found.dot) == (2, 4, 2, 3)
    assert found.differing == 4  # the last pair has equal bits


def test_blend_many_is_the_blend_for_two_and_keeps_what_all_agree_on() -> None:
    x, y = pair("BF16", 5000, 7)
    two, many = bytearray(10_000), bytearray(10_000)
    blend_stats(x.data, y.data, 0.25, dtype="BF16", out=two)
    blend_many([x.data, y.data], [0.75, 0.25], dtype="BF16", out=many)
    assert two == many
    out = bytearray(10_000)
    blend_many([x.data, x.data, x.data], [0.3, 0.3, 0.4], dtype="BF16", out=out)
    assert bytes(out) == x.data
    blend_many([y.data], [1.0], dtype="BF16", out=out)
    assert bytes(out) == y.data


def test_blend_many_rounds_every_step() -> None:
    rng = np.random.default_rng(8)
    sides = [rng.standard_normal(2000).astype(np.float32) for _ in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    total = np.float32(0.1) * sides[0]
    for weight, side in zip(weights[1:], sides[1:], strict=True):
        total = total + np.float32(weight) * side
    out = bytearray(8000)
    blend_many([side.tobytes() for side in sides], weights, dtype="F32", out=out)
    assert bytes(out) == total.tobytes()


X, OUT = bytes(8), bytearray(8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: blend_stats(X, bytes(6), 0.5, dtype="BF16", out=OUT), "y has 6 bytes, x has 8"),
        (lambda: blend_stats(X, X, 0.5, dtype="BF16", out=bytearray(10)), "out has 10 bytes, x has 8"),
        (
            lambda: blend_stats(bytes(7), bytes(7), 0.5, dtype="BF16", out=bytearray(7)),
            "x has 7 bytes, which is no whole number of BF16",
        ),
        (lambda: blend_stats(X, X, 0.5, dtype="BF16", out=X), "out is read-only"),
        (lambda: blend_stats(OUT, X, 0.5, dtype="BF16", out=OUT), "out and x overlap"),
        (lambda: blend_stats(X, memoryview(OUT)[2:], 0.5, dtype="BF16", out=memoryview(OUT)[:6]), "y has 6 bytes"),
        (lambda: blend_stats(X, X, -0.1, dtype="BF16", out=OUT), "weight is -0.1"),
        (lambda: blend_stats(X, X, math.nan, dtype="BF16", out=OUT), "weight is nan"),
        (lambda: blend_stats(X, X, True, dtype="BF16", out=OUT), "weight is True"),
        (lambda: blend_stats(X, X, 0.5, dtype="I8", out=OUT), "dtype is I8; the kernels compute in"),
        (lambda: blend_stats(X, X, 0.5, dtype="BF16", out=OUT, before=DifferenceStats(count=5)), "before covers 5 elements"),
        (lambda: blend_stats(X, X, 0.5, dtype="BF16", out=OUT, backend="abacus"), "backend 'abacus'"),
        (lambda: blend_stats(np.zeros((4, 4), np.uint8)[:, ::2], X, 0.5, dtype="BF16", out=OUT), "x is not contiguous"),
        (lambda: blend_stats("12345678", X, 0.5, dtype="BF16", out=OUT), "x is a str"),  # type: ignore[arg-type]
        (lambda: stats(X, bytes(4), dtype="F32"), "y has 4 bytes, x has 8"),
        (lambda: cast(X, dtype="F32", out=bytearray(3), to="BF16"), "out has 3 bytes; 2 elements of BF16 take 4"),
        (lambda: cast(bytes(6), dtype="F32", out=OUT, to="BF16"), "x has 6 bytes"),
        (lambda: cast(OUT, dtype="F32", out=memoryview(OUT)[:4], to="BF16"), "out and x overlap"),
        (lambda: cast(X, dtype="F32", out=OUT, to="F4"), "to is F4"),
        (lambda: blend_many([X, X], [0.5], dtype="BF16", out=OUT), "2 inputs and 1 weights"),
        (lambda: blend_many([X, X], [0.5, 0.6], dtype="BF16", out=OUT), "add up to 1.1"),
        (lambda: blend_many([X, X], [1.5, -0.5], dtype="BF16", out=OUT), "weights[0] is 1.5"),
        (lambda: blend_many([X, OUT], [0.5, 0.5], dtype="BF16", out=OUT), "out and inputs[1] overlap"),
    ],
)
def test_bad_arguments_are_named(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()  # type: ignore[operator]
