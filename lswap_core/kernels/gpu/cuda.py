"""The CUDA C++ backend: `csrc/src/gpu.cu`, called with ctypes. The library loads without a driver; without one, launches
fail.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels import library
from lswap_core.kernels.backend import Backend, BackendUnavailable
from lswap_core.kernels.library import DTYPE_NUMBERS, Function, find_library

if TYPE_CHECKING:
    import torch

LIBRARY = "liblswap_cuda.so"
_ABI = 1


class CudaError(RuntimeError):
    """The driver or the device refused a launch."""


class CudaLauncher:
    """See `lswap_core.kernels.gpu.device.Launcher`. Raises CudaError."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def tile_blocks(self, dtype: DType) -> int:
        """See Launcher."""
        return int(self._library.lswap_gpu_tile_blocks(DTYPE_NUMBERS[dtype.name]))

    def blend(
        self, records: torch.Tensor, tiles: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, dtype: DType, *, write: bool
    ) -> None:
        """See Launcher."""
        self._check(
            self._library.lswap_gpu_blend(
                DTYPE_NUMBERS[dtype.name], records.data_ptr(), tiles.data_ptr(), len(tiles), sums.data_ptr(), sums.shape[1],
                tallies.data_ptr(), write, _stream(records),
            )
        )  # fmt: skip

    def add_up(
        self, records: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, statistics: torch.Tensor, dtype: DType
    ) -> None:
        """See Launcher."""
        self._check(
            self._library.lswap_gpu_add_up(
                DTYPE_NUMBERS[dtype.name], records.data_ptr(), len(records), sums.data_ptr(), sums.shape[1],
                tallies.data_ptr(), tallies.shape[1], statistics.data_ptr(), _stream(records),
            )
        )  # fmt: skip

    def blend_many(
        self, addresses: torch.Tensor, weights: torch.Tensor, out: torch.Tensor, elements: int, dtype: DType, *, aligned: bool
    ) -> None:
        """See Launcher."""
        self._check(
            self._library.lswap_gpu_blend_many(
                DTYPE_NUMBERS[dtype.name], addresses.data_ptr(), weights.data_ptr(), len(addresses), out.data_ptr(), elements,
                aligned, _stream(addresses),
            )
        )  # fmt: skip

    def cast(self, x: torch.Tensor, out: torch.Tensor, elements: int, source: DType, target: DType, *, aligned: bool) -> None:  # noqa: ARG002
        """See Launcher."""
        numbers = DTYPE_NUMBERS[source.name], DTYPE_NUMBERS[target.name]
        self._check(self._library.lswap_gpu_cast(*numbers, x.data_ptr(), out.data_ptr(), elements, _stream(x)))

    def _check(self, status: int) -> None:
        if status:
            raise CudaError(f"CUDA error {status}: {self._library.lswap_gpu_error(status).decode()}")


def load_launcher() -> CudaLauncher:
    """Return the launcher, for tensors in device memory. Raises BackendUnavailable where the library was not built."""
    return CudaLauncher(open_library(find_library(LIBRARY, built_with="nvcc")))


def load() -> Backend:
    """The backend. Raises BackendUnavailable where the library was not built, torch is not installed, or there is no
    CUDA device.
    """
    launcher = load_launcher()
    try:
        from lswap_core.kernels.gpu.device import DeviceBackend, cuda_device
    except ImportError as error:
        raise BackendUnavailable(f"{error.name} is not installed; `pip install lswap-core[gpu]` brings it") from error
    return DeviceBackend(launcher, cuda_device())


def open_library(path: Path) -> ctypes.CDLL:
    """Open the library at `path`. Raises BackendUnavailable where it does not load or belongs to another version of this
    package.
    """
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    functions: list[Function] = [
        ("error", ctypes.c_char_p, [i32]),
        ("tile_blocks", i32, [i32]),
        ("blend", i32, [i32, pointer, pointer, i64, pointer, i64, pointer, i32, pointer]),
        ("add_up", i32, [i32, pointer, i64, pointer, i64, pointer, i64, pointer, pointer]),
        ("blend_many", i32, [i32, pointer, pointer, i32, pointer, i64, i32, pointer]),
        ("cast", i32, [i32, i32, pointer, pointer, i64, pointer]),
    ]
    return library.open_library(path, prefix="lswap_gpu_", abi=_ABI, functions=functions)


def _stream(table: torch.Tensor) -> int:
    if not table.is_cuda:  # an emulated device
        return 0
    from torch import cuda

    return cuda.current_stream(table.device).cuda_stream
