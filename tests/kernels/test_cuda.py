"""The CUDA source, without a GPU: compiled for the oldest and the newest generation (LSWAP_LONG: three), and loaded without a
driver.

What it computes is tested in tests/kernels/conformance, where it runs in an emulation on the CPU.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lswap_core import kernels
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.kernels.gpu import cuda
from tests.emulated_cuda import INCLUDE, SOURCE

CAPABILITIES = (80, 90, 100) if os.environ.get("LSWAP_LONG") else (80, 100)
HOT = "blend_tiles"


@dataclass
class Built:
    library: Path
    folder: Path
    log: str

    def ptx(self, capability: int) -> str:
        return (self.folder / f"gpu.compute_{capability}.ptx").read_text()

    def functions(self, capability: int, ptx: str) -> dict[str, str]:
        """Bodies by (mangled) name."""
        parts = re.split(r"\.visible \.entry |\.entry ", ptx)[1:]
        return {part.split("(", 1)[0]: part for part in parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("cuda")
    targets = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in CAPABILITIES]
    warnings = ["--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra"]
    options = ["-std=c++17", "-O3", "--fmad=false", "-shared", "-cudart=static", "-Xcompiler=-fPIC", "--threads=2"]
    kept = ["--keep", f"--keep-dir={folder}", "-Xptxas=-v"]
    made = folder / "liblswap_cuda.so"
    run = subprocess.run(
        [nvcc, *options, *warnings, *targets, *kept, "-I", INCLUDE, SOURCE, "-o", made], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return Built(made, folder, run.stdout + run.stderr)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_hot_path_loads_and_stores_16_bytes(built: Built, capability: int) -> None:
    hot = {n: body for n, body in built.functions(capability, built.ptx(capability)).items() if HOT in n}
    assert len(hot) == 12  # six dtypes, with and without out
    for name, body in hot.items():
        loads, stores = body.count("ld.global.cs.v4.u32"), body.count("st.global.cs.v4.u32")
        assert loads in ((2 * stores,) if stores else (2, 4, 8)), name


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nothing_is_contracted_or_flushed(built: Built, capability: int) -> None:
    ptx = built.ptx(capability)
    assert f".target sm_{capability}" in ptx
    assert not re.search(r"\bfma\.|\.ftz", ptx)
    assert not re.findall(r"\b(?:mul|add|sub)\.f(?:32|64)", ptx), "ptxas may contract what says no rounding"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_register_is_spilt(built: Built, capability: int) -> None:
    spills = re.findall(rf"for 'sm_{capability}'\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", built.log)
    assert len(spills) >= 12
    assert all(stores == loads == "0" for _, stores, loads in spills)
    hot = re.findall(rf"entry function '\S*{HOT}\S*' for 'sm_{capability}'\n.*\n\s*(\d+) bytes stack frame", built.log)
    assert set(hot) == {"0"}


def test_the_library_loads_without_a_driver_and_a_launch_says_what_is_missing(built: Built) -> None:
    launcher = cuda.CudaLauncher(cuda.open_library(built.library))
    assert launcher.tile_blocks(DTYPES["BF16"]) == 16
    if ctypes.util.find_library("cuda"):
        pytest.skip("there is a driver")
    table = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(cuda.CudaError, match=r"CUDA error 35: CUDA driver version is insufficient"):
        launcher.cast(table, table, 8, DTYPES["F32"], DTYPES["BF16"], aligned=True)


def test_a_library_of_another_interface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(kernels.BackendUnavailable, match=r"none\.so does not load"):
        cuda.open_library(tmp_path / "none.so")


def test_without_a_device_the_reason_is_given() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(kernels.BackendUnavailable, match=r"'cuda' is not available; .*cuda is not \((no CUDA device|lib)"):
        kernels.stats(bytes(4), bytes(4), dtype="F32", backend="cuda")
