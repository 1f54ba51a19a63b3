from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What makes system calls fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the failing disk with")
    library = tmp_path_factory.mktemp("shim") / "faulty.so"
    source = Path(__file__).with_name("faulty.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return str(library)


def fault(shim: str, call: str, path: str, skip: int, error: int) -> dict[str, str]:
    """The environment of a process whose calls fail, or with error 0, stop it."""
    return {"LD_PRELOAD": shim, "FAULT_CALL": call, "FAULT_PATH": path, "FAULT_SKIP": str(skip), "FAULT_ERRNO": str(error)}
