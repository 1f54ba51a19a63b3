"""`blend_stats`, `stats`, `blend_many` and `cast`: the arithmetic of layer swapping; and the sums of its neighbours.

Every backend gives the bytes of `reference`, bit for bit. `auto`, the default, takes the best that works here. Task vectors,
TIES and low-rank changes have one implementation.
Operands are raw buffers (anything with the buffer protocol) of one dtype, in little-endian order; `out` is always the
caller's. Arguments are checked once, here, before a backend sees them.
"""

from lswap_core.kernels.backend import BackendUnavailable
from lswap_core.kernels.contract import available_backends, blend_many, blend_stats, cast, stats
from lswap_core.kernels.sums import Largest, add_low_rank, add_task_vectors, merge_ties, to_fp32

__all__ = [
    "BackendUnavailable", "Largest", "add_low_rank", "add_task_vectors", "available_backends", "blend_many", "blend_stats",
    "cast", "merge_ties", "stats", "to_fp32",
]  # fmt: skip
