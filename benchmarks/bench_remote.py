"""How much of a network's bandwidth a merge from the hub uses: a loopback server of known bandwidth and latency.

    python benchmarks/bench_remote.py --bandwidth 50 --latency 20

Makes two experts, serves them from another process by the hub's routes to the real `huggingface_hub` client, plans once, and
executes the plan with several numbers of threads, interleaved with one plain stream of as many bytes, which tells what the
server gives at best. The first output is held against the local merge, byte for byte, before anything is timed. Time is that
of `execute`, everything durable; bytes are the tensors' that the plan reads. Prints Markdown, then JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import GateError, table
from lswap_core import LayerSwap, execute, lay_out, merge, open_checkpoint
from lswap_core.plan.plan import Plan
from tests.build import llama_like, normal, tree, write_model
from tests.sources.remote.hub_server import HubServer, Repository

LAYERS = 16
SWAP = LayerSwap(bottom=4, top=2, transition=2)
COMMITS = {"math": "a" * 40, "lang": "b" * 40}
UNTOLD = ("lswap_manifest.json", "README.md")
"""What holds the experts' names, which differ between here and there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where to make everything")
    parser.add_argument("--bandwidth", type=float, default=50, help="of all connections together, MB/s")
    parser.add_argument("--latency", type=float, default=20, help="before every response, ms")
    parser.add_argument("--size", type=int, default=200, help="of one expert, MB")
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[16, 4, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments)
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="lswap-remote-") as folder:
        root = Path(folder)
        make_experts(root, arguments.size)
        with serving(root, arguments) as endpoint:
            # before the library is imported, which reads them once
            os.environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_XET": "1"}
            found, needed = run(root, endpoint, arguments)
    report(found, needed, arguments)
    return None


def make_experts(root: Path, size_mb: int) -> None:
    """Two experts of Llama's names, with layers of nine tensors of which two are large."""
    rows = size_mb * 1_000_000 // LAYERS // 2 // 2048
    for seed, role in enumerate(COMMITS):
        rng = np.random.default_rng(seed)
        model = llama_like(LAYERS, rng)
        for n in range(LAYERS):
            model[f"model.layers.{n}.mlp.down_proj.weight"] = normal("BF16", (rows // 2, 2048), rng)
            model[f"model.layers.{n}.mlp.up_proj.weight"] = normal("BF16", (rows // 2, 2048), rng)
        names = sorted(model)
        files = [names[k : k + len(names) // 4 + 1] for k in range(0, len(names), len(names) // 4 + 1)]
        write_model(root / role, model, files=files, config={"num_hidden_layers": LAYERS})


def serve(arguments: argparse.Namespace) -> None:
    """Serve both experts until stdin ends."""
    repositories = {f"bench/{role}": Repository(arguments.dir / role, commit) for role, commit in COMMITS.items()}
    rate, latency = arguments.bandwidth * 1e6, arguments.latency / 1e3
    with HubServer(repositories, bytes_per_second=rate, latency=latency) as server:
        print(server.endpoint, server.cdn, flush=True)
        sys.stdin.read()


@contextmanager
def serving(root: Path, arguments: argparse.Namespace) -> Iterator[str]:
    argv = [
        sys.executable,
        __file__,
        "--serve",
        "--dir",
        root,
        "--bandwidth",
        arguments.bandwidth,
        "--latency",
        arguments.latency,
    ]
    with subprocess.Popen(list(map(str, argv)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint, _ = process.stdout.readline().split()
        yield endpoint
        process.communicate(timeout=20)


def run(root: Path, endpoint: str, arguments: argparse.Namespace) -> tuple[dict[str, list[float]], int]:
    math, lang = (open_checkpoint(f"bench/{role}", role=role) for role in COMMITS)
    plan = lay_out(SWAP.draft(math=math, lang=lang))
    execute(plan, into=root / "out")
    merge(SWAP, math=root / "math", lang=root / "lang", into=root / "expected")
    out, expected = (tree(root / name) for name in ("out", "expected"))
    if {n: d for n, d in out.items() if n not in UNTOLD} != {n: d for n, d in expected.items() if n not in UNTOLD}:
        raise GateError("the merge from the hub is not the local merge")
    del out, expected
    shutil.rmtree(root / "out")
    found: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        found.setdefault("one plain stream", []).append(timed(lambda: stream(endpoint, plan.read_bytes)))
        for workers in arguments.workers:
            seconds = timed(lambda n=workers: remote_merge(plan, root / "out", n))  # type: ignore[misc]
            found.setdefault(f"merge, {workers} threads", []).append(seconds)
            shutil.rmtree(root / "out")
    return found, plan.read_bytes


def remote_merge(plan: Plan, out: Path, workers: int) -> None:
    execute(plan, into=out, workers=workers)


def stream(endpoint: str, count: int) -> None:
    """Read that many bytes of the first expert's shards, one after another, whole."""
    buffer = memoryview(bytearray(1 << 20))
    while count > 0:
        for number in range(1, 5):
            at = urlsplit(f"{endpoint}/bench/math/resolve/main/model-{number:05d}-of-00004.safetensors")
            for _ in range(2):  # there, and to where it is sent on
                connection = http.client.HTTPConnection(at.netloc)
                connection.request("GET", f"{at.path}?{at.query}", headers={"Range": f"bytes=0-{max(count, 1) - 1}"})
                response = connection.getresponse()
                at = urlsplit(response.headers.get("Location", ""))
                while got := response.readinto(buffer):
                    count -= got
                connection.close()
            if count <= 0:
                return


def timed(do: Callable[[], None]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def report(found: dict[str, list[float]], needed: int, arguments: argparse.Namespace) -> None:
    rate = arguments.bandwidth * 1e6
    rows = [
        (name, f"{median(runs):.2f} ({min(runs):.2f} to {max(runs):.2f})", f"{needed / median(runs) / rate:.0%}")
        for name, runs in found.items()
    ]
    told = f"{needed / 1e6:.0f} MB needed, {arguments.bandwidth:g} MB/s, {arguments.latency:g} ms, {arguments.rounds} rounds"
    print(f"{told}\n\n{table(('', 's, median', 'of the bandwidth'), rows)}")
    print(json.dumps({"needed_bytes": needed, "bytes_per_second": rate, "latency_ms": arguments.latency, "seconds": found}))


if __name__ == "__main__":
    main()
