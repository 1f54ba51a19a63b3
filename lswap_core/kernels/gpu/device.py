"""What Triton and CUDA C++ share: tables, workspace and operands in device memory, which torch allocates.

The device is a CUDA device. It is the CPU where the kernels run in Triton's interpreter or in an emulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import BackendUnavailable, Bytes
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.kernels.gpu.batch import SUMS, TALLIES, Operands, from_row, lay_out_batch, rounded_weights, to_row

_ALIGNMENT = 16
"""Bytes of the widest load."""


class Launcher(Protocol):
    """Launches kernels on tables in device memory, on the device's current stream. Words are int64; weights and sums are
    fp64.
    """

    def tile_blocks(self, dtype: DType) -> int:
        """Blocks of 1,024 elements in a tile."""

    def blend(
        self, records: torch.Tensor, tiles: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, dtype: DType, *, write: bool
    ) -> None:
        """Process every tile of a batch. For shapes see `lswap_core.kernels.gpu.batch`."""

    def add_up(
        self, records: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, statistics: torch.Tensor, dtype: DType
    ) -> None:
        """Add the tiles' results to `statistics`, which has one row per tensor."""

    def blend_many(
        self,
        addresses: torch.Tensor,
        rounded_weights: torch.Tensor,
        out: torch.Tensor,
        elements: int,
        dtype: DType,
        *,
        aligned: bool,
    ) -> None:
        """Compute one chunk of a weighted sum. addresses, weights: one per input. out: one address. aligned: all are multiples
        of 16.
        """

    def cast(self, x: torch.Tensor, out: torch.Tensor, elements: int, source: DType, target: DType, *, aligned: bool) -> None:
        """Cast one chunk. x, out: one address each."""


def blend_batch(launcher: Launcher, tensors: Sequence[Operands], dtype: DType, statistics: torch.Tensor) -> None:
    """Blend every tensor in one launch, or only compare where all outs are 0. Adds to each tensor's row of `statistics`.

    The tensors and `statistics`, contiguous fp64 (tensors, 10), are on one device. The work goes to its current stream.
    Operands are not checked.
    """
    batch = lay_out_batch(tensors, dtype, tile_blocks=launcher.tile_blocks(dtype))
    device = statistics.device
    with torch.cuda.device(device if device.type == "cuda" else -1):
        records = _uploaded(batch.records, device)
        sums = torch.empty((SUMS, batch.blocks), dtype=torch.float64, device=device)
        tallies = torch.empty((TALLIES, len(batch.tiles)), dtype=torch.float64, device=device)
        if len(batch.tiles):
            tiles = _uploaded(batch.tiles, device)
            launcher.blend(records, tiles, sums, tallies, dtype, write=any(tensor.out for tensor in tensors))
        if tensors:
            launcher.add_up(records, sums, tallies, statistics, dtype)


def cuda_device() -> torch.device:
    """The current CUDA device. Raises BackendUnavailable where torch finds no usable one."""
    if not torch.cuda.is_available():
        raise BackendUnavailable("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


class DeviceBackend:
    """A backend for operands in host memory: it copies them to the device and the result back."""

    def __init__(self, launcher: Launcher, device: torch.device) -> None:
        self.launcher = launcher
        self.device = device

    def blend_stats(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: Bytes, before: DifferenceStats
    ) -> DifferenceStats:
        """See `lswap_core.kernels.blend_stats`."""
        target = self._room(out, dtype)
        statistics = self._run(x, y, weight, dtype, target, before)
        _fetch(target, out)
        return statistics

    def stats(self, x: Bytes, y: Bytes, dtype: DType, before: DifferenceStats) -> DifferenceStats:
        """See `lswap_core.kernels.stats`."""
        return self._run(x, y, 0.0, dtype, None, before)

    def blend_many(self, inputs: Sequence[Bytes], weights: Sequence[float], dtype: DType, out: Bytes) -> None:
        """See `lswap_core.kernels.blend_many`."""
        moved = [self._moved(data, dtype) for data in inputs]
        target = self._room(out, dtype)
        addresses = [side.data_ptr() for side in moved]
        rounded = torch.tensor([rounded_weights(weight, dtype)[1] for weight in weights], dtype=torch.float64)
        if out.size:
            self.launcher.blend_many(
                self._words(addresses),
                rounded.to(self.device),
                self._words([target.data_ptr()]),
                out.size * 8 // dtype.bits,
                dtype,
                aligned=_aligned([*addresses, target.data_ptr()]),
            )
            _fetch(target, out)

    def cast(self, x: Bytes, source: DType, out: Bytes, target: DType) -> None:
        """See `lswap_core.kernels.cast`."""
        moved, room = self._moved(x, source), self._room(out, target)
        addresses = [moved.data_ptr(), room.data_ptr()]
        if out.size:
            words = (self._words(addresses[:1]), self._words(addresses[1:]))
            self.launcher.cast(*words, x.size * 8 // source.bits, source, target, aligned=_aligned(addresses))
            _fetch(room, out)

    def _run(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: torch.Tensor | None, before: DifferenceStats
    ) -> DifferenceStats:
        a, b = self._moved(x, dtype), self._moved(y, dtype)
        statistics = torch.tensor([to_row(before)], dtype=torch.float64).to(self.device)
        target = 0 if out is None else out.data_ptr()
        operands = Operands(a.data_ptr(), b.data_ptr(), target, x.size * 8 // dtype.bits, weight)
        blend_batch(self.launcher, [operands], dtype, statistics)
        return from_row(statistics.tolist()[0])

    def _room(self, like: Bytes, dtype: DType) -> torch.Tensor:
        """Allocate device memory with the same misalignment to 16 bytes as the host buffer, in whole elements. An odd slice
        then takes the same code path here as it would on the device.
        """
        width = dtype.bits // 8
        begin = like.ctypes.data % _ALIGNMENT // width * width
        return torch.empty(like.size + _ALIGNMENT, dtype=torch.uint8, device=self.device)[begin : begin + like.size]

    def _moved(self, data: Bytes, dtype: DType) -> torch.Tensor:
        room = self._room(data, dtype)
        room.copy_(torch.from_numpy(data if data.flags.writeable else data.copy()))  # torch warns about read-only memory
        return room

    def _words(self, addresses: Sequence[int]) -> torch.Tensor:
        return torch.tensor(addresses, dtype=torch.int64).to(self.device)


def _uploaded(table: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Upload from pinned memory: an upload from pageable memory would block the host until the device reaches the copy."""
    here = torch.from_numpy(table)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here


def _fetch(result: torch.Tensor, out: NDArray[Any]) -> None:
    torch.from_numpy(out).copy_(result)


def _aligned(addresses: Sequence[int]) -> bool:
    return all(address % _ALIGNMENT == 0 for address in addresses)
