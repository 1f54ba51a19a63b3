"""What a call of the kernels costs when there is little to do, by pytest-benchmark: bf16 with statistics.

    python -m pytest benchmarks/bench_small.py -p no:cacheprovider

Nothing is timed before the backend has given the reference's bytes and statistics on these very operands. The call on
2 elements is what the way through the contract and ctypes costs; the pipeline's own calls have 1 MiB to an operand.
"""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lswap_core import kernels

SIZES_BYTES = (4, 2048, 64 << 10, 1 << 20)


@pytest.mark.parametrize("size", SIZES_BYTES)
@pytest.mark.parametrize("backend", kernels.available_backends())
def test_blend_stats(benchmark: BenchmarkFixture, backend: str, size: int) -> None:
    rng = np.random.default_rng(size)
    x, y = ((rng.standard_normal(size // 2, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes() for _ in range(2))
    out, expected = bytearray(b"\xa5" * size), bytearray(b"\x5a" * size)
    right = kernels.blend_stats(x, y, 0.3, dtype="BF16", out=expected, backend="reference")
    found = kernels.blend_stats(x, y, 0.3, dtype="BF16", out=out, backend=backend)
    assert (out, found) == (expected, right)
    benchmark(kernels.blend_stats, x, y, 0.3, dtype="BF16", out=out, backend=backend)
