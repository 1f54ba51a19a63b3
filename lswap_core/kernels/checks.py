"""What every kernel asks of its arguments beside buffers: types, shares, where a chunk begins. Needs no numpy."""

from __future__ import annotations

from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.difference import BLOCK_ELEMENTS, DifferenceStats


def checked_dtype(name: str, value: DType | str) -> DType:
    """`value` as a dtype that has arithmetic here; ValueError, with the name, for any other."""
    dtype = DTYPES.get(str(value))
    if dtype is None or not dtype.blendable:
        known = ", ".join(d.name for d in DTYPES.values() if d.blendable)
        raise ValueError(f"{name} is {value}; the kernels compute in {known}")
    return dtype


def check_weight(name: str, weight: float) -> None:
    """Raises ValueError, with the name, for what is no share."""
    if not (type(weight) in (int, float) and 0 <= weight <= 1):
        raise ValueError(f"{name} is {weight!r}; expected a share, from 0 to 1")


def check_before(before: DifferenceStats) -> None:
    """Raises ValueError where the chunks before this one end inside a block."""
    if before.count % BLOCK_ELEMENTS:
        raise ValueError(f"before covers {before.count} elements; a chunk begins at a multiple of {BLOCK_ELEMENTS}")
