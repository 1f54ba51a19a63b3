"""The Triton kernels, without a GPU: compiled for the oldest and the newest generation (LSWAP_LONG: three), and run by the
interpreter. Each in a process of its own, since Triton decides between the two when kernels are defined.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lswap_core import kernels
from tests.build import HANG_SECONDS, unmeasured
from tests.compiled_triton import WIDTHS

ROOT = Path(__file__).parent.parent.parent
TARGETS = ("sm_80", "sm_90", "sm_100") if os.environ.get("LSWAP_LONG") else ("sm_80", "sm_100")
WIDE_LOAD = re.compile(r"ld\.global\.\S*evict_first\S*(v4\.b32|v2\.b64)")
WIDE_STORE = re.compile(r"st\.global\.\S*evict_first\S*(v4\.b32|v2\.b64)")
HALVES = ("(F8 or F64)", "not (F8 or F64)")


@dataclass
class Running:
    """A process under way; `output` waits for it."""

    process: subprocess.Popen[str]
    said: str | None = None

    def output(self) -> str:
        if self.said is None:
            self.said, _ = self.process.communicate(timeout=HANG_SECONDS)
        return self.said


def start(*arguments: str | Path, **environment: str) -> Running:
    command = [sys.executable, "-m", *map(str, arguments)]
    known = {name: value for name, value in unmeasured().items() if name != "TRITON_INTERPRET"}
    return Running(
        subprocess.Popen(command, cwd=ROOT, env=known | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    )


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """All of them at once, so that they share the processors."""
    pytest.importorskip("triton", reason="Triton is not installed")
    suite = ("pytest", "tests/kernels/conformance/test_conformance.py", "tests/kernels/conformance/test_batch.py")
    quiet = ("-q", "-p", "no:cacheprovider")
    started = {half: start(*suite, "-k", f"triton and {half}", *quiet, TRITON_INTERPRET="1") for half in HALVES}
    folder = tmp_path_factory.mktemp("compiled")
    for target in TARGETS:
        (folder / target).mkdir()
        cache = str(folder / "cache")
        started[target] = start("tests.compiled_triton", target, folder / target, TRITON_CACHE_DIR=cache)
    yield started
    for running in started.values():
        running.process.kill()
        running.process.wait()


def ptx_of(running: Running) -> dict[str, str]:
    report = compiled(running)
    return {name: Path(entry["ptx"]).read_text() for name, entry in report.items()}


def compiled(running: Running) -> dict[str, dict[str, object]]:
    said = running.output()
    assert running.process.returncode == 0, said
    found: dict[str, dict[str, object]] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_the_hot_path_loads_and_stores_16_bytes(processes: dict[str, Running], target: str) -> None:
    found = ptx_of(processes[target])
    for dtype in WIDTHS:
        loads, stores = WIDE_LOAD.findall(found[f"tile-{dtype}"]), WIDE_STORE.findall(found[f"tile-{dtype}"])
        assert len(loads) == 2 * len(stores) >= 2, dtype


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_contracted_or_flushed(processes: dict[str, Running], target: str) -> None:
    for name, ptx in ptx_of(processes[target]).items():
        assert f".target {target}" in ptx
        assert "fma" not in ptx, name
        assert ".ftz" not in ptx, name
        assert not re.findall(r"\b(?:mul|add|sub)\.f(?:32|64)", ptx), f"{name}: ptxas may contract what says no rounding"


@pytest.mark.parametrize("target", TARGETS)
def test_no_register_is_spilt(processes: dict[str, Running], target: str) -> None:
    for name, entry in compiled(processes[target]).items():
        assert (entry["STACK"], entry["LOCAL"]) == (0, 0), f"{name}: {entry}"


@pytest.mark.parametrize("half", HALVES)
def test_conformance_in_the_interpreter(processes: dict[str, Running], half: str) -> None:
    said = processes[half].output()
    assert processes[half].process.returncode == 0, said
    assert int(re.findall(r"(\d+) passed", said)[-1]) > 40, said
    reasons = set(re.findall(r"SKIPPED \[\d+\] \S+ (.*)", said))
    assert reasons <= {"slow backends get a share of the cases"}, said


def test_without_a_device_the_reason_is_given() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("there is a device, or the interpreter")
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.raises(kernels.BackendUnavailable, match=r"'triton' is not available; .*triton is not \(no CUDA device\)"):
        kernels.stats(bytes(4), bytes(4), dtype="F32", backend="triton")
