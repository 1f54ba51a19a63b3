"""What part of a merge the kernels take: time in `blend_stats`, summed over the threads, beside the wall time.

    python benchmarks/make_experts.py pair --shape 1b
    python benchmarks/bench_share.py pair [--bottom 4] [--top 2] [--transition 2] [--rounds 5] [--workers N]

merges pair/math and pair/lang (2.5 GB each in the shape of Llama 3.2 1B, bf16) into pair/out, over and over, with the
experts in the page cache, where copying is fastest and the kernels' part largest. Before any of these merges is timed,
one is made and held against the numpy reference: every blended tensor's digest and statistics; and `verify` derives all
the other bytes again. Medians over the rounds. Time within a call counts in full even where the thread was not running.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import lswap_core as library
from lswap_core import LayerSwap, kernels, lay_out, open_checkpoint
from lswap_core.checkpoint.catalogue import Checkpoint, Role
from lswap_core.engine.evaluate import Evaluator
from lswap_core.io.digests import Digest
from lswap_core.io.threads import default_workers
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import Plan
from lswap_core.recipe.expressions import Blend
from lswap_core.sources.local import LocalSource


class Reference:
    """The kernels in numpy."""

    blend_stats = staticmethod(partial(kernels.blend_stats, backend="reference"))
    cast = staticmethod(partial(kernels.cast, backend="reference"))


class Stopwatch:
    """Stands in for `kernels.blend_stats`, and keeps the seconds and the bytes of every call."""

    def __init__(self) -> None:
        self._inner = kernels.blend_stats
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.moved_bytes: list[int] = []

    def __call__(self, x: memoryview, y: memoryview, weight: float, **more: Any) -> DifferenceStats:
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        found = self._inner(x, y, weight, **more)
        self.cpu_seconds.append(time.thread_time() - cpu_begin)  # append holds the interpreter's lock
        self.seconds.append(time.perf_counter() - begin)
        self.moved_bytes.append(3 * len(x))
        return found


@dataclass(frozen=True)
class Round:
    """Seconds of one merge: on the wall, in the kernels (all threads), and those in which a processor worked on them; and
    in which a processor worked on any of it.
    """

    wall: float
    cpu: float
    kernels: float
    kernels_cpu: float
    moved_bytes: int


def gate(plan: Plan, manifest: Manifest, experts: dict[Role, Checkpoint], out: Path) -> int:
    """How many tensors are blended; exit where a byte or a statistic is wrong."""
    blended = 0
    with LocalSource(experts) as source:
        reference = Evaluator(source, Reference())
        for step in plan.steps:
            if not isinstance(step.made_of, Blend):
                continue
            digest, statistics = Digest(), DifferenceStats()
            for chunk in reference.chunks(step.made_of):
                digest.update(chunk.data)
                statistics = chunk.statistics
            record = manifest.tensors[step.name]
            if (record.digest, record.statistics) != (digest.text(), statistics):
                sys.exit(f"{step.name} is not what the reference makes of it: nothing was measured")
            blended += 1
    library.verify(out, locations={role: expert.location for role, expert in experts.items()})
    return blended


def timed_merge(plan: Plan, out: Path, workers: int | None) -> Round:
    shutil.rmtree(out)
    watch = Stopwatch()
    with mock.patch.object(kernels, "blend_stats", watch):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        library.execute(plan, into=out, workers=workers)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
    return Round(wall, cpu, sum(watch.seconds), sum(watch.cpu_seconds), sum(watch.moved_bytes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", type=Path, help="directory with math and lang; out is made beside them, and removed")
    for name, default in (("bottom", 4), ("top", 2), ("transition", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    experts: dict[Role, Checkpoint] = {
        "math": open_checkpoint(options.pair / "math", role="math"),
        "lang": open_checkpoint(options.pair / "lang", role="lang"),
    }
    recipe = LayerSwap(bottom=options.bottom, top=options.top, transition=options.transition)
    plan, out = lay_out(recipe.draft(math=experts["math"], lang=experts["lang"])), options.pair / "out"
    blended = gate(plan, library.execute(plan, into=out), experts, out)
    rounds = [timed_merge(plan, out, options.workers) for _ in range(options.rounds)]
    shutil.rmtree(out)
    total = sum(file.header.file_size for file in plan.files)
    workers = options.workers or default_workers(writing=True)
    print(f"{total / 1e9:.2f} GB out, {blended} tensors blended, {workers} workers; medians of {len(rounds)} rounds")
    walls, moved = [r.wall for r in rounds], [r.moved_bytes for r in rounds]
    work = median(r.kernels_cpu / r.cpu for r in rounds)
    spent = {"in blend_stats": [r.kernels for r in rounds], "on a processor": [r.kernels_cpu for r in rounds]}
    for what, seconds in spent.items():
        share = median(mine / wall for mine, wall in zip(seconds, walls, strict=True))
        speed = median(bytes_ / mine for bytes_, mine in zip(moved, seconds, strict=True)) / 1e9
        print(f"{what:>15}: {median(seconds):.3f} s of {median(walls):.3f} s wall")
        print(f"{'':>15}  {share:.1%} of it, {share / workers:.1%} of all threads' time, {speed:.1f} GB/s read and written")
    print(f"{work:.1%} of the processor time of the merge, {median(r.cpu for r in rounds):.3f} s, is the kernels'")


if __name__ == "__main__":
    main()
