"""The expressions that output tensors are made of. Values: references to bytes and an operation on them, no bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import NamedTuple

from lswap_core.checkpoint.catalogue import TensorRef
from lswap_core.checkpoint.dtypes import DType


class Copy(NamedTuple):
    """The tensor at `ref`, copied byte for byte, or rounded to `cast`."""

    ref: TensorRef
    cast: DType | None = None

    @property
    def dtype(self) -> DType:
        return self.cast or self.ref.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ref.shape

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """The tensors that it reads."""
        return (self.ref,)


@dataclass(frozen=True, slots=True)
class Adapted:
    """The matrix at `ref` with a low-rank change: ref + scale * (b @ a), or its transpose, computed in fp32 and rounded once.

    For the exact arithmetic see `lswap_core.kernels.low_rank`. a: (rank, n), b: (m, rank); `ref` is (m, n), or (n, m) where
    `transposed`. See Hu et al., LoRA, arXiv 2106.09685.
    """

    ref: TensorRef
    a: TensorRef
    b: TensorRef
    scale: float
    transposed: bool = False
    cast: DType | None = None

    @property
    def dtype(self) -> DType:
        return self.cast or self.ref.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ref.shape

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """The tensors that it reads."""
        return (self.ref, self.a, self.b)


Operand = Copy | Adapted
"""A tensor of one source."""


@dataclass(frozen=True, slots=True)
class Blend:
    """(1 - weight) * x + weight * y, rounded once. For the exact arithmetic see `lswap_core.kernels.reference`."""

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
        """The tensors that it reads."""
        return (*self.x.refs, *self.y.refs)


@dataclass(frozen=True, slots=True)
class Average:
    """The weighted average of three or more operands of one dtype and shape: round(sum of weights[k] * operands[k]).

    Each weight is rounded to fp32, then every product and every sum, first operand first (F64: all in fp64). The result is
    rounded once to the dtype. Where all operands have equal bits the average has those bits; any other NaN is the canonical
    one. See `lswap_core.kernels.blend_many`. Weights are above 0 (in fp32) and add up to 1, to 1e-6. Two operands are a
    `Blend`, whose first weight follows from the second.
    """

    operands: tuple[Operand, ...]
    weights: tuple[float, ...]

    @property
    def dtype(self) -> DType:
        return self.operands[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operands[0].shape

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """The tensors that it reads."""
        return tuple(ref for operand in self.operands for ref in operand.refs)


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """`base` plus what each expert changed: base + sum of scales[k] * (experts[k] - base), in fp32, rounded once.

    density: None for task arithmetic (Ilharco et al., arXiv 2212.04089). For TIES (Yadav et al., arXiv 2306.01708), the
    fraction of elements that each change keeps, the largest. TIES takes the sign with the larger sum, and averages the kept
    changes of that sign. `scales` are then the experts' weights, and `strength` that of the average.
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
        """The tensors that it reads."""
        return (*self.base.refs, *(ref for expert in self.experts for ref in expert.refs))


Expression = Copy | Adapted | Blend | Average | TaskVectors


def copies(refs: Iterable[TensorRef]) -> Iterator[Copy]:
    """Plain copies of the tensors, made in C: most of a merge is copied."""
    return map(_copy, zip(refs, repeat(None)))  # the second is infinite


_copy = partial(tuple.__new__, Copy)


def rounded_to(made_of: Expression, dtype: DType) -> Expression:
    """The same expression, rounded to `dtype`. An expression of several operands is computed in that dtype."""
    if isinstance(made_of, Blend):
        return Blend(operand_in(made_of.x, dtype), operand_in(made_of.y, dtype), made_of.weight)
    if isinstance(made_of, Average):
        return replace(made_of, operands=tuple(operand_in(operand, dtype) for operand in made_of.operands))
    if isinstance(made_of, TaskVectors):
        experts = tuple(operand_in(expert, dtype) for expert in made_of.experts)
        return replace(made_of, base=operand_in(made_of.base, dtype), experts=experts)
    return operand_in(made_of, dtype)


def operand_in(operand: Operand, dtype: DType) -> Operand:
    """The operand rounded to `dtype`, or unchanged where it has that dtype."""
    cast = None if dtype == operand.ref.dtype else dtype
    return Copy(operand.ref, cast) if isinstance(operand, Copy) else replace(operand, cast=cast)


def in_fp32(weight: float) -> float:
    """Round a weight to fp32, in which blends are computed."""
    return float(struct.unpack("<f", struct.pack("<f", weight))[0])


def add_up_to_one(weights: Sequence[float]) -> bool:
    """Whether every weight is from 0 to 1, and their sum is 1, to 1e-6."""
    return all(0 <= weight <= 1 for weight in weights) and math.isclose(math.fsum(weights), 1, rel_tol=0, abs_tol=1e-6)
