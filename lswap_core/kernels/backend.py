"""What a backend is, and how one says that it cannot work here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lswap_core.checkpoint.dtypes import DType
from lswap_core.difference import DifferenceStats

if TYPE_CHECKING:  # the native kernels over files do without numpy
    import numpy as np
    from numpy.typing import NDArray

Bytes: TypeAlias = "NDArray[np.uint8]"


class BackendUnavailable(ValueError):  # noqa: N818 - it names a state of this machine
    """A backend cannot work here: no library, no device, not this processor. The message is the reason, a clause."""


class Backend(Protocol):
    """What a backend implements; its arguments are sound. See `lswap_core.kernels` for what each does.

    A backend is a module with a function `load() -> Backend` that raises BackendUnavailable.
    """

    def blend_stats(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: Bytes, before: DifferenceStats
    ) -> DifferenceStats: ...

    def stats(self, x: Bytes, y: Bytes, dtype: DType, before: DifferenceStats) -> DifferenceStats: ...

    def blend_many(self, inputs: Sequence[Bytes], weights: Sequence[float], dtype: DType, out: Bytes) -> None: ...

    def cast(self, x: Bytes, source: DType, out: Bytes, target: DType) -> None: ...
