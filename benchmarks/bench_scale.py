"""How the cost of a layer swap grows with the model and with the number of workers, and what a plan of 100,000 tensors costs.

    python benchmarks/bench_scale.py [--dir DIR] [--sizes 1GB,2GB,4GB,8GB] [--workers 1,2,4] [--rounds 5] [--json FILE]
    python benchmarks/bench_scale.py --sizes 10MB,20MB --tensors 1000 --rounds 1          # does it work at all?

For each size: a pair is made (wider for a larger one, so that the largest tensor grows as the model does), `cp -r` and the
package with each number of workers are held to the gate, then measured in interleaved rounds as in `bench_merge.py`, then
the pair is removed. Digests are off, where this version can turn them off, so that the copying itself is what grows.
Takes 3.5 times the largest size of disk, in --dir (default: a temporary directory). A pair and its output that do not fit
the memory together are not in the page cache, for anybody: the output says which.

The plan is of headers alone: two sparse experts, `lswap-core plan` as a process, start of the interpreter included.
Exit status: 0 measured; 1 an output was wrong, or something could not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import contenders as who
import gate
import harness
import pair as experts
from bench_merge import add_options, size
from harness import Contender, GateError, Measurement, RunError, Surroundings
from make_experts import Shape, tensor_shapes, write_expert

Found = dict[str, list[Measurement]]
_TENSORS_PER_LAYER = 9
_COLUMNS = ["", "wall s", "of `cp -r`", "CPU s", "CPU s per GB", "resident MB", "anonymous MB", "written MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--sizes", type=sizes, default=[n * 10**9 for n in (1, 2, 4, 8)], help="of each expert (default: 1GB,2GB,4GB,8GB)"
    )
    parser.add_argument("--workers", type=counts, default=[1, 2, 4], help="(default: 1,2,4)")
    parser.add_argument(
        "--tensors", type=int, default=100_000, help="of the model that is planned; 0 for no plan (default: 100000)"
    )
    options = parser.parse_args()
    try:
        with TemporaryDirectory(prefix="bench-scale-", dir=options.dir) as made:
            record = grow(Path(made), options)
    except (GateError, RunError) as failure:
        sys.exit(f"bench_scale: {failure}; no figures are given from here on")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def sizes(text: str) -> list[int]:
    """Bytes of each, for argparse."""
    return [size(each) for each in text.split(",")]


def counts(text: str) -> list[int]:
    """Whole numbers from 1, for argparse."""
    found = [int(each) for each in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("there must be at least one worker")
    return found


def grow(place: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure every size, then the plan; print as it goes; the same as JSON."""
    surroundings = Surroundings.of(place, who.versions(None))
    flags = ["--digest", "none"] if "--digest" in who.lswap_flags(options.lswap_core) else []
    print(f"{surroundings.line()}\n")
    print(f"Bottom 4, top 2, transition 2; {'digests off' if flags else 'digests on: this lswap_core has no --digest'}; durable;")
    print(f"medians of {options.rounds} interleaved rounds (least to greatest). Every tensor of every output was right.")
    results = []
    for size_bytes in options.sizes:
        pair = experts.make(place / "pair", size_bytes)
        found = measure_pair(pair, options, flags)
        warm = pair.size_bytes * 3 < surroundings.memory_bytes
        print(f"\n## {pair.size_bytes / 1e9:.2f} GB{'' if warm else ' (more than the page cache holds)'}\n")
        print(harness.table(_COLUMNS, [row(name, found, pair.size_bytes) for name in found]), flush=True)
        summaries = {
            name: harness.summarise(runs) | {"wall_of_cp": harness.against(found, name, who.COPY)} for name, runs in found.items()
        }
        results.append({"size_bytes": pair.size_bytes, "warm": warm, "contenders": summaries})
        experts.drop(place / "pair")
    record = {"benchmark": "scale", "surroundings": surroundings.to_json(), "rounds": options.rounds, "sizes": results}
    return record | ({"plan": plan(place, options)} if options.tensors else {})


def measure_pair(pair: experts.Pair, options: argparse.Namespace, flags: Sequence[str]) -> Found:
    """`cp -r`, and the package with each number of workers."""
    copy = who.plain(pair)[0]
    swaps = []
    for workers in options.workers:
        argv = partial(_argv, options.lswap_core, pair, [*flags, "--workers", str(workers)])
        swaps.append(Contender(f"lswap_core, --workers {workers}", argv, who.checked(pair), required=True))
    admitted, _ = harness.admit([copy, *swaps], pair.math.parent, pair.folders)
    return harness.interleave(admitted, options.rounds, pair.math.parent, pair.folders)


def _argv(command: Sequence[str], pair: experts.Pair, flags: Sequence[str], out: Path) -> list[str]:
    return who.lswap_argv(command, pair, out, *flags)


def row(name: str, found: Found, size_bytes: int) -> list[str]:
    runs = found[name]
    share = harness.multiple(harness.against(found, name, who.COPY))
    cpu = [harness.spread(runs, "cpu_s"), f"{harness.middle(runs, 'cpu_s') / size_bytes * 1e9:.2f}"]
    memory = [harness.spread(runs, f"peak_{what}_bytes", 1e6, 0) for what in ("resident", "anonymous")]
    return [name, harness.spread(runs, "wall_s"), share, *cpu, *memory, f"{harness.middle(runs, 'written_bytes') / 1e6:,.0f}"]


def plan(place: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure `lswap-core plan` over the headers of two sparse experts of about as many tensors as wanted."""
    layers = max(8, round(options.tensors / _TENSORS_PER_LAYER))
    shape = Shape(64, 160, layers, 4, 2, 512, True, "10MB")
    models = [place / "sparse" / expert for expert in ("math", "lang")]
    for model in models:
        write_expert(model, shape, model.name, seed=0, sparse=True)
    count, shards = len(tensor_shapes(shape)), len(list(models[0].glob("*.safetensors")))
    swap = ["--bottom", "4", "--top", "2", "--transition", "2"]
    argv = [*options.lswap_core, "plan", "--math", str(models[0]), "--lang", str(models[1]), *swap]
    if wrong := misplanned([*argv, "--json"], models):
        raise GateError(f"the plan of {count} tensors has {len(wrong)} wrong, such as {wrong[0]}")
    planner = Contender("lswap-core plan", lambda _: [*argv, "--quiet"], None, required=True)
    found = harness.interleave([planner], options.rounds, place, models)
    runs = found[planner.name]
    print(f"\n## A plan of {count:,} tensors in {shards} shards each, from headers alone\n")
    columns = ["", "wall s", "CPU s", "anonymous MB"]
    figures = [
        harness.spread(runs, "wall_s"),
        harness.spread(runs, "cpu_s"),
        harness.spread(runs, "peak_anonymous_bytes", 1e6, 0),
    ]
    print(harness.table(columns, [[planner.name, *figures]]), flush=True)
    return {"tensors": count, "shards": shards, **harness.summarise(runs)}


def misplanned(argv: Sequence[str], models: Sequence[Path]) -> list[str]:
    """Names of the tensors that the plan, printed as JSON, has not or takes from elsewhere than it should."""
    plan = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    made = {name: source for file in plan["files"] for name, source in file["tensors"].items()}
    layers, sides = gate.layer_count(models[0]), [gate.tensors(model) for model in models]
    wrong = sorted(sides[0].keys() ^ made.keys())
    for name in sides[0].keys() & made.keys():
        share = gate.Swap().share(name, layers)
        if share in (0.0, 1.0):
            place = sides[int(share)][name]
            copy = [models[int(share)].name, place.path.name, place.dtype, place.begin, place.begin + place.size_bytes]
            right = made[name] == {"copy": copy}
        else:
            right = "blend" in made[name]
        if not right:
            wrong.append(name)
    return wrong


if __name__ == "__main__":
    main()
