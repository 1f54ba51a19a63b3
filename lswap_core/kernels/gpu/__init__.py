"""The GPU backends: Triton and CUDA C++. Both launch kernels over tables of tiles. `device` has the code that they share."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lswap_core.kernels.backend import BackendUnavailable
from lswap_core.kernels.gpu import cuda, triton

if TYPE_CHECKING:
    from lswap_core.kernels.gpu.device import Launcher


@cache
def load_launcher() -> Launcher:
    """Return the Triton launcher, or the CUDA C++ launcher where Triton is not installed. Raises BackendUnavailable where
    neither is.
    """
    reasons = []
    for name, load in (("triton", triton.load_launcher), ("cuda", cuda.load_launcher)):
        try:
            return load()
        except BackendUnavailable as reason:
            reasons.append(f"{name}: {reason}")
    raise BackendUnavailable("; ".join(reasons))
