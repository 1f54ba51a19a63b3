"""How fast the GPU kernels blend tensors that lie on the device, beside a copy of as many bytes.

    python benchmarks/bench_gpu.py [--elements 536870912] [--repeats 50]

For each case: correctness first (bytes and statistics of the reference; nothing is timed otherwise), then the 20th, 50th
and 80th percentile of the time of a call, by CUDA events, and what part of the measured copy bandwidth its bytes (both
operands read, one written) come to. Operands are rotated, so that none is in the cache when its turn comes. Last, the
way from host memory to host memory through pinned slots, beside the CPU: what `--device auto` should go by.

Needs a CUDA device; without one it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lswap_core import kernels
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.kernels import reference
from lswap_core.kernels.backend import BackendUnavailable
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.kernels.gpu import cuda, triton
from lswap_core.kernels.gpu.batch import STATISTICS, Operands, from_row
from lswap_core.kernels.gpu.device import DeviceBackend, Launcher, blend_batch

CACHE_BYTES = 256 << 20
"""Operands that come to more than this between two uses of one are out of any L2 (H200: 60 MB, B200: 126 MB)."""
TORCH = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
LAYER_8B = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336), (4096,), (4096,)]
"""The tensors of a Llama 8B layer."""


@dataclass
class Case:
    """x, y and out of every tensor of a batch."""

    dtype: str
    x: list[Tensor]
    y: list[Tensor]
    out: list[Tensor]

    @property
    def moved_bytes(self) -> int:
        return 3 * sum(side.numel() * side.element_size() for side in self.x)

    def operands(self, *, write: bool = True) -> list[Operands]:
        return [
            Operands(x.data_ptr(), y.data_ptr(), out.data_ptr() if write else 0, x.numel(), 0.3)
            for x, y, out in zip(self.x, self.y, self.out, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 29, help="in the large cases (default: 0.5 G)")
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu: no CUDA device here; nothing was measured")
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    launchers = available_launchers()
    for name, launcher in launchers.items():
        for dtype in TORCH:
            gate(name, launcher, dtype, torch.device("cuda"))
    copy_bytes_s = copy_bandwidth(arguments.elements * 2, arguments.repeats)
    print(f"copy: {copy_bytes_s / 1e12:.3f} TB/s, read and written")
    for name, launcher in launchers.items():
        for what, make in cases(arguments.elements).items():
            sets = rotation(make)
            report(f"{name}, {what}", sets, launching(launcher, sets), arguments.repeats, copy_bytes_s)
    sets = rotation(lambda: random_case("BF16", [(arguments.elements,)]))
    report("torch.lerp, no statistics", sets, lerp(sets), arguments.repeats, copy_bytes_s)
    for name, launcher in launchers.items():
        host_to_host(name, launcher, arguments.elements // 4)


def available_launchers() -> dict[str, Launcher]:
    """Those whose backends load; says why others do not."""
    found: dict[str, Launcher] = {}
    for name, module in (("triton", triton), ("cuda", cuda)):
        try:
            backend = module.load()
        except BackendUnavailable as reason:
            print(f"{name}: {reason}")
        else:
            assert isinstance(backend, DeviceBackend)
            found[name] = backend.launcher
    return found


def gate(name: str, launcher: Launcher, dtype: str, device: torch.device) -> None:
    """Exits where bytes or statistics are not the reference's, on weights, on any bits, and at every alignment."""
    rng = np.random.default_rng(0)
    kind, width = DTYPES[dtype], DTYPES[dtype].bits // 8
    for off, count in ((0, 1_000_003), (1, 70_001), (0, 5)):
        weights = torch.from_numpy(rng.standard_normal((2, count)) * 0.05).to(TORCH[dtype])
        ordinary = [side.contiguous().view(torch.uint8).numpy() for side in weights]
        anything = [rng.integers(0, 256, count * width, np.uint8) for _ in range(2)]
        for x, y in (ordinary, anything):
            rooms = [torch.full((x.size + 16,), 0xA5, dtype=torch.uint8, device=device) for _ in range(3)]
            here = [room[off * width : off * width + x.size] for room in rooms]
            for room, side in zip(here, (x, y), strict=False):
                room.copy_(torch.from_numpy(side))
            statistics = torch.zeros((1, len(STATISTICS)), dtype=torch.float64, device=device)
            at_x, at_y, at_out = (room.data_ptr() for room in here)
            blend_batch(launcher, [Operands(at_x, at_y, at_out, count, 0.3)], kind, statistics)
            expected = np.empty_like(x)
            told = reference.blend_stats(x, y, 0.3, kind, expected, DifferenceStats())
            found = from_row(statistics.tolist()[0])
            if not np.array_equal(here[2].cpu().numpy(), expected) or found.to_json() != told.to_json():
                raise SystemExit(f"bench_gpu: {name} differs from the reference in {dtype}; nothing was measured")
    print(f"{name}, {dtype}: bytes and statistics are the reference's")


def random_case(dtype: str, shapes: Sequence[tuple[int, ...]]) -> Case:
    """Two experts of one base: y is x and a little."""
    x = [(torch.randn(shape, device="cuda") * 0.02).to(TORCH[dtype]) for shape in shapes]
    y = [(side.float() + 0.001 * torch.randn_like(side, dtype=torch.float32)).to(TORCH[dtype]) for side in x]
    return Case(dtype, x, y, [torch.empty_like(side) for side in x])


def cases(elements: int) -> dict[str, Callable[[], Case]]:
    layers = max(1, elements // sum(int(np.prod(shape)) for shape in LAYER_8B))
    each = {dtype: elements * 2 // (DTYPES[dtype].bits // 8) // 4 for dtype in TORCH}
    return {
        f"BF16, one tensor of {elements / 1e9:.2f} G": lambda: random_case("BF16", [(elements,)]),
        f"BF16, {layers} layers of an 8B model": lambda: random_case("BF16", LAYER_8B * layers),
        "BF16, one tensor of 17 M": lambda: random_case("BF16", [(4096, 4096)]),
        "BF16, 1,000 tensors of 4,096": lambda: random_case("BF16", [(4096,)] * 1000),
        **{f"{d}, one tensor of {n / 1e9:.2f} G": lambda d=d, n=n: random_case(d, [(n,)]) for d, n in each.items()},  # type: ignore[misc]
    }


def rotation(make: Callable[[], Case]) -> list[Case]:
    """As many sets of operands as it takes to be out of the cache when the first comes round again, at least two."""
    sets = [make(), make()]
    while sum(case.moved_bytes for case in sets) < 2 * CACHE_BYTES and len(sets) < 64:
        sets.append(make())
    return sets


def launching(launcher: Launcher, sets: Sequence[Case]) -> Callable[[int], None]:
    batches = [(case.operands(), DTYPES[case.dtype]) for case in sets]
    statistics = torch.zeros((len(sets[0].x), len(STATISTICS)), dtype=torch.float64, device="cuda")

    def call(turn: int) -> None:
        operands, dtype = batches[turn % len(batches)]
        blend_batch(launcher, operands, dtype, statistics)

    return call


def lerp(sets: Sequence[Case]) -> Callable[[int], None]:
    def call(turn: int) -> None:
        case = sets[turn % len(sets)]
        for x, y, out in zip(case.x, case.y, case.out, strict=True):
            torch.lerp(x, y, 0.3, out=out)

    return call


def timed(call: Callable[[int], None], repeats: int) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile of the seconds of a call, by events on the device."""
    for turn in range(5):
        call(turn)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for turn, (begin, end) in enumerate(events):
        begin.record()
        call(turn)
        end.record()
    torch.cuda.synchronize()
    p20, p50, p80 = np.percentile([begin.elapsed_time(end) / 1e3 for begin, end in events], (20, 50, 80))
    return float(p20), float(p50), float(p80)


def copy_bandwidth(size_bytes: int, repeats: int) -> float:
    """Bytes read and written in a second, by the median."""
    sides = [torch.empty(size_bytes, dtype=torch.uint8, device="cuda") for _ in range(4)]

    def call(turn: int) -> None:
        sides[turn % 2 + 2].copy_(sides[turn % 2])

    return 2 * size_bytes / timed(call, repeats)[1]


def report(what: str, sets: Sequence[Case], call: Callable[[int], None], repeats: int, copy_bytes_s: float) -> None:
    p20, p50, p80 = timed(call, repeats)
    bandwidth = sets[0].moved_bytes / p50
    print(
        f"{what}: p20 {p20 * 1e3:.3f}, p50 {p50 * 1e3:.3f}, p80 {p80 * 1e3:.3f} ms; "
        f"{bandwidth / 1e12:.3f} TB/s, {bandwidth / copy_bytes_s:.1%} of copy"
    )


def host_to_host(name: str, launcher: Launcher, elements: int) -> None:
    """A BF16 tensor in host memory, blended into host memory: through the slots, and by the CPU."""
    from lswap_core.checkpoint.catalogue import TensorRef
    from lswap_core.engine.device_streaming import StreamingEvaluator
    from lswap_core.engine.evaluate import Evaluator
    from lswap_core.kernels.gpu.slots import SLOTS, CudaSlot
    from lswap_core.recipe.expressions import Blend, Copy

    class Memory:
        """A source that is a pair of arrays."""

        def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
            buffer[:] = sides[ref.file][offset : offset + len(buffer)]

    rng = np.random.default_rng(1)
    values = [(rng.standard_normal(elements, np.float32) * 0.02).view(np.uint32) >> 16 for _ in range(2)]
    sides = dict(zip("xy", (memoryview(v.astype(np.uint16).view(np.uint8)) for v in values), strict=True))  # type: ignore[arg-type]
    refs = [TensorRef("math", file, DTYPES["BF16"], (elements,), 0, 2 * elements) for file in "xy"]
    blend = Blend(Copy(refs[0]), Copy(refs[1]), 0.3)
    slots = [CudaSlot(launcher, torch.device("cuda", torch.cuda.current_device())) for _ in range(SLOTS)]
    for what, evaluator in (
        (f"{name}, host to host through {SLOTS} slots", StreamingEvaluator(Memory(), kernels, slots)),
        ("cpu, host to host, one thread", Evaluator(Memory(), kernels)),
    ):
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            for chunk in evaluator.chunks(blend):
                len(chunk.data)
            seconds.append(time.perf_counter() - begin)
        print(f"{what}: {6 * elements / float(np.median(seconds[1:])) / 1e9:.1f} GB/s of x, y and out")


if __name__ == "__main__":
    main()
