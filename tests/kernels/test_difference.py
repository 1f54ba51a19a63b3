"""Statistics as a value. Their numbers are tested with the kernels."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lswap_core.kernels.difference import DifferenceStats

counts = st.integers(0, 10**12)
sums = st.floats(0, 1e300)
values = st.builds(DifferenceStats, counts, counts, sums, sums, sums, st.floats(-1e300, 1e300), sums, sums, counts, counts)


@given(values)
def test_json_form(value: DifferenceStats) -> None:
    assert DifferenceStats(**json.loads(json.dumps(value.to_json()))) == value


def test_sums_that_overflowed_have_a_json_form() -> None:
    value = DifferenceStats(count=1, sum_squares=math.inf, dot=math.nan)
    found = json.loads(json.dumps(value.to_json(), allow_nan=False))
    assert (found["sum_squares"], found["dot"]) == ("inf", "nan")


@given(values, values)
def test_addition(a: DifferenceStats, b: DifferenceStats) -> None:
    total = a + b
    assert total.count == a.count + b.count
    assert total.sum_abs == a.sum_abs + b.sum_abs
    assert total.max_abs == max(a.max_abs, b.max_abs)
    assert a + DifferenceStats() == a


@pytest.mark.parametrize(
    ("value", "mean", "rms", "relative", "cosine"),
    [
        (DifferenceStats(), 0, 0, 0, 1),
        (DifferenceStats(count=4, sum_abs=8, sum_squares=64, dot=6, x_squares=16, y_squares=9), 2, 4, 2, 0.5),
        (DifferenceStats(count=1, sum_abs=1, sum_squares=1, y_squares=1), 1, 1, math.inf, 0),
        (DifferenceStats(count=1, x_squares=1, sum_abs=1, sum_squares=1), 1, 1, 1, 0),
    ],
)
def test_derived(value: DifferenceStats, mean: float, rms: float, relative: float, cosine: float) -> None:
    assert (value.mean_abs, value.rms, value.relative_norm, value.cosine) == (mean, rms, relative, cosine)
