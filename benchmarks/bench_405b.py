"""Merge two experts of a true 405B shape, 191 shards and 812 GB each, whole, where there is no room for one of them.

    sudo python benchmarks/bench_405b.py --in /var/tmp

makes a sparse XFS image of 4 TB in that directory, mounts it by loopback, and in it two sparse checkpoints with a little data
at both ends and in the middle of every tensor. Blended layers are computed and written for real: about 13 GB of disk are
needed, all given back. The output is verified by sampling: where the experts have data and at random other places, against
numpy. Prints a JSON object: seconds, peak memory, bytes written and allocated. Exit 1 if a sample is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.make_experts import SHAPES, Shape, tensor_shapes

IMAGE_BYTES = 4 * 1000**4
SHARDS = 191
SAMPLE_BYTES = 256
SPARE_BYTES = 3_000_000_000
BOTTOM, TOP, TRANSITION = 5, 2, 1
Place = tuple[str, int, int]
"""File, begin of a tensor's data in it, and their size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="root", type=Path, default=Path(tempfile.gettempdir()), help="where to make the image")
    parser.add_argument("--layers", type=int, default=SHAPES["405b"].num_hidden_layers, help="fewer, to rehearse")
    arguments = parser.parse_args()
    shape = Shape(**{**asdict(SHAPES["405b"]), "num_hidden_layers": arguments.layers})
    blended = sum(2 * n for name, n in sizes(shape).items() if layer_of(name) in zones(shape)[1])
    if shutil.disk_usage(arguments.root).free < blended + SPARE_BYTES:
        sys.exit(f"{blended / 1e9:.0f} GB of blended layers do not fit in {arguments.root}")
    with tempfile.TemporaryDirectory(dir=arguments.root, prefix="lswap-405b-") as folder, xfs(Path(folder), IMAGE_BYTES) as root:
        report = measure(root, shape)
    print(json.dumps(report, indent=1))
    sys.exit(0 if report["samples_wrong"] == 0 else 1)


def measure(root: Path, shape: Shape) -> dict[str, object]:
    """Make, merge and check."""
    places = {role: write_sparse(root / role, shape, seed) for seed, role in enumerate(("math", "lang"))}
    os.sync()
    used = allocated(root)
    argv = [sys.executable, "-m", "lswap_core", "merge", "--math", "math", "--lang", "lang", "--out", "out"]
    argv += ["--bottom", str(BOTTOM), "--top", str(TOP), "--transition", str(TRANSITION)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    package = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": package}, check=False)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    wrong, taken = sample(root, shape, places)
    return {
        "said": done.stdout.splitlines()[-2:],
        "shards": len(list((root / "out").glob("*.safetensors"))),
        "output_bytes": sum(path.stat().st_size for path in (root / "out").iterdir()),
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_memory_bytes": after.ru_maxrss * 1024,
        "written_bytes": (after.ru_oublock - before.ru_oublock) * 512,
        "allocated_bytes": allocated(root) - used,
        "samples": taken,
        "samples_wrong": wrong,
    }


@contextmanager
def xfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """An empty XFS, mounted; unmounted at the end, come what may."""
    file, point = folder / "xfs.img", folder / "mount"
    point.mkdir()
    with file.open("wb") as handle:
        handle.truncate(size_bytes)
    # a small log: a new one is zeroed, and the usual one has two gigabytes
    subprocess.run(["mkfs.xfs", "-q", "-K", "-m", "reflink=1", "-l", "size=64m", file], check=True)
    subprocess.run(["mount", "-o", "loop", file, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def zones(shape: Shape) -> tuple[set[int], set[int]]:
    """Layers that are lang's, and those that are blended."""
    count = shape.num_hidden_layers
    lang = {*range(BOTTOM), *range(count - TOP, count)}
    return lang, {*range(BOTTOM, BOTTOM + TRANSITION), *range(count - TOP - TRANSITION, count - TOP)}


def sizes(shape: Shape) -> dict[str, int]:
    """Elements of every tensor."""
    return {name: int(np.prod(dims, dtype=np.int64)) for name, dims in tensor_shapes(shape).items()}


def data_at(name: str, offset: int, seed: int) -> bytes:
    """What an expert has at a sampled place: bf16 of ordinary size."""
    values = np.random.default_rng([seed, offset, *name.encode()]).standard_normal(SAMPLE_BYTES // 2, np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def offsets(size: int) -> list[int]:
    """Where in a tensor of `size` bytes the experts have data."""
    return [0, size // 2 // SAMPLE_BYTES * SAMPLE_BYTES, size - SAMPLE_BYTES]


def write_sparse(out: Path, shape: Shape, seed: int) -> dict[str, Place]:
    """An expert of headers, samples and holes, its tensors dealt to shards in order."""
    out.mkdir()
    dims, counts = tensor_shapes(shape), sizes(shape)
    names, weight_map, places = list(dims), {}, {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        group = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        table: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in group:
            table[name] = {"dtype": "BF16", "shape": dims[name], "data_offsets": [at, at + 2 * counts[name]]}
            at += 2 * counts[name]
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        at = 8 + len(text)
        with (out / file).open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            for name in group:
                places[name] = (file, at, 2 * counts[name])
                for offset in offsets(2 * counts[name]):
                    os.pwrite(handle.fileno(), data_at(name, offset, seed), at + offset)
                at += 2 * counts[name]
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": 2 * sum(counts.values())}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    (out / "config.json").write_text(json.dumps({"num_hidden_layers": shape.num_hidden_layers}))
    return places


def sample(root: Path, shape: Shape, places: dict[str, dict[str, Place]]) -> tuple[int, int]:
    """Samples of the output that are wrong, and all that were taken. What is there is told by numpy and the recipe alone."""
    lang, blended = zones(shape)
    random = np.random.default_rng(0)
    index = json.loads((root / "out/model.safetensors.index.json").read_text())["weight_map"]
    wrong = taken = 0
    for name, (file, begin, size) in places["math"].items():
        x_and_y = {role: (root / role / places[role][name][0], places[role][name][1]) for role in places}
        anywhere = random.integers(0, size // SAMPLE_BYTES, 5) * SAMPLE_BYTES
        for offset in [*offsets(size), *map(int, anywhere)]:
            x, y = (read(path, at + offset) for path, at in x_and_y.values())
            if offset in offsets(size):
                assert (x, y) == (data_at(name, offset, 0), data_at(name, offset, 1)), "the experts are not what was made"
                assert x != y, "samples that are equal in both experts tell nothing"
            layer = layer_of(name)
            expected = y if layer in lang else blend(x, y) if layer in blended else x
            wrong += index[name] != file or read(root / "out" / file, begin + offset) != expected
            taken += 1
    return wrong, taken


def read(path: Path, at: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), SAMPLE_BYTES, at)


def blend(x: bytes, y: bytes) -> bytes:
    """Half of each, each step rounded to fp32 and the end to bf16, to nearest, ties to even."""
    half = np.float32(0.5)
    a, b = ((np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32) for raw in (x, y))
    bits = (half * a + half * b).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def allocated(root: Path) -> int:
    """Bytes in use on the filesystem, once all is written."""
    subprocess.run(["sync", "-f", root], check=True)
    status = os.statvfs(root)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


if __name__ == "__main__":
    main()
