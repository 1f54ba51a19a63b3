"""`blend_stats`, `stats`, `blend_many` and `cast`: all the arithmetic there is.

Every backend gives the bytes of `reference`, bit for bit. `auto`, the default, takes the best that works here.
Operands are raw buffers (anything with the buffer protocol) of one dtype, in little-endian order; `out` is always the
caller's. Arguments are checked once, here, before a backend sees them.
"""

from lswap_core.kernels.backend import BackendUnavailable
from lswap_core.kernels.contract import available_backends, blend_many, blend_stats, cast, stats

__all__ = ["BackendUnavailable", "available_backends", "blend_many", "blend_stats", "cast", "stats"]
