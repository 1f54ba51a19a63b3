"""The CUDA C++ backend: `csrc/src/gpu.cu`, through ctypes. The library loads without a driver; its launches say so."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import Backend, BackendUnavailable

if TYPE_CHECKING:
    import torch

LIBRARY = "liblswap_cuda.so"
_ABI = 1
_DTYPES = {name: number for number, name in enumerate(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))}


class CudaError(RuntimeError):
    """A launch that the driver or the device refused."""


class CudaLauncher:
    """See `lswap_core.kernels._device.Launcher`. Raises CudaError."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def tile_blocks(self, dtype: DType) -> int:
        """See Launcher."""
        return int(self._library.lswap_gpu_tile_blocks(_DTYPES[dtype.name]))

    def blend(
        self, records: torch.Tensor, tiles: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, dtype: DType, *, write: bool
    ) -> None:
        """See Launcher."""
        self._check(
            self._library.lswap_gpu_blend(
                _DTYPES[dtype.name], records.data_ptr(), tiles.data_ptr(), len(tiles), sums.data_ptr(), sums.shape[1],
                tallies.data_ptr(), write, _stream(records),
            )
        )  # fmt: skip

    def add_up(
        self, records: torch.Tensor, sums: torch.Tensor, tallies: torch.Tensor, statistics: torch.Tensor, dtype: DType
    ) -> None:
        """See Launcher."""
        self._check(
            self._library.lswap_gpu_add_up(
                _DTYPES[dtype.name], records.data_ptr(), len(records), sums.data_ptr(), sums.shape[1],
                tallies.data_ptr(), tallies.shape[1], statistics.data_ptr(), _stream(records),
            )
        )  # fmt: skip

    def blend_many(
        self, addresses: torch.Tensor, shares: torch.Tensor, out: torch.Tensor, elements: int, dtype: DType, *, aligned: bool
    ) -> None:
        """See Launcher."""
        self._check(
            self._library.lswap_gpu_blend_many(
                _DTYPES[dtype.name], addresses.data_ptr(), shares.data_ptr(), len(addresses), out.data_ptr(), elements,
                aligned, _stream(addresses),
            )
        )  # fmt: skip

    def cast(self, x: torch.Tensor, out: torch.Tensor, elements: int, source: DType, target: DType, *, aligned: bool) -> None:  # noqa: ARG002
        """See Launcher."""
        numbers = _DTYPES[source.name], _DTYPES[target.name]
        self._check(self._library.lswap_gpu_cast(*numbers, x.data_ptr(), out.data_ptr(), elements, _stream(x)))

    def _check(self, status: int) -> None:
        if status:
            raise CudaError(f"CUDA error {status}: {self._library.lswap_gpu_error(status).decode()}")


def load_launcher() -> CudaLauncher:
    """The kernels, for tensors that lie on the device. Raises BackendUnavailable where the library was not built."""
    return CudaLauncher(open_library(_found()))


def load() -> Backend:
    """The backend. Raises BackendUnavailable where the library was not built, torch is not installed, or there is no
    CUDA device.
    """
    launcher = load_launcher()
    try:
        from lswap_core.kernels import _device
    except ImportError as error:
        raise BackendUnavailable(f"{error.name} is not installed; `pip install lswap-core[gpu]` brings it") from error
    return _device.DeviceBackend(launcher, _device.cuda_device())


def open_library(path: Path) -> ctypes.CDLL:
    """The library at `path`. Raises BackendUnavailable where it does not load or is not this package's."""
    try:
        library = ctypes.CDLL(str(path))
        abi = library.lswap_gpu_abi()
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(f"{path} does not load: {error}") from error
    if abi != _ABI:
        raise BackendUnavailable(f"{path} has interface {abi}, expected {_ABI}; install the package anew")
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    for name, result, arguments in (
        ("error", ctypes.c_char_p, [i32]),
        ("tile_blocks", i32, [i32]),
        ("blend", i32, [i32, pointer, pointer, i64, pointer, i64, pointer, i32, pointer]),
        ("add_up", i32, [i32, pointer, i64, pointer, i64, pointer, i64, pointer, pointer]),
        ("blend_many", i32, [i32, pointer, pointer, i32, pointer, i64, i32, pointer]),
        ("cast", i32, [i32, i32, pointer, pointer, i64, pointer]),
    ):
        function = getattr(library, f"lswap_gpu_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _found() -> Path:
    # An editable install has the library in site-packages and the modules elsewhere; the package's path names both.
    places = [Path(place) for place in sys.modules[__package__].__path__]
    for place in places:
        if (place / LIBRARY).exists():
            return place / LIBRARY
    raise BackendUnavailable(
        f"{LIBRARY} is not in {' or '.join(map(str, places))}; it is built by `pip install` where nvcc is found"
    )


def _stream(table: torch.Tensor) -> int:
    if not table.is_cuda:  # an emulation
        return 0
    from torch import cuda

    return cuda.current_stream(table.device).cuda_stream
