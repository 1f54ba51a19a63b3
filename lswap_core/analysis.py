"""The pass that measures where two experts changed: every tensor read once, in chunks, by worker threads."""

from __future__ import annotations

import math as arithmetic
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lswap_core.changes import Change, ChangeMaps, Profile, Side, TensorChange, source_record
from lswap_core.checkpoint import Checkpoint, Role
from lswap_core.difference import DifferenceStats
from lswap_core.draft import operand_of
from lswap_core.dtypes import DTYPES, DType
from lswap_core.errors import MismatchError
from lswap_core.evaluate import Evaluator, element_ranges
from lswap_core.expressions import Operand, operand_in
from lswap_core.parallel import run_all
from lswap_core.ports import Kernels, Progress, Source, Tally

_PAIRS: dict[Side, tuple[Role, Role]] = {"difference": ("math", "lang"), "math": ("base", "math"), "lang": ("base", "lang")}

CHUNK_BYTES = 2 * 1024 * 1024
"""Bytes of one operand that are looked at together: a power of two, so whole blocks of the kernels. With nothing to write,
larger ones than a blend's pay: two operands of 2.5 GB in the page cache took 1.3 to 2.3 s of processor time in pieces of 128
KiB, 1.0 to 1.3 s in 512 KiB, 0.88 to 1.2 s in 1 MiB, 0.84 to 1.1 s in 2 MiB (AMD Milan, 2 busy cores, 512 KiB of L2 each)."""


def measure_changes(
    experts: Mapping[Role, Checkpoint],
    source: Source,
    kernels: Kernels,
    *,
    layers: Collection[int] | None = None,
    layer_prefix: str | None = None,
    profiles: bool = False,
    progress: Progress,
    workers: int,
) -> ChangeMaps:
    """The change maps of math and lang and, where there is one, base.

    layers: the only ones to measure. profiles: also the mean change of each row and column of every matrix; these are kept
    in memory, everything else takes as many chunks as there are workers. Tensors of different dtypes are compared in fp32
    (fp64 where one is). MismatchError lists the tensors that are not in all checkpoints in one shape; what only base has
    does not matter.
    """
    math = experts["math"]
    stack = math.stack(layer_prefix)
    if issues := list(_issues(experts)):
        raise MismatchError(f"{' and '.join(c.location for c in experts.values())} cannot be compared", issues)
    tensors, uncompared = [], []
    for name in math.tensors:
        if layers is not None and stack.layer_of(name) not in layers:
            continue
        operands = {role: operand_of(checkpoint, name) for role, checkpoint in experts.items()}
        if (dtype := _common_dtype([operand.dtype for operand in operands.values()])) is None:
            uncompared.append(name)
        else:
            tensors.append(_Tensor(name, dtype, {role: operand_in(operand, dtype) for role, operand in operands.items()}))
    evaluator = Evaluator(source, kernels)

    def measure(tensor: _Tensor, tally: Tally) -> TensorChange:
        return _measured(tensor, evaluator, kernels, profiles, tally)

    total_bytes = sum(tensor.size_bytes for tensor in tensors)
    found = run_all(measure, tensors, total_bytes=total_bytes, progress=progress, workers=workers)
    measured = {tensor.name: change for tensor, change in zip(tensors, found, strict=True)}
    return ChangeMaps(tuple(source_record(c) for c in experts.values()), stack, measured, tuple(uncompared))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to measure: in which dtype, and what it is in each checkpoint."""

    name: str
    dtype: DType
    operands: Mapping[Role, Operand]

    @property
    def size_bytes(self) -> int:
        return arithmetic.prod(self.operands["math"].shape) * self.dtype.bits // 8


def _issues(experts: Mapping[Role, Checkpoint]) -> Iterator[str]:
    math = experts["math"].tensors
    for role, checkpoint in experts.items():
        for name, ref in math.items():
            other = checkpoint.tensors.get(name)
            if other is None:
                yield f"tensor {name!r} is not in {role}"
            elif other.shape != ref.shape:
                yield f"tensor {name!r} has shape {list(ref.shape)} in math, {list(other.shape)} in {role}"
        if role == "lang":
            yield from (f"tensor {name!r} is in lang only" for name in checkpoint.tensors if name not in math)


def _common_dtype(dtypes: list[DType]) -> DType | None:
    """What holds the values of all exactly; None where differences cannot be computed."""
    if not all(dtype.blendable for dtype in dtypes):
        return None
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return DTYPES["F64" if DTYPES["F64"] in dtypes else "F32"]


def _measured(tensor: _Tensor, evaluator: Evaluator, kernels: Kernels, profiles: bool, tally: Tally) -> TensorChange:
    shape, dtype = tensor.operands["math"].shape, tensor.dtype
    sides = {side: pair for side, pair in _PAIRS.items() if set(pair) <= tensor.operands.keys()}
    found = dict.fromkeys(sides, DifferenceStats())
    profiled = [side for side in sides if side != "difference" or len(sides) == 1] if profiles and len(shape) == 2 else []
    sums = {side: _ProfileSums(shape) for side in profiled}
    for first, count in element_ranges(tensor.operands["math"], CHUNK_BYTES):
        data = {role: evaluator.elements(role, operand, first, count) for role, operand in tensor.operands.items()}
        for side, (x, y) in sides.items():
            found[side] = kernels.stats(data[x], data[y], dtype=dtype, before=found[side])
        for side, running in sums.items():
            x, y = sides[side]
            running.add(first, _distances(data[x], data[y], dtype, kernels))
        tally(count * dtype.bits // 8)
    change = Change(found["difference"], found.get("math"), found.get("lang"))
    return TensorChange(dtype, shape, change, {side: running.profile() for side, running in sums.items()})


def _distances(x: memoryview, y: memoryview, dtype: DType, kernels: Kernels) -> NDArray[Any]:
    """|y - x| in fp32 (F64: fp64); 0 where either is not finite, as in the statistics."""
    with np.errstate(all="ignore"):
        if dtype.name == "F64":
            distances = np.abs(np.frombuffer(y, "<f8") - np.frombuffer(x, "<f8"))
        else:
            distances = np.abs(kernels.to_fp32(y, dtype) - kernels.to_fp32(x, dtype))
    return np.where(np.isfinite(distances), distances, 0)


class _ProfileSums:
    """Sums in fp64 of the rows and columns of a matrix whose elements come in order, in pieces."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rows, self._columns = (np.zeros(length) for length in shape)

    def add(self, first: int, values: NDArray[Any]) -> None:
        """Elements from number `first` on."""
        width, begin = self._columns.size, 0
        while begin < values.size:
            row, column = divmod(first + begin, width)
            rows = 1 if column else max(1, (values.size - begin) // width)
            piece = values[begin : begin + rows * width - column].astype(np.float64)
            begin += piece.size
            if piece.size < rows * width:  # a part of one row
                self._rows[row] += piece.sum()
                self._columns[column : column + piece.size] += piece
            else:
                block = piece.reshape(rows, width)
                self._rows[row : row + rows] += block.sum(axis=1)
                self._columns += block.sum(axis=0)

    def profile(self) -> Profile:
        rows, columns = self._rows / max(1, self._columns.size), self._columns / max(1, self._rows.size)
        return Profile(tuple(rows.tolist()), tuple(columns.tolist()))
