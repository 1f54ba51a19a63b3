"""How fast two experts are analysed: `lswap-core analyze` beside `cat` of the same files.

    python benchmarks/bench_analyze.py [--dir DIR] [--size 2.5GB] [--rounds 5] [--workers N] [--json FILE]

A pair is made and analysed once; sums, maximum and counts of every tensor are held against numpy in fp64. Then both are
measured as processes in interleaved rounds, with the files read before each. The pair is removed.
Exit status: 0 measured; 1 a figure was wrong, or something could not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from math import isclose
from pathlib import Path
from tempfile import TemporaryDirectory

import contenders as who
import gate
import harness
import numpy as np
import pair as experts
from bench_merge import add_options, size
from harness import Contender, GateError, RunError, Surroundings

_RELATIVE_ERROR = 2e-6
CAT = "`cat` to /dev/null"
ANALYZE = "lswap-core analyze"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--size", type=size, default=experts.FULL_BYTES, help="of each expert (default: 2.47GB)")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    try:
        with TemporaryDirectory(prefix="bench-analyze-", dir=options.dir) as made:
            record = run(Path(made), options)
    except (GateError, RunError) as failure:
        sys.exit(f"bench_analyze: {failure}; no figures are given")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def run(place: Path, options: argparse.Namespace) -> dict[str, object]:
    """Make the pair, check the analysis, measure; prints a table, returns the same as JSON."""
    surroundings = Surroundings.of(place, who.versions(None))
    pair = experts.make(place / "pair", options.size)
    argv = [*options.lswap_core, "analyze", "--math", str(pair.math), "--lang", str(pair.lang)]
    argv += ["--workers", str(options.workers)] if options.workers else []
    if wrong := mistaken([*argv, "--json"], pair):
        raise GateError(f"{len(wrong)} figures are wrong, such as {wrong[0]}")
    files = [str(path) for folder in pair.folders for path in sorted(folder.glob("*.safetensors"))]
    reading = ["sh", "-c", 'cat "$@" > /dev/null', "sh", *files]  # into a pipe it would be slower
    contenders = [
        Contender(CAT, lambda _: reading, None, required=True),
        Contender(ANALYZE, lambda _: [*argv, "--quiet"], None, required=True),
    ]
    found = harness.interleave(contenders, options.rounds, place, pair.folders)
    ratio = harness.against(found, CAT, ANALYZE)
    print(f"{surroundings.line()}\n\nTwo experts of {pair.size_bytes / 1e9:.2f} GB, warm; every figure was right.")
    print(f"Medians of {options.rounds} interleaved rounds (least to greatest).\n")
    rows = [
        [
            name,
            harness.spread(runs, "wall_s"),
            f"{2 * pair.size_bytes / harness.middle(runs, 'wall_s') / 1e9:.2f}",
            harness.multiple(harness.against(found, CAT, name)),
            harness.spread(runs, "cpu_s"),
            *(harness.spread(runs, f"peak_{what}_bytes", 1e6, 0) for what in ("resident", "anonymous")),
        ]
        for name, runs in found.items()
    ]
    columns = ["", "wall s", "GB/s", "speed, of `cat`", "CPU s", "resident MB", "anonymous MB"]
    print(harness.table(columns, rows), flush=True)
    summaries = {name: harness.summarise(runs) for name, runs in found.items()}
    return {
        "benchmark": "analyze", "surroundings": surroundings.to_json(), "size_bytes": pair.size_bytes,
        "rounds": options.rounds, "speed_of_cat": ratio, "contenders": summaries,
    }  # fmt: skip


def mistaken(argv: Sequence[str], pair: experts.Pair) -> list[str]:
    """What numpy, in fp64, finds otherwise than the analysis."""
    entries = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)["tensors"]
    sides = [gate.tensors(folder) for folder in pair.folders]
    wrong = sorted(entries.keys() ^ sides[0].keys())
    for name in sides[0].keys() & entries.keys():
        right = dict.fromkeys(("sum_abs", "sum_squares", "max_abs", "dot", "x_squares", "y_squares"), 0.0)
        differing = 0
        for bits in zip(sides[0][name].chunks(), sides[1][name].chunks(), strict=True):
            x, y = ((side.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for side in bits)
            d = np.abs(y - x)
            differing += int(np.count_nonzero(bits[0] != bits[1]))
            right["max_abs"] = max(right["max_abs"], float(d.max()))
            for what, terms in (
                ("sum_abs", d),
                ("sum_squares", d * d),
                ("dot", x * y),
                ("x_squares", x * x),
                ("y_squares", y * y),
            ):
                right[what] += float(terms.sum())
        said = entries[name]["difference"]
        wrong += [f"{name}: {what}" for what, value in right.items() if not isclose(said[what], value, rel_tol=_RELATIVE_ERROR)]
        wrong += [f"{name}: differing"] if said["differing"] != differing else []
    return wrong


if __name__ == "__main__":
    main()
