"""The CUDA source, compiled for this machine's CPU: `tests/emulation` stands in for CUDA's headers."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from lswap_core.kernels.backend import Backend, BackendUnavailable
from lswap_core.kernels.gpu import cuda
from lswap_core.kernels.gpu.device import DeviceBackend

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "csrc/src/gpu.cu"
INCLUDE = ROOT / "csrc/include"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


@cache
def emulated_library() -> Path:
    """The library. Raises BackendUnavailable where there is no C++ compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise BackendUnavailable("there is no g++ to compile the emulation with")
    folder = Path(tempfile.mkdtemp(prefix="lswap-emulated-"))
    atexit.register(shutil.rmtree, folder)
    made = folder / "liblswap_cuda_emulated.so"
    # Types are punned through pointers as CUDA allows.
    options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", *WARNINGS]
    where = ["-I", Path(__file__).parent / "emulation", "-I", INCLUDE]
    subprocess.run([compiler, "-x", "c++", *options, *where, SOURCE, "-o", made], check=True)
    return made


def load() -> Backend:
    library = cuda.open_library(emulated_library())
    return DeviceBackend(cuda.CudaLauncher(library), torch.device("cpu"))
