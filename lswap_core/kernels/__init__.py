"""The arithmetic of layer swapping: `blend_stats`, `stats`, `stats_of_files`, `blend_many`, `cast`; and task vectors and
TIES.

Every backend gives the same bytes as `reference`. The default, `auto`, takes the fastest backend that works on this machine.
Task vectors and TIES have one implementation. Low-rank changes have two: the native kernels, and the definition in
`low_rank`.

Operands are raw buffers (anything with the buffer protocol) of one dtype, in little-endian order. The caller provides `out`.
Arguments are checked once, here, before a backend gets them.

Each module, numpy included, loads on first use: planning does without numpy, and a merge loads it while other threads copy.
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
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
