"""Every implementation of the kernels, one entry each. A new one is a new entry, and the whole suite runs over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import pytest

from lswap_core.kernels import native, reference
from lswap_core.kernels.backend import Backend, BackendUnavailable
from lswap_core.kernels.gpu import cuda, triton
from tests import emulated_cuda
from tests.kernels.conformance import emulated

Speed = Literal["fast", "slow"]


@dataclass(frozen=True)
class Entry:
    """How to get a backend: `load` raises BackendUnavailable(reason) where it cannot work, and its tests skip visibly.

    speed: "slow" is for those below about 1 M elements/s (Triton's interpreter, emulators), which get a share of the
    cases. exact_statistics: sums have the reference's bits; otherwise they agree to 1e-6 of their scale (counts and the
    maximum always agree).
    """

    load: Callable[[], Backend]
    speed: Speed = "fast"
    exact_statistics: bool = True


BACKENDS: dict[str, Entry] = {
    "reference": Entry(reference.load),
    "native": Entry(native.load),
    **{f"native, {isa}": Entry(partial(native.load, isa, threads=1)) for isa in ("avx512", "avx2", "baseline", "neon")},
    **{
        f"native, {isa}, large calls": Entry(partial(native.load, isa, threads=3, large_from_bytes=0))
        for isa in ("avx512", "avx2", "baseline", "neon")
    },
    "native, neon in qemu": Entry(emulated.load_neon, speed="slow"),
    "native, 64 threads": Entry(partial(native.load, threads=64, large_from_bytes=0)),
    "triton": Entry(triton.load, "slow" if os.environ.get("TRITON_INTERPRET") == "1" else "fast"),
    "cuda": Entry(cuda.load),
    "cuda, emulated": Entry(emulated_cuda.load),
}


@cache
def _loaded(name: str) -> Backend | str:
    try:
        return BACKENDS[name].load()
    except BackendUnavailable as reason:
        return str(reason)


def backend_or_skip(name: str) -> Backend:
    found = _loaded(name)
    if isinstance(found, str):
        pytest.skip(f"{name} is unavailable: {found}")
    return found
