"""What the swapping of a sweep costs, beside merges to disk of the same experts.

    python benchmarks/make_experts.py models --shape 1b
    python benchmarks/bench_sweep.py models [--points 60] [--repeats 5]

A model is loaded, and its layers are swapped in place through every point of a grid, in the order in which
`lswap-eval sweep` visits them; merges to disk of one of the points are made between the passes. Correctness first: after
each pass the model must hold, bit for bit, what the merge of its last point holds. Then the medians, and the most memory that
the process had while it loaded and swapped. No text is generated.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import time
from pathlib import Path

import torch
import transformers
from safetensors import safe_open

from lswap_core import Draft, execute, lay_out, open_checkpoint
from lswap_eval.ablate.resident import ResidentModel
from lswap_eval.ablate.settings import nearest_order, sweep
from lswap_eval.generate.local_model import silence_bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="where make_experts.py wrote math and lang")
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    silence_bars()
    math, lang = (open_checkpoint(arguments.models / role, role=role) for role in ("math", "lang"))
    layer_count = math.stack().count
    points, _ = sweep(layer_count, range(6), range(5), (0, 1))
    drafts = [point.draft(math=math, lang=lang) for point in points[: arguments.points]]
    begun = time.perf_counter()
    drafts = [drafts[number] for number in nearest_order(Draft.of(math), drafts)]
    print(f"{len(drafts)} points of {layer_count} layers, ordered in {time.perf_counter() - begun:.2f} s")
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.models / "math", dtype="auto")
    for tensor in model.state_dict().values():  # every page: what was loaded may only be mapped until it is used
        tensor.flatten()[::1024].float().sum()
    size_bytes = sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())
    out = arguments.models / "bench-sweep"
    shutil.rmtree(out, ignore_errors=True)
    swapping: list[float] = []
    merging: list[float] = []
    peak_bytes = 0
    with ResidentModel(model, math, {"math": math, "lang": lang}) as resident:
        for _ in range(arguments.repeats):
            resident.swap(Draft.of(math))
            begun = time.perf_counter()
            written_bytes = sum(resident.swap(draft) for draft in drafts)
            swapping.append(time.perf_counter() - begun)
            # The gate below maps a second model, which a sweep never does; so the first pass tells.
            peak_bytes = peak_bytes or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            begun = time.perf_counter()
            execute(lay_out(drafts[-1]), into=out)
            merging.append(time.perf_counter() - begun)
            gate(model, out)
            shutil.rmtree(out)
    swap_s, merge_s = statistics.median(swapping), statistics.median(merging)
    print(f"swapping all points: {swap_s:.2f} s ({spread(swapping)}), {written_bytes / 1e9:.1f} GB written")
    print(f"one merge to disk: {merge_s:.2f} s ({spread(merging)})")
    print(f"the sweep costs {swap_s / merge_s:.2f} merges, not {len(drafts)}")
    print(f"memory: the model {size_bytes / 1e9:.2f} GB; the process, torch and all, {peak_bytes / 1e9:.2f} GB at most")


def spread(seconds: list[float]) -> str:
    return f"{min(seconds):.2f} to {max(seconds):.2f}"


def gate(model: torch.nn.Module, path: Path) -> None:
    """Exits unless the model's tensors are those of the checkpoint, bit for bit."""
    held = model.state_dict()
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if not torch.equal(held[name].view(torch.uint8), tensors.get_tensor(name).view(torch.uint8)):
                    raise SystemExit(f"bench_sweep: {name} is not what the merge holds; nothing was measured")


if __name__ == "__main__":
    main()
