"""Slots of a CUDA device for `lswap_core.engine.device_streaming`: each has pinned host memory, equal device memory and a
stream.

This module imports torch; `import lswap_core` does not import this module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lswap_core.checkpoint.dtypes import DType
from lswap_core.errors import RecipeError
from lswap_core.kernels.backend import BackendUnavailable
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.kernels.gpu import load_launcher
from lswap_core.kernels.gpu.batch import STATISTICS, Operands, from_row
from lswap_core.kernels.gpu.device import Launcher, blend_batch, cuda_device

SLOTS = 3
"""One uploading, one computing, one downloading. Not measured."""
SLOT_BYTES = 16 << 20
"""Bytes of each of x, y and out, so a slot has 48 MiB. At PCIe's 55 GB/s each takes 0.3 ms; a launch (some 10 us) adds
little. Not measured."""


def open_slots() -> list[CudaSlot]:
    """Open the slots of the current CUDA device. Raises RecipeError where there is no device or no kernel library."""
    try:
        device, launcher = cuda_device(), load_launcher()
    except BackendUnavailable as reason:
        raise RecipeError(f"--device cuda: {reason}; --device cpu needs none") from reason
    return [CudaSlot(launcher, device) for _ in range(SLOTS)]


class _Carried:
    """A tensor's statistics so far, (1, 10) on the device, and the event that marks them complete."""

    def __init__(self, before: _Carried | None, device: torch.device) -> None:
        self.ready: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        if before is None:
            self.statistics = torch.zeros((1, len(STATISTICS)), dtype=torch.float64, device=device)
        else:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(before.ready)
            before.statistics.record_stream(stream)
            self.statistics = before.statistics.clone()


class CudaSlot:
    """See `lswap_core.engine.device_streaming.Slot`."""

    def __init__(self, launcher: Launcher, device: torch.device) -> None:
        self._launcher = launcher
        self._device = device
        self._here = [torch.empty(SLOT_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(3)]
        self._there = [torch.empty(SLOT_BYTES, dtype=torch.uint8, device=device) for _ in range(3)]
        self._row = torch.zeros((1, len(STATISTICS)), dtype=torch.float64, pin_memory=True)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # these are views of the pinned memory
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.x, self.y, self.out = (_view(side) for side in self._here)

    def submit(self, size_bytes: int, weight: float, dtype: DType, before: object | None) -> object:
        """See Slot."""
        assert before is None or isinstance(before, _Carried)
        with torch.cuda.stream(self._stream):
            for here, there in zip(self._here[:2], self._there[:2], strict=True):
                there[:size_bytes].copy_(here[:size_bytes], non_blocking=True)
            carried = _Carried(before, self._device)
            x, y, out = (there.data_ptr() for there in self._there)
            operands = Operands(x, y, out, size_bytes * 8 // dtype.bits, weight)
            blend_batch(self._launcher, [operands], dtype, carried.statistics)
            carried.ready.record()
            self._here[2][:size_bytes].copy_(self._there[2][:size_bytes], non_blocking=True)
            self._row.copy_(carried.statistics, non_blocking=True)
            self._done.record()
        return carried

    def wait(self) -> DifferenceStats:
        """See Slot."""
        self._done.synchronize()
        return from_row(self._row.tolist()[0])


def _view(pinned: Tensor) -> memoryview:
    return memoryview(pinned.numpy())  # type: ignore[arg-type]
