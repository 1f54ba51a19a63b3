"""What an output tensor can be made of. Values: references to bytes and what to compute from them, no bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from lswap_core.checkpoint import TensorRef
from lswap_core.dtypes import DType


class _OfOneTensor:
    """What a tensor of one source has, whatever is done to it on the way."""

    __slots__ = ()
    ref: TensorRef
    cast: DType | None

    @property
    def dtype(self) -> DType:
        return self.cast or self.ref.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ref.shape


@dataclass(frozen=True, slots=True)
class Copy(_OfOneTensor):
    """The tensor at `ref`, byte for byte, or rounded to `cast`."""

    ref: TensorRef
    cast: DType | None = None

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """What it reads."""
        return (self.ref,)


@dataclass(frozen=True, slots=True)
class Adapted(_OfOneTensor):
    """The matrix at `ref` with a low-rank change: ref + scale * (b @ a), or its transpose, computed in fp32 and rounded once; see
    `lswap_core.kernels.low_rank` for the exact arithmetic.

    a: (rank, n), b: (m, rank); `ref` is (m, n), or (n, m) where `transposed`. See Hu et al., LoRA, arXiv 2106.09685.
    """

    ref: TensorRef
    a: TensorRef
    b: TensorRef
    scale: float
    transposed: bool = False
    cast: DType | None = None

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """What it reads."""
        return (self.ref, self.a, self.b)


Operand = Copy | Adapted
"""A tensor of one source."""


@dataclass(frozen=True, slots=True)
class Blend:
    """(1 - weight) * x + weight * y, rounded once; see `lswap_core.kernels.reference` for the exact arithmetic."""

    x: Operand
    y: Operand
    weight: float

    @property
    def dtype(self) -> DType:
        return self.x.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """What it reads."""
        return (*self.x.refs, *self.y.refs)


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """`base` and what each expert changed of it: base + sum of scales[k] * (experts[k] - base), in fp32, rounded once.

    density: None, as in task arithmetic (Ilharco et al., arXiv 2212.04089); or the share of elements that each change
    keeps, the largest, as in TIES (Yadav et al., arXiv 2306.01708): signs are elected by mass, and the kept changes of the
    elected sign averaged; `scales` are then the experts' weights, and `strength` that of the average.
    """

    base: Operand
    experts: tuple[Operand, ...]
    scales: tuple[float, ...]
    density: float | None = None
    strength: float = 1.0

    @property
    def dtype(self) -> DType:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """What it reads."""
        return (*self.base.refs, *(ref for expert in self.experts for ref in expert.refs))


Expression = Copy | Adapted | Blend | TaskVectors


def rounded_to(made_of: Expression, dtype: DType) -> Expression:
    """The same, rounded to `dtype`. What is computed of several operands is computed in that dtype."""
    if isinstance(made_of, Blend):
        return Blend(operand_in(made_of.x, dtype), operand_in(made_of.y, dtype), made_of.weight)
    if isinstance(made_of, TaskVectors):
        experts = tuple(operand_in(expert, dtype) for expert in made_of.experts)
        return replace(made_of, base=operand_in(made_of.base, dtype), experts=experts)
    return operand_in(made_of, dtype)


def operand_in(operand: Operand, dtype: DType) -> Operand:
    """The operand rounded to `dtype`, or as it is where it has that dtype."""
    return replace(operand, cast=None if dtype == operand.ref.dtype else dtype)


def in_fp32(weight: float) -> float:
    """`weight` rounded to fp32, in which blends are computed."""
    return float(struct.unpack("<f", struct.pack("<f", weight))[0])
