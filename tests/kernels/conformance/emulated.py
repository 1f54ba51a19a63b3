"""The native kernels built for another processor and run under qemu, behind a pipe (csrc/tests/serve.cc)."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import Backend, BackendUnavailable, Bytes
from lswap_core.kernels.difference import DifferenceStats

CSRC = Path(__file__).parents[3] / "csrc"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread", "-static")
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
REQUEST = "<4i3Q2Ii3Id6d3Q3Q"
STATS = "<6d3Q"
ISA_RUNS, BLEND_STATS, BLEND_MANY, CAST, LOW_RANK = range(5)


def load_neon() -> Backend:
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    if shutil.which(compiler) is None:
        raise BackendUnavailable(f"there is no {compiler}")
    binary = _built(compiler, ("api", "files", "baseline"))
    if shutil.which(emulator) is None:
        raise BackendUnavailable(f"it compiles, but there is no {emulator} to run it")
    return Emulated([emulator, str(binary)])


def _built(compiler: str, sources: Sequence[str]) -> Path:
    """The server, kept in the temporary directory until a source changes."""
    files = [CSRC / "tests" / "serve.cc", *(CSRC / "src" / f"{name}.cc" for name in sources)]
    digest = hashlib.sha256(repr((compiler, FLAGS)).encode())
    for file in sorted(CSRC.rglob("*")):
        if file.suffix in (".cc", ".h"):
            digest.update(file.read_bytes())
    binary = Path(tempfile.gettempdir()) / f"lswap-serve-{os.getuid()}-{digest.hexdigest()[:16]}"
    if not binary.exists():
        made = binary.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *FLAGS, f"-I{CSRC / 'include'}", *map(str, files), "-o", str(made)], check=True)
        made.rename(binary)
    return binary


class Emulated:
    """A backend in another process, which ends when its pipe does."""

    def __init__(self, command: Sequence[str], *, isa: int = 0) -> None:
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._isa = isa
        runs, _, _ = self._ask(ISA_RUNS, 0, 0, (), 0, np.empty(0, np.uint8))
        if not runs:
            raise BackendUnavailable("the emulator has no such instructions")

    def blend_stats(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: Bytes, before: DifferenceStats
    ) -> DifferenceStats:
        return self._statistics(x, y, weight, dtype, out, before)

    def stats(self, x: Bytes, y: Bytes, dtype: DType, before: DifferenceStats) -> DifferenceStats:
        return self._statistics(x, y, 0, dtype, np.empty(0, np.uint8), before)

    def blend_many(self, inputs: Sequence[Bytes], weights: Sequence[float], dtype: DType, out: Bytes) -> None:
        count = out.nbytes * 8 // dtype.bits
        self._ask(BLEND_MANY, DTYPES.index(dtype.name), 0, inputs, count, out, weights=weights)

    def cast(self, x: Bytes, source: DType, out: Bytes, target: DType) -> None:
        count = x.nbytes * 8 // source.bits
        self._ask(CAST, DTYPES.index(source.name), DTYPES.index(target.name), (x,), count, out)

    def change_of(
        self, left: NDArray[np.float32], right: NDArray[np.float32], scale: float, *, first: int, count: int
    ) -> NDArray[np.float32]:
        sides = [np.frombuffer(np.ascontiguousarray(side).tobytes(), np.uint8) for side in (left, right)]
        longest = max(side.nbytes for side in sides)
        padded = [np.pad(side, (0, longest - side.nbytes)) for side in sides]
        change = np.empty(count, np.float32)
        self._ask(LOW_RANK, 0, 0, padded, count, change.view(np.uint8), weight=scale, matrix=(*right.shape, first))
        return change

    def _statistics(
        self, x: Bytes, y: Bytes, weight: float, dtype: DType, out: Bytes, before: DifferenceStats
    ) -> DifferenceStats:
        count = x.nbytes * 8 // dtype.bits
        fields = [before.sum_abs, before.sum_squares, before.max_abs, before.dot, before.x_squares, before.y_squares]
        counts = [before.differing, before.x_nonfinite, before.y_nonfinite]
        _, found, counted = self._ask(
            BLEND_STATS, DTYPES.index(dtype.name), 0, (x, y), count, out, weight=weight, stats=(*fields, *counts)
        )
        sum_abs, sum_squares, max_abs, dot, x_squares, y_squares = found
        return DifferenceStats(
            before.count + count, counted[0], sum_abs, sum_squares, max_abs, dot, x_squares, y_squares, *counted[1:]
        )

    def _ask(
        self,
        operation: int,
        dtype: int,
        target: int,
        inputs: Sequence[Bytes],
        count: int,
        out: Bytes,
        *,
        weight: float = 0,
        weights: Sequence[float] | None = None,
        stats: Sequence[float] = (0.0,) * 6 + (0,) * 3,
        matrix: Sequence[int] = (0, 0, 0),
    ) -> tuple[int, list[float], list[int]]:
        input_bytes = inputs[0].nbytes if inputs else 0
        off = [data.ctypes.data % 64 for data in inputs][:2]
        off += [0] * (2 - len(off))
        every = list(weights or [0.0] * len(inputs))
        request = struct.pack(
            REQUEST, operation, self._isa, dtype, target, count, input_bytes, out.nbytes, len(inputs), 2, 0,
            *off, out.ctypes.data % 64, weight, *stats, *matrix,
        )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(request + struct.pack(f"<{len(every)}d", *every))
        for data in inputs:
            self._server.stdin.write(data.tobytes())
        self._server.stdin.flush()
        answer = self._server.stdout.read(4 + struct.calcsize(STATS) + out.nbytes)
        if len(answer) != 4 + struct.calcsize(STATS) + out.nbytes:
            raise AssertionError(f"the server ended with status {self._server.wait()}; 3: it wrote outside its buffer")
        status = struct.unpack_from("<i", answer)[0]
        found = struct.unpack_from(STATS, answer, 4)
        out[:] = np.frombuffer(answer, np.uint8, offset=4 + struct.calcsize(STATS))
        assert operation == ISA_RUNS or status == 0
        return status, list(found[:6]), list(found[6:])
