"""What a merge costs where extents can be shared: a 2.5 GB pair on an XFS image, against copying one expert there.

    sudo python benchmarks/bench_sharing.py --in /var/tmp

Makes a sparse XFS image in that directory (10 GB of disk are needed, all given back), a pair of experts in it, and runs,
interleaved: `cp --reflink=never` of math, and merges with and without a transition zone, as math's layout and laid out anew.
Every side is synced. The first round is checked by `verify` against the experts, then thrown away. Prints Markdown, then JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_405b import allocated, xfs
from benchmarks.harness import WRITES_BYTECODE
from benchmarks.make_experts import SHAPES, shards
from lswap_core.checkpoint.header import build_header, reference_order

IMAGE_BYTES = 40_000_000_000
CHUNK_BYTES = 64 * 1024 * 1024
SWAP = ["--bottom", "4", "--top", "2"]
MERGES = {
    "merge, no transition": [],
    "merge, one blended layer a seam": ["--transition", "1"],
    "merge, no transition, --shard-size 600MB": ["--shard-size", "600MB"],
    "merge, no transition, --copy-method read_write": ["--copy-method", "read_write"],
}
PACKAGE = {**os.environ, **WRITES_BYTECODE, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="root", type=Path, default=Path(tempfile.gettempdir()), help="where to make the image")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=arguments.root, prefix="lswap-sharing-") as folder,
        xfs(Path(folder), IMAGE_BYTES) as root,
    ):
        for seed, role in enumerate(("math", "lang")):
            write_expert(root / role, seed)
        for name in MERGES:  # the gate: no figure for a wrong output
            run(root, name)
            command(root, "verify", "out", "--math", "math", "--lang", "lang", "--quiet")
            shutil.rmtree(root / "out")
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in ("cp --reflink=never", *MERGES)}
        for _ in range(arguments.rounds):
            for name, results in found.items():
                before = allocated(root)
                start = time.monotonic()
                run(root, name)
                results.append((time.monotonic() - start, allocated(root) - before))
                shutil.rmtree(root / "out")
                allocated(root)
    report(found)


def run(root: Path, name: str) -> None:
    """One side, durable."""
    if name in MERGES:
        command(root, "merge", "--math", "math", "--lang", "lang", *SWAP, *MERGES[name], "--out", "out", "--quiet")
    else:
        subprocess.run(["cp", "-r", "--reflink=never", "math", "out"], cwd=root, check=True)
        subprocess.run(["sync", "-f", "out"], cwd=root, check=True)


def command(root: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "lswap_core", *words], cwd=root, env=PACKAGE, check=True)


def write_expert(out: Path, seed: int) -> None:
    """A model of 1.2 G parameters in four shards, of random bits: only where they lie matters."""
    out.mkdir()
    files = list(shards(replace(SHAPES["1b"], shard_size="700MB")))
    weight_map: dict[str, str] = {}
    chunk = np.random.default_rng(seed).bytes(CHUNK_BYTES)
    for number, group in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        header = build_header({name: group[name] for name in reference_order(group)}, {"format": "pt"})
        with (out / file).open("wb") as handle:
            handle.write(header.encode())
            for at in range(header.data_begin, header.file_size, CHUNK_BYTES):
                handle.write(chunk[: header.file_size - at])
        weight_map |= dict.fromkeys(group, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (out / "config.json").write_text(json.dumps({"num_hidden_layers": SHAPES["1b"].num_hidden_layers}))


def report(found: dict[str, list[tuple[float, int]]]) -> None:
    base = median(seconds for seconds, _ in found["cp --reflink=never"])
    print("| | seconds, median | best | of `cp` | allocated |\n|---|---|---|---|---|")
    for name, results in found.items():
        seconds = median(seconds for seconds, _ in results)
        best, taken = min(seconds for seconds, _ in results), median(taken for _, taken in results)
        print(f"| {name} | {seconds:.2f} | {best:.2f} | {seconds / base:.2f} | {taken / 1e6:.0f} MB |")
    print(json.dumps({name: {"seconds": [s for s, _ in r], "allocated_bytes": [a for _, a in r]} for name, r in found.items()}))


if __name__ == "__main__":
    main()
