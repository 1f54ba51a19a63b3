"""`blend_stats` on torch tensors, on their own device: on the CPU with the fastest backend, on a CUDA device with Triton.

    out, statistics = blend_stats(math_weight, lang_weight, 0.5)
    print(difference(statistics).cosine)

Both functions use one custom operator, `lswap_core::blend_stats`, so `torch.compile` traces them. There are no gradients.
This module imports torch; `import lswap_core` imports neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lswap_core import kernels
from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.kernels.backend import check_weight
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.kernels.gpu import load_launcher
from lswap_core.kernels.gpu.batch import STATISTICS, Operands, from_row, to_row
from lswap_core.kernels.gpu.device import Launcher, blend_batch

__all__ = ["blend_stats", "blend_stats_batch", "difference"]

FLOATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def blend_stats(x: Tensor, y: Tensor, weight: float, *, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `(out, statistics)`: out = round((1 - weight) * x + weight * y), and how x and y differ.

    x, y, out: contiguous tensors of one shape and of one dtype (BF16, F16, F32, F64, float8_e4m3fn or float8_e5m2) on one
    device, the CPU or a CUDA device; none is copied. out: allocated where not given; may overlap neither input. weight: of y,
    from 0 to 1. statistics: fp64 (10), on that device; `difference` turns it into a DifferenceStats and waits for the device.

    The bytes are the same on every device, and equal those of `lswap_core.kernels`. Raises ValueError for anything else.
    """
    check_weight("weight", weight)
    made = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    return made, torch.ops.lswap_core.blend_stats([x], [y], [float(weight)], [made])[0]


def blend_stats_batch(
    x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[float], *, out: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], Tensor]:
    """`blend_stats` of many tensors of one dtype and device: `(outs, statistics)`. One launch on a GPU.

    x, y, out: as many as weights; a pair has one shape. statistics: fp64 (tensors, 10), a row for each pair.
    """
    if len({len(x), len(y), len(weights)} | ({len(x)} if out is None else {len(out)})) > 1:
        raise ValueError(f"{len(x)} x, {len(y)} y, {len(weights)} weights; expected as many of each, and of out")
    for number, weight in enumerate(weights):
        check_weight(f"weights[{number}]", weight)
    made = [torch.empty_like(side, memory_format=torch.contiguous_format) for side in x] if out is None else list(out)
    return made, torch.ops.lswap_core.blend_stats(list(x), list(y), [float(weight) for weight in weights], made)


def difference(statistics: Tensor) -> DifferenceStats:
    """The statistics of one tensor, as `lswap_core.kernels` returns them. Waits for the device."""
    return from_row(statistics.tolist())


@torch.library.custom_op(
    "lswap_core::blend_stats",
    mutates_args=("out",),
    schema="(Tensor[] x, Tensor[] y, float[] weights, Tensor(a!)[] out) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),  # each call copies its tables from the host
)
def _blend(x: list[Tensor], y: list[Tensor], weights: list[float], out: list[Tensor]) -> Tensor:
    dtype = _common_dtype(x, y, out)
    _check_overlaps(x, y, out)
    if x and x[0].is_cuda:
        return blend_on_device(load_launcher(), x, y, weights, out, dtype)
    statistics = []
    for a, b, weight, target in zip(x, y, weights, out, strict=True):
        difference_stats = kernels.blend_stats(_bytes(a), _bytes(b), weight, dtype=dtype, out=_bytes(target))
        statistics.append(to_row(difference_stats))
    return torch.tensor(statistics, dtype=torch.float64).reshape(-1, len(STATISTICS))


@_blend.register_fake
def _(x: list[Tensor], y: list[Tensor], weights: list[float], out: list[Tensor]) -> Tensor:
    _common_dtype(x, y, out)
    return torch.empty((len(weights), len(STATISTICS)), dtype=torch.float64, device=x[0].device if x else "cpu")


def blend_on_device(
    launcher: Launcher, x: list[Tensor], y: list[Tensor], weights: list[float], out: list[Tensor], dtype: DType
) -> Tensor:
    """Blend a batch with the kernels for the tensors' device, on its current stream. The caller has checked the tensors."""
    statistics = torch.zeros((len(x), len(STATISTICS)), dtype=torch.float64, device=x[0].device)
    tensors = [
        Operands(a.data_ptr(), b.data_ptr(), target.data_ptr(), a.numel(), weight)
        for a, b, weight, target in zip(x, y, weights, out, strict=True)
    ]
    blend_batch(launcher, tensors, dtype, statistics)
    return statistics


def _common_dtype(x: list[Tensor], y: list[Tensor], out: list[Tensor]) -> DType:
    """The dtype of all tensors. Raises ValueError for a tensor that `blend_stats` does not take."""
    for name, side, first in _named(x, y, out):
        if side.dtype not in FLOATS:
            raise ValueError(f"{name} is {side.dtype}; the kernels compute in {', '.join(map(str, FLOATS))}")
        if side.dtype != x[0].dtype:
            raise ValueError(f"{name} is {side.dtype}, x is {x[0].dtype}; dtypes must be equal")
        if side.device != x[0].device:
            raise ValueError(f"{name} is on {side.device}, x is on {x[0].device}; expected one device")
        if side.shape != first.shape:
            raise ValueError(f"{name} has shape {tuple(side.shape)}, x has {tuple(first.shape)}; shapes must be equal")
        if not side.is_contiguous():
            raise ValueError(f"{name} is not contiguous")
    if x and x[0].device.type not in ("cpu", "cuda"):
        raise ValueError(f"x is on {x[0].device}; expected the CPU or a CUDA device")
    return DTYPES[FLOATS[x[0].dtype] if x else "F32"]


def _check_overlaps(x: list[Tensor], y: list[Tensor], out: list[Tensor]) -> None:
    """Raises ValueError where an out shares memory with another tensor of the batch."""
    last, last_out = (0, ""), (0, "")
    ranges = [
        (side.data_ptr(), side.data_ptr() + side.numel() * side.element_size(), name) for name, side, _ in _named(x, y, out)
    ]
    for begin, end, name in sorted(r for r in ranges if r[0] < r[1]):
        is_out = name.startswith("out")
        other = last if is_out else last_out
        if begin < other[0]:
            raise ValueError(f"{' and '.join(sorted((name, other[1])))} overlap in memory")
        last = max(last, (end, name))
        last_out = max(last_out, (end, name)) if is_out else last_out


def _named(x: list[Tensor], y: list[Tensor], out: list[Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every tensor with its name for messages, and the x of its pair."""
    for number, sides in enumerate(zip(x, y, out, strict=True)):
        for name, side in zip(("x", "y", "out"), sides, strict=True):
            yield (name if len(x) == 1 else f"{name}[{number}]"), side, sides[0]


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The memory of a contiguous tensor on the CPU."""
    raw: NDArray[np.uint8] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return raw
