"""Task vectors and TIES against independent implementations."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lswap_core import kernels
from lswap_core.checkpoint.dtypes import DTYPES

NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


def chunks(count: int, rng: np.random.Generator) -> list[slice]:
    cuts = sorted({0, count, *rng.integers(0, count, 3).tolist()})
    return [slice(a, b) for a, b in pairwise(cuts)]


def view(values: np.ndarray) -> memoryview:
    return memoryview(values.view(np.uint8).reshape(-1)).cast("B") if values.size else memoryview(b"")


def triple(dtype: str, count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(count)
    return [
        v.astype(NUMPY[dtype]) for v in (base, base + 0.1 * rng.standard_normal(count), base + 0.1 * rng.standard_normal(count))
    ]


@pytest.mark.parametrize("dtype", NUMPY)
def test_task_vectors_add_up(dtype: str) -> None:
    base, x, y = triple(dtype, 10_007, 1)
    out = np.full_like(base, np.nan)
    kernels.add_task_vectors(view(base), [view(x), view(y)], [0.4, 0.7], dtype=DTYPES[dtype], out=view(out))
    wide = np.float64 if dtype == "F64" else np.float32
    b, p, q = (side.astype(wide) for side in (base, x, y))
    expected = (b + wide(0.4) * (p - b) + wide(0.7) * (q - b)).astype(NUMPY[dtype])
    assert out.tobytes() == expected.tobytes()


def test_task_vectors_keep_the_bits_of_what_nobody_changed() -> None:
    base = np.array([-0.0, np.nan, np.inf, -np.inf, 1e-45, 3], np.float32)
    base[1:2].view(np.uint32)[0] |= 0x1234
    out = np.zeros_like(base)
    for density in (None, 0.5):
        if density is None:
            kernels.add_task_vectors(view(base), [view(base)] * 2, [1.0, 1.0], dtype=DTYPES["F32"], out=view(out))
        else:
            kernels.merge_ties(view(base), [view(base)] * 2, [0, 0], [1.0, 1.0], 1.0, dtype=DTYPES["F32"], out=view(out))
        assert out.tobytes() == base.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(NUMPY)), st.integers(1, 3000), st.floats(0, 1), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0])
)
def test_the_threshold_is_the_magnitude_that_the_largest_reach(
    dtype: str, count: int, density: float, seed: int, ties: float
) -> None:
    base, x, _ = triple(dtype, count, seed)
    rng = np.random.default_rng(seed)
    x[rng.random(count) < ties * 0.9] = base[0]
    keep = int(density * count)
    largest = kernels.Largest(keep, DTYPES[dtype])
    for _ in range(largest.passes):
        for part in chunks(count, rng):
            largest.see(view(base[part]), view(x[part]))
        largest.end_round()
    wide = np.float64 if dtype == "F64" else np.float32
    magnitudes = np.abs(x.astype(wide) - base.astype(wide))
    kept = magnitudes.view(f"u{magnitudes.itemsize}").astype(object) >= largest.threshold
    if keep == 0:
        assert not kept.any()
    else:
        least = np.sort(magnitudes)[-keep]
        assert kept.tolist() == (magnitudes >= least).tolist()


@pytest.mark.parametrize("density", [0.2, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.6, 0.9)])
def test_ties_is_what_peft_gives(density: float, weights: tuple[float, float]) -> None:
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    base, x, y = triple("F32", 20_011, 7)  # continuous values: no ties in the threshold
    thresholds = []
    for side in (x, y):
        largest = kernels.Largest(int(density * base.size), DTYPES["F32"])
        for _ in range(largest.passes):
            largest.see(view(base), view(side))
            largest.end_round()
        thresholds.append(largest.threshold)
    out = np.full_like(base, np.nan)
    kernels.merge_ties(view(base), [view(x), view(y)], thresholds, weights, 0.8, dtype=DTYPES["F32"], out=view(out))
    vectors = [torch.from_numpy(side - base) for side in (x, y)]
    merged = merge_utils.ties(vectors, torch.tensor(weights), density)
    expected = base + np.float32(0.8) * merged.numpy()
    assert np.abs(out - expected).max() <= np.spacing(np.abs(expected)).max()
    assert (out == expected).mean() > 0.999
