"""The dtypes of safetensors 0.8.0, in the only dtype table of this package.

The order is that of the reference serialiser, which sorts tensors by dtype (last first), then by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["bool", "float", "scale", "uint", "int", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    name: as in a safetensors header. bits: of one logical element. rank: position in the reference's order. blendable: the
    kernels compute with it; other types can only be copied.
    """

    name: str
    bits: int
    kind: Kind
    rank: int
    blendable: bool

    def __str__(self) -> str:
        return self.name


_TABLE: tuple[tuple[str, int, Kind], ...] = (
    ("BOOL", 8, "bool"),
    ("F4", 4, "float"),
    ("F6_E2M3", 6, "float"),
    ("F6_E3M2", 6, "float"),
    ("U8", 8, "uint"),
    ("I8", 8, "int"),
    ("F8_E5M2", 8, "float"),
    ("F8_E4M3", 8, "float"),
    ("F8_E8M0", 8, "scale"),
    ("F8_E4M3FNUZ", 8, "float"),
    ("F8_E5M2FNUZ", 8, "float"),
    ("I16", 16, "int"),
    ("U16", 16, "uint"),
    ("F16", 16, "float"),
    ("BF16", 16, "float"),
    ("I32", 32, "int"),
    ("U32", 32, "uint"),
    ("F32", 32, "float"),
    ("C64", 64, "complex"),
    ("F64", 64, "float"),
    ("I64", 64, "int"),
    ("U64", 64, "uint"),
)
_BLENDABLE = frozenset({"BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"})

DTYPES: Mapping[str, DType] = MappingProxyType(
    {name: DType(name, bits, kind, rank, name in _BLENDABLE) for rank, (name, bits, kind) in enumerate(_TABLE)}
)
