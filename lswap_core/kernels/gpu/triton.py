"""The Triton backend. Its kernels run on a CUDA device, or in Triton's interpreter where TRITON_INTERPRET=1.

Triton reads that variable when the kernels are defined, so one process has one of the two.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import Backend, BackendUnavailable
from lswap_core.kernels.difference import BLOCK_ELEMENTS

if TYPE_CHECKING:
    import torch

TILE_BLOCKS = {1: 8, 2: 16, 4: 16, 8: 8}
"""Blocks in a tile, by the bytes of an element. Each thread of the one warp has 8 lanes of 16-bit elements, which is one
load. Not measured on a GPU. Compiled by Triton 3.9 for sm_90, bf16 takes 168 registers and spills none. So 12 warps with 128
bytes of x and y in flight per thread are 48 KiB per multiprocessor, where 4.3 TB/s at 1 us need 32. The loop has 34.4 machine
instructions per bf16 element (31.6 F16, 22.9 F32); copying at 4.3 TB/s leaves an H200 time for 46.7."""
ROWS = {1: 4, 2: 4, 4: 2, 8: 1}
"""Rows of 16 elements that are loaded at once: 128 bytes of a block, a whole cache line (64 of fp8). Not measured."""
CAREFUL_ROWS = 1
"""The same in the careful walk, which is rare. With 4, the careful walk would set the number of registers (220 for bf16)."""
WARPS = 1
"""One warp per tile: it shares nothing with other warps and waits for none. Not measured."""
INTERPRETED_BLOCKS = 64
"""Blocks in a tile, and in a chunk, in the interpreter, whose time depends on the number of operations, not of elements."""
CHUNK = 1024
"""Elements per program of the element-wise kernels, and partial sums that are loaded at once. Not measured."""


class TritonLauncher:
    """See `lswap_core.kernels.gpu.device.Launcher`."""

    def __init__(self, *, interpreted: bool) -> None:
        from lswap_core.kernels.gpu import triton_blend, triton_elementwise

        self._kernels: ModuleType = triton_blend
        self._elementwise: ModuleType = triton_elementwise
        self.interpreted = interpreted
        self._chunk = INTERPRETED_BLOCKS * BLOCK_ELEMENTS if interpreted else CHUNK

    def tile_blocks(self, dtype: DType) -> int:
        """See Launcher."""
        return INTERPRETED_BLOCKS if self.interpreted else TILE_BLOCKS[dtype.bits // 8]

    def blend(
        self, records: torch.Tensor, tiles: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, dtype: DType, *, write: bool
    ) -> None:
        """See Launcher."""
        blocks, rows = self.tile_blocks(dtype), ROWS[dtype.bits // 8]
        launch = self._kernels.tile_kernel[(len(tiles),)]
        with np.errstate(all="ignore"):  # the interpreter computes with numpy
            launch(
                records, tiles, sums, tallies, sums.shape[1], dtype.name, blocks, rows,
                rows if self.interpreted else CAREFUL_ROWS, write,
                num_warps=WARPS, enable_fp_fusion=False,
            )  # fmt: skip

    def add_up(
        self, records: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, statistics: torch.Tensor, dtype: DType
    ) -> None:
        """See Launcher."""
        launch = self._kernels.totals_kernel[statistics.shape]
        tile = self.tile_blocks(dtype) * BLOCK_ELEMENTS
        with np.errstate(all="ignore"):
            launch(records, sums, tallies, statistics, sums.shape[1], tallies.shape[1], tile, CHUNK, enable_fp_fusion=False)

    def blend_many(
        self, addresses: torch.Tensor, weights: torch.Tensor, out: torch.Tensor, elements: int, dtype: DType, *, aligned: bool
    ) -> None:
        """See Launcher."""
        launch = self._elementwise.blend_many_kernel[(-(-elements // self._chunk),)]
        with np.errstate(all="ignore"):
            launch(addresses, weights, out, elements, len(addresses), dtype.name, self._chunk, aligned, enable_fp_fusion=False)

    def cast(self, x: torch.Tensor, out: torch.Tensor, elements: int, source: DType, target: DType, *, aligned: bool) -> None:
        """See Launcher."""
        launch = self._elementwise.cast_kernel[(-(-elements // self._chunk),)]
        with np.errstate(all="ignore"):
            launch(x, out, elements, source.name, target.name, self._chunk, aligned, enable_fp_fusion=False)


def load_launcher() -> TritonLauncher:
    """Return the launcher, for tensors in device memory. Raises BackendUnavailable where Triton is not installed."""
    try:
        from triton import knobs

        return TritonLauncher(interpreted=bool(knobs.runtime.interpret))
    except ImportError as error:
        raise BackendUnavailable(f"{error.name} is not installed; `pip install lswap-core[gpu]` brings it") from error


def load() -> Backend:
    """The backend. Raises BackendUnavailable where torch or Triton is not installed, or there is no CUDA device."""
    try:
        from torch import device

        from lswap_core.kernels.gpu.device import DeviceBackend, cuda_device
    except ImportError as error:
        raise BackendUnavailable(f"{error.name} is not installed; `pip install lswap-core[gpu]` brings it") from error
    launcher = load_launcher()
    return DeviceBackend(launcher, device("cpu") if launcher.interpreted else cuda_device())
