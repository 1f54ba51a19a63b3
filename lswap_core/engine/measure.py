"""Measures where two experts changed: worker threads read every tensor once, in chunks."""

from __future__ import annotations

import math as arithmetic
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lswap_core.analysis.changes import Change, ChangeMaps, Side, TensorChange, source_record
from lswap_core.checkpoint.catalogue import Checkpoint, Role
from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import MismatchError
from lswap_core.io.ports import Kernels, Progress, Source, Tally
from lswap_core.io.threads import run_all
from lswap_core.recipe.draft import operand_of
from lswap_core.recipe.expressions import Operand, operand_in

_PAIRS: dict[Side, tuple[Role, Role]] = {"difference": ("math", "lang"), "math": ("base", "math"), "lang": ("base", "lang")}


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
    """Return the change maps of math and lang and, where given, base. Raises MismatchError, which lists every tensor that is
    not in all checkpoints with one shape; tensors that only base has are ignored.

    layers: the only layers to measure. profiles: also compute the mean change of each row and column of every matrix. These
    stay in memory; everything else needs one chunk per worker. Tensors of different dtypes are compared in fp32 (fp64 where
    one is).
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
    changes = run_all(measure, tensors, total_bytes=total_bytes, progress=progress, workers=workers)
    measured = {tensor.name: change for tensor, change in zip(tensors, changes, strict=True)}
    return ChangeMaps(tuple(source_record(c) for c in experts.values()), stack, measured, tuple(uncompared))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to measure: the dtype to compare it in, and its operand in each checkpoint."""

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
    """A dtype that holds the values of all operands exactly. None where differences cannot be computed."""
    if not all(dtype.blendable for dtype in dtypes):
        return None
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return DTYPES["F64" if DTYPES["F64"] in dtypes else "F32"]


def _measured(tensor: _Tensor, evaluator: Evaluator, kernels: Kernels, profiles: bool, tally: Tally) -> TensorChange:
    shape, roles = tensor.operands["math"].shape, list(tensor.operands)
    sides = {side: pair for side, pair in _PAIRS.items() if set(pair) <= tensor.operands.keys()}
    pairs = {side: (roles.index(x), roles.index(y)) for side, (x, y) in sides.items()}
    sums = None
    if profiles and len(shape) == 2:
        from lswap_core.engine.profiles import ProfileSums  # imports numpy, which the statistics do not need

        profiled = {side: pair for side, pair in pairs.items() if side != "difference" or len(sides) == 1}
        sums = ProfileSums(profiled, shape, tensor.dtype, kernels)
    operands = list(tensor.operands.values())
    compared = evaluator.compare(operands, list(pairs.values()), tally, seen=sums.add if sums else None)
    statistics = dict(zip(pairs, compared, strict=True))
    change = Change(statistics["difference"], statistics.get("math"), statistics.get("lang"))
    return TensorChange(tensor.dtype, shape, change, sums.profiles() if sums else {})
