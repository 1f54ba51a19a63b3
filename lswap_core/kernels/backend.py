"""The protocol that every backend implements, and the error of a backend that cannot work on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.difference import DifferenceStats

if TYPE_CHECKING:  # the native kernels over files do without numpy
    import numpy as np
    from numpy.typing import NDArray
from typing import NamedTuple

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.kernels.difference import BLOCK_ELEMENTS

Bytes: TypeAlias = "NDArray[np.uint8]"


class BackendUnavailable(ValueError):  # noqa: N818 - it names a state of this machine
    """The backend cannot run on this machine: no library, device or instruction set. The message is the reason, a clause."""


class Backend(Protocol):
    """What a backend implements. Its callers have checked the arguments. See `lswap_core.kernels` for each operation.

    A backend is a module with a function `load() -> Backend` that raises BackendUnavailable.
    """

    def blend_stats(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: Bytes, before: DifferenceStats
    ) -> DifferenceStats: ...

    def stats(self, x: Bytes, y: Bytes, dtype: DType, before: DifferenceStats) -> DifferenceStats: ...

    def blend_many(self, inputs: Sequence[Bytes], weights: Sequence[float], dtype: DType, out: Bytes) -> None: ...

    def cast(self, x: Bytes, source: DType, out: Bytes, target: DType) -> None: ...


def checked_dtype(name: str, value: DType | str) -> DType:
    """Return `value` as a dtype that the kernels compute with. Raises ValueError for any other, naming it."""
    dtype = DTYPES.get(str(value))
    if dtype is None or not dtype.blendable:
        known = ", ".join(d.name for d in DTYPES.values() if d.blendable)
        raise ValueError(f"{name} is {value}; the kernels compute in {known}")
    return dtype


def check_weight(name: str, weight: float) -> None:
    """Raises ValueError, naming the argument, where the value is not a weight from 0 to 1."""
    if not (type(weight) in (int, float) and 0 <= weight <= 1):
        raise ValueError(f"{name} is {weight!r}; expected a weight, from 0 to 1")


def check_before(before: DifferenceStats) -> None:
    """Raises ValueError where `before` ends inside a block of 1,024 elements."""
    if before.count % BLOCK_ELEMENTS:
        raise ValueError(f"before covers {before.count} elements; a chunk begins at a multiple of {BLOCK_ELEMENTS}")


class FileRange(NamedTuple):
    """A tensor in an open file: the descriptor, the offset of the first byte, and the file's name for messages."""

    descriptor: int
    begin: int
    path: str
