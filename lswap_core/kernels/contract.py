"""The public kernels: they check the arguments once, then call the backend that the caller chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import Backend, BackendUnavailable, Bytes, check_before, check_weight, checked_dtype
from lswap_core.kernels.difference import DifferenceStats

Buffer = bytes | bytearray | memoryview | NDArray[np.generic]


def _load_native() -> Backend:
    from lswap_core.kernels import native

    return native.load()


def _load_reference() -> Backend:
    from lswap_core.kernels import reference

    return reference.load()


def _load_cuda() -> Backend:
    from lswap_core.kernels.gpu import cuda

    return cuda.load()


def _load_triton() -> Backend:
    from lswap_core.kernels.gpu import triton

    return triton.load()


_LOADERS = {"native": _load_native, "reference": _load_reference, "cuda": _load_cuda, "triton": _load_triton}
"""The backends, fastest first; `auto` takes the first that loads. The reference loads everywhere, so `auto` never takes a GPU
backend: operands are in host memory, and moving them to a GPU takes longer than blending them (PCIe 55 GB/s: what 4 to 5
cores blend)."""


def available_backends() -> tuple[str, ...]:
    """Names that the argument `backend` accepts on this machine, fastest first."""
    return tuple(name for name in _LOADERS if not isinstance(_loaded(name), str))


def blend_stats(
    x: Buffer,
    y: Buffer,
    weight: float,
    *,
    dtype: DType | str,
    out: Buffer,
    before: DifferenceStats = DifferenceStats(),
    backend: str = "auto",
) -> DifferenceStats:
    """Blend two tensors: out = round((1 - weight) * x + weight * y), element by element. Returns how x and y differ.

    x, y, out: buffers of equal size with elements of `dtype` (BF16, F16, F32, F64, F8_E4M3 or F8_E5M2); `out` is writable and
    overlaps neither input. weight: of y, from 0 to 1. before: statistics of the tensor's earlier chunks; the result includes
    them. A tensor may be cut at any multiple of 1,024 elements: the sums then have the same bits as for the whole. Raises
    ValueError for any other argument.
    """
    kind = checked_dtype("dtype", dtype)
    views = {"x": _view("x", x), "y": _view("y", y), "out": _view("out", out)}
    check_weight("weight", weight)
    _check_sizes(kind, views)
    _check_out(views)
    check_before(before)
    return _chosen(backend).blend_stats(views["x"], views["y"], float(weight), kind, views["out"], before)


def stats(
    x: Buffer, y: Buffer, *, dtype: DType | str, before: DifferenceStats = DifferenceStats(), backend: str = "auto"
) -> DifferenceStats:
    """Return how x and y differ, as `blend_stats` does, without an output."""
    kind = checked_dtype("dtype", dtype)
    views = {"x": _view("x", x), "y": _view("y", y)}
    _check_sizes(kind, views)
    check_before(before)
    return _chosen(backend).stats(views["x"], views["y"], kind, before)


def blend_many(
    inputs: Sequence[Buffer], weights: Sequence[float], *, dtype: DType | str, out: Buffer, backend: str = "auto"
) -> None:
    """Weighted sum of many tensors: out = round(sum of weights[k] * inputs[k]).

    Each product and each sum is rounded to fp32 (F64: fp64), first input first; the result is rounded once to the dtype.
    Where all inputs have equal bits, out has those bits.

    weights: from 0 to 1 each, with sum 1 (within 1e-6), as in a model soup. Buffers as for `blend_stats`.
    """
    kind = checked_dtype("dtype", dtype)
    if not inputs or len(inputs) != len(weights):
        raise ValueError(f"{len(inputs)} inputs and {len(weights)} weights; expected as many weights as inputs, at least one")
    for number, weight in enumerate(weights):
        check_weight(f"weights[{number}]", weight)
    if not math.isclose(math.fsum(weights), 1, rel_tol=0, abs_tol=1e-6):
        raise ValueError(f"the weights add up to {math.fsum(weights)}; expected 1")
    views = {
        **{f"inputs[{number}]": _view(f"inputs[{number}]", data) for number, data in enumerate(inputs)},
        "out": _view("out", out),
    }
    _check_sizes(kind, views)
    _check_out(views)
    _chosen(backend).blend_many(list(views.values())[:-1], [float(weight) for weight in weights], kind, views["out"])


def cast(x: Buffer, *, dtype: DType | str, out: Buffer, to: DType | str, backend: str = "auto") -> None:
    """Round x from `dtype` to `to`, to nearest, ties to even. Overflow gives infinity, or NaN where `to` has no infinity;
    every NaN becomes the canonical NaN.

    x, out: buffers as for `blend_stats`, with equally many elements. Raises ValueError for any other argument.
    """
    source, target = checked_dtype("dtype", dtype), checked_dtype("to", to)
    x_view, out_view = _view("x", x), _view("out", out)
    count, rest = divmod(x_view.nbytes, source.bits // 8)
    if rest:
        raise ValueError(f"x has {x_view.nbytes} bytes, which is no whole number of {source} elements")
    if out_view.nbytes != count * target.bits // 8:
        raise ValueError(f"out has {out_view.nbytes} bytes; {count} elements of {target} take {count * target.bits // 8}")
    _check_out({"x": x_view, "out": out_view})
    _chosen(backend).cast(x_view, source, out_view, target)


def _view(name: str, buffer: Buffer) -> Bytes:
    try:
        view = memoryview(buffer)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} is a {type(buffer).__name__}; expected a buffer of bytes") from None
    if not view.contiguous:
        raise ValueError(f"{name} is not contiguous")
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)


def _check_sizes(dtype: DType, views: dict[str, Bytes]) -> None:
    first, expected = next((name, view.nbytes) for name, view in views.items())
    for name, view in views.items():
        if view.nbytes % (dtype.bits // 8):
            raise ValueError(f"{name} has {view.nbytes} bytes, which is no whole number of {dtype} elements")
        if view.nbytes != expected:
            raise ValueError(f"{name} has {view.nbytes} bytes, {first} has {expected}; sizes must be equal")


def _check_out(views: dict[str, Bytes]) -> None:
    out = views["out"]
    if out.nbytes and not out.flags.writeable:
        raise ValueError("out is read-only; expected a buffer to write to")
    for name, view in views.items():
        if view is not out and np.may_share_memory(out, view):
            raise ValueError(f"out and {name} overlap in memory")


@cache
def _loaded(name: str) -> Backend | str:
    """Load the backend called `name`, or return the BackendUnavailable that says why it cannot be loaded."""
    try:
        return _LOADERS[name]()
    except BackendUnavailable as reason:
        return str(reason)


@cache
def _chosen(name: str) -> Backend:
    for candidate in _LOADERS if name == "auto" else [name] if name in _LOADERS else []:
        backend = _loaded(candidate)
        if not isinstance(backend, str):
            return backend
    usable = available_backends()
    reasons = [f"{other} is not ({_loaded(other)})" for other in _LOADERS if other not in usable]
    raise BackendUnavailable(f"backend {name!r} is not available; {', '.join(usable)} are; {'; '.join(reasons)}".rstrip("; "))
