"""What is wrong with an argument is said before any backend sees it, in the same words whichever was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lswap_core import kernels
from lswap_core.kernels.difference import DifferenceStats

X, LONG = bytes(8), bytes(10)
Call = Callable[[str], object]


def blend(x: object = X, y: object = X, weight: object = 0.5, *, dtype: str = "BF16", out: object = None, **more: object) -> Call:
    target = bytearray(8) if out is None else out
    return lambda backend: kernels.blend_stats(x, y, weight, dtype=dtype, out=target, backend=backend, **more)  # type: ignore[arg-type]


def same_buffer(begin: int) -> Call:
    whole = memoryview(bytearray(16))
    return blend(whole[:8], X, out=whole[begin : begin + 8])


CALLS: dict[str, tuple[Call, str]] = {
    "sizes differ": (blend(y=LONG), r"y has 10 bytes, x has 8"),
    "out too large": (blend(out=bytearray(10)), r"out has 10 bytes, x has 8"),
    "half an element": (blend(bytes(7), bytes(7), out=bytearray(7)), r"x has 7 bytes, .* BF16"),
    "not a float": (blend(dtype="I32"), r"dtype is I32"),
    "no such type": (blend(dtype="BF17"), r"dtype is BF17"),
    "read-only out": (blend(out=bytes(8)), r"out is read-only"),
    "out is x": (same_buffer(0), r"out and x overlap"),
    "out overlaps x": (same_buffer(4), r"out and x overlap"),
    "negative weight": (blend(weight=-0.25), r"weight is -0\.25"),
    "weight over one": (blend(weight=1.25), r"weight is 1\.25"),
    "weight is no number": (blend(weight=math.nan), r"weight is nan"),
    "weight is text": (blend(weight="0.5"), r"weight is '0\.5'"),
    "not contiguous": (blend(np.zeros((4, 4), np.uint8)[:, ::2]), r"x is not contiguous"),
    "not a buffer": (blend([0.5]), r"x is a list"),
    "chunk in a block": (blend(before=DifferenceStats(count=5)), r"before covers 5 elements"),
    "stats of two sizes": (lambda b: kernels.stats(X, LONG, dtype="BF16", backend=b), r"y has 10 bytes, x has 8"),
    "cast to half the room": (
        lambda b: kernels.cast(X, dtype="F32", out=bytearray(3), to="BF16", backend=b),
        r"out has 3 bytes; 2 elements of BF16 take 4",
    ),
    "cast to an integer": (lambda b: kernels.cast(X, dtype="F32", out=bytearray(2), to="I8", backend=b), r"to is I8"),
    "weights missing": (
        lambda b: kernels.blend_many([X, X], [1.0], dtype="BF16", out=bytearray(8), backend=b),
        r"2 inputs and 1 weights",
    ),
    "weights of 1.1": (
        lambda b: kernels.blend_many([X, X], [0.5, 0.6], dtype="BF16", out=bytearray(8), backend=b),
        r"add up to 1\.1",
    ),
}


@pytest.mark.parametrize("backend", kernels.available_backends())
@pytest.mark.parametrize("what", CALLS)
def test_bad_input_is_named(what: str, backend: str) -> None:
    call, words = CALLS[what]
    with pytest.raises(ValueError, match=words):
        call(backend)


def test_an_unavailable_backend_is_explained_beside_those_that_are_there() -> None:
    with pytest.raises(kernels.BackendUnavailable, match=r"'abacus' is not available; .*reference are"):
        kernels.stats(X, X, dtype="F32", backend="abacus")
