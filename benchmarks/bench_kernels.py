"""How fast the kernels blend, with statistics, beside a plain copy of memory and beside torch and numpy.

    python benchmarks/bench_kernels.py [--dtype BF16] [--mib 64] [--rounds 9] [--skip NAME ...] [--cpu] [--json FILE]

Nothing is timed before the native kernels have given the reference's bytes and statistics on these very operands. Every
round runs every contender once, in turn, so that a busy machine slows them all; speeds are medians over the rounds, and
ratios medians of each round's. GB/s are bytes read and written: three operands for a blend, two for memcpy. Operands are
aligned to 64 bytes, as torch aligns them. With --cpu, one thread only is measured, in processor time, which what else runs
on the machine disturbs less than it does wall time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.kernels import native, reference
from lswap_core.kernels.backend import Backend, Bytes
from lswap_core.kernels.difference import DifferenceStats

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
WEIGHT = 0.3
CHUNK_ELEMENTS = 64 * 1024  # what suits torch and numpy best: their temporaries stay in the L2 cache
Work = Callable[[], object]


@dataclass(frozen=True)
class Operands:
    """x, y and out as bytes; x and y hold what weights look like."""

    dtype: str
    x: Bytes
    y: Bytes
    out: Bytes

    @classmethod
    def make(cls, dtype: str, size_bytes: int) -> Operands:
        rng = np.random.default_rng(1)
        count = size_bytes * 8 // DTYPES[dtype].bits
        sides = [(rng.standard_normal(count, np.float32) * 0.05).view(np.uint8) for _ in range(2)]
        made = [aligned(size_bytes) for _ in range(3)]
        for side, to in zip(sides, made, strict=False):
            reference.cast(side, DTYPES["F32"], to, DTYPES[dtype])
        made[2].fill(1)
        return cls(dtype, *made)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, y, out = (torch.from_numpy(side).view(TORCH[self.dtype]) for side in (self.x, self.y, self.out))
        return x, y, out


@dataclass(frozen=True)
class Result:
    """One contender. seconds: of each round. gb_per_s: None where it could not run; `note` says why."""

    name: str
    threads: int
    seconds: list[float]
    moved_bytes: int
    note: str = ""

    @property
    def gb_per_s(self) -> float | None:
        return self.moved_bytes / median(self.seconds) / 1e9 if self.seconds else None

    def times_as_fast_as(self, other: Result) -> float:
        rounds = zip(self.seconds, other.seconds, strict=True)
        return median(self.moved_bytes / mine / (other.moved_bytes / theirs) for mine, theirs in rounds)


def aligned(size_bytes: int) -> Bytes:
    whole = np.empty(size_bytes + 64, np.uint8)
    begin = -whole.ctypes.data % 64
    return whole[begin : begin + size_bytes]


def copy_memory(o: Operands, threads: int) -> Work:
    copy = ctypes.CDLL(None).memcpy
    copy.argtypes, copy.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_void_p
    cuts = [o.x.nbytes * part // threads for part in range(threads + 1)]
    source, target = o.x.ctypes.data, o.out.ctypes.data
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda at: copy(target + at[0], source + at[0], at[1] - at[0]), pairwise(cuts)))


def blend_natively(o: Operands, threads: int) -> Work:
    return lambda: native.load(threads=threads).blend_stats(o.x, o.y, WEIGHT, DTYPES[o.dtype], o.out, DifferenceStats())


def blend_in_numpy(o: Operands, _threads: int) -> Work:
    def work() -> DifferenceStats:
        size, so_far = CHUNK_ELEMENTS * DTYPES[o.dtype].bits // 8, DifferenceStats()
        for at in range(0, o.x.nbytes, size):
            part = slice(at, at + size)
            so_far = reference.blend_stats(o.x[part], o.y[part], WEIGHT, DTYPES[o.dtype], o.out[part], so_far)
        return so_far

    return work


def torch_obvious(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> list[torch.Tensor]:
    """What one writes first: lerp, then one reduction after the other over fp32 copies."""
    out.copy_(torch.lerp(x.float(), y.float(), WEIGHT))
    a, b = x.float(), y.float()
    d = b - a
    finite = torch.isfinite(a) & torch.isfinite(b)
    sums = [d.abs().sum(), (d * d).sum(), d.abs().max(), (a * b).sum(), (a * a).sum(), (b * b).sum()]
    return [*sums, (x != y).sum(), (~finite).sum()]


def blend_in_torch(o: Operands, threads: int) -> Work:
    x, y, out = o.tensors()

    def work() -> object:
        torch.set_num_threads(threads)
        return torch_obvious(x, y, out)

    return work


def blend_in_tuned_torch(o: Operands, threads: int) -> Work:
    """Chunks that stay in the cache, buffers made once, `out=` everywhere, and of each reduction the fastest form: torch's
    own lerp, dot products, and differing values instead of differing bits, which spares it the comparison.
    """
    x, y, out = o.tensors()
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    buffers = [torch.empty(CHUNK_ELEMENTS, dtype=kind) for _ in range(4)]

    def work() -> list[float]:
        torch.set_num_threads(threads)
        totals, largest = [0.0] * 6, 0.0
        for at in range(0, x.numel(), CHUNK_ELEMENTS):
            part = slice(at, at + CHUNK_ELEMENTS)
            a, b, mixed, d = (buffer[: x[part].numel()] for buffer in buffers)
            a.copy_(x[part])
            b.copy_(y[part])
            torch.lerp(a, b, WEIGHT, out=mixed)
            out[part].copy_(mixed)
            torch.sub(b, a, out=d)
            magnitude = torch.abs(d, out=mixed)
            sums = (magnitude.sum(), torch.dot(d, d), torch.dot(a, b), torch.dot(a, a), torch.dot(b, b), torch.count_nonzero(d))
            totals = [total + float(value) for total, value in zip(totals, sums, strict=True)]
            largest = max(largest, float(torch.amax(magnitude, 0)))
        return [*totals, largest]

    return work


def blend_in_compiled_torch(o: Operands, threads: int) -> Work:
    x, y, out = o.tensors()
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    compiled = torch.compile(torch_obvious, fullgraph=True, dynamic=False)
    compiled(x, y, out)  # compiles for this number of threads

    def work() -> object:
        torch.set_num_threads(threads)
        return compiled(x, y, out)

    return work


CONTENDERS: dict[str, Callable[[Operands, int], Work]] = {
    "memcpy": copy_memory,
    "native": blend_natively,
    "torch, tuned": blend_in_tuned_torch,
    "torch.compile": blend_in_compiled_torch,
    "torch, obvious": blend_in_torch,
    "numpy, chunked": blend_in_numpy,
}
OPTIONAL = tuple(CONTENDERS)[2:]
"""Those that may be left out. What is measured, and what it is compared to first, may not."""


def gate(o: Operands) -> None:
    """Exit unless the native kernels are right on these operands."""
    outs = [np.full_like(o.out, fill) for fill in (0x5A, 0xA5)]
    backends: list[Backend] = [reference.load(), native.load(threads=2, large_from_bytes=0)]
    found = [
        backend.blend_stats(o.x, o.y, WEIGHT, DTYPES[o.dtype], out, DifferenceStats())
        for backend, out in zip(backends, outs, strict=True)
    ]
    if found[0] != found[1] or not np.array_equal(*outs):
        sys.exit(f"the native kernels are wrong on {o.dtype}: nothing was measured")


def measure(o: Operands, threads: int, rounds: int, skip: set[str], clock: Callable[[], float]) -> Iterator[Result]:
    works: dict[str, Work] = {}
    notes: dict[str, str] = {}
    for name, make in CONTENDERS.items():
        if name in skip:
            continue
        try:
            works[name] = make(o, threads)
            works[name]()
        except (RuntimeError, NotImplementedError) as error:  # torch lacks some operations on fp8
            if name not in OPTIONAL:
                raise
            works.pop(name, None)
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begin = clock()
            work()
            seconds[name].append(clock() - begin)
    for name in CONTENDERS:
        if name in works or name in notes:
            moved = (2 if name == "memcpy" else 3) * o.x.nbytes
            yield Result(name, threads, seconds.get(name, []), moved, notes.get(name, ""))


def table(dtype: str, results: list[Result]) -> str:
    lines = [f"| {dtype} | threads | GB/s | of memcpy | native is faster by |", "|---|---|---|---|---|"]
    for r in results:
        same = {other.name: other for other in results if other.threads == r.threads}
        if r.gb_per_s is None:
            lines.append(f"| {r.name} | {r.threads} | not run: {r.note} | | |")
            continue
        times = "" if r.name in ("memcpy", "native") else f"{same['native'].times_as_fast_as(r):.1f} x"
        share = r.times_as_fast_as(same["memcpy"])
        lines.append(f"| {r.name} | {r.threads} | {r.gb_per_s:.2f} | {share:.0%} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", action="append", choices=list(TORCH), help="may be repeated; BF16 unless given")
    parser.add_argument("--mib", type=int, default=64, help="MiB of each operand")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--skip", action="append", choices=OPTIONAL, default=[])
    parser.add_argument("--cpu", action="store_true", help="one thread, in processor time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    processors = len(os.sched_getaffinity(0))
    clock = time.process_time if options.cpu else time.perf_counter
    record: dict[str, object] = {"machine": platform.processor() or platform.machine(), "processors": processors}
    for dtype in options.dtype or ["BF16"]:
        operands = Operands.make(dtype, options.mib << 20)
        gate(operands)
        results = [
            result
            for threads in dict.fromkeys((1,) if options.cpu else (1, processors))
            for result in measure(operands, threads, options.rounds, set(options.skip), clock)
        ]
        print(table(dtype, results), end="\n\n", flush=True)
        record[dtype] = [asdict(result) | {"gb_per_s": result.gb_per_s} for result in results]
    if options.json:
        options.json.write_text(json.dumps(record | {"mib": options.mib, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
