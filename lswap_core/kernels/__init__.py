"""`blend_stats`, `stats`, `blend_many` and `cast`: the arithmetic of layer swapping; and the sums of its neighbours.
`stats_of_files` is `stats` of tensors that lie in files.

Every backend gives the bytes of `reference`, bit for bit. `auto`, the default, takes the best that works here. Task vectors
and TIES have one implementation, low-rank changes the native one and their definition, `low_rank`.
Operands are raw buffers (anything with the buffer protocol) of one dtype, in little-endian order; `out` is always the
caller's. Arguments are checked once, here, before a backend sees them.

Nothing is loaded before it is used, numpy included: a plan does without, and a merge loads it while others copy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lswap_core.kernels.backend import BackendUnavailable
    from lswap_core.kernels.contract import available_backends, blend_many, blend_stats, cast, stats
    from lswap_core.kernels.files import stats_of_files
    from lswap_core.kernels.low_rank import add_low_rank
    from lswap_core.kernels.task_vectors import Largest, add_task_vectors, merge_ties, to_fp32

_HOME = {
    "BackendUnavailable": "backend",
    **dict.fromkeys(("available_backends", "blend_many", "blend_stats", "cast", "stats"), "contract"),
    "add_low_rank": "low_rank",
    "stats_of_files": "files",
    **dict.fromkeys(("Largest", "add_task_vectors", "merge_ties", "to_fp32"), "task_vectors"),
}

__all__ = [
    "BackendUnavailable", "Largest", "add_low_rank", "add_task_vectors", "available_backends", "blend_many", "blend_stats",
    "cast", "merge_ties", "stats", "stats_of_files", "to_fp32",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
