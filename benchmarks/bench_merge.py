"""What a layer swap costs: this package beside `cp`, hand-written scripts, transformers and mergekit.

    python benchmarks/bench_merge.py [--dir DIR] [--rounds 5] [--json FILE]
    python benchmarks/bench_merge.py --mergekit-venv ~/mergekit-venv --install-peers      # mergekit too; once
    python benchmarks/bench_merge.py --methods auto,copy_file_range,sendfile,read_write --digests none,auto,sha256
    python benchmarks/bench_merge.py --size 20MB --rounds 1                               # does it work at all?

Makes a pair of Llama-3.2-1B's shape (2.47 GB each, BF16, shards of 500 MB), runs every contender once and holds every
tensor of its output against a computation in numpy: nothing is timed unless all are right. Then it measures: each round
runs each contender once, in turning order; inputs are read before each run (as much as the memory holds is in the page
cache), outputs lie on the same disk, are durable before the clock stops, and are removed. What the columns mean is in
`harness.py`. Ratios are medians over the rounds of the ratio in each. Takes 3.5 times a model's size of disk, in --dir
(default: a temporary directory). A pair that is in --dir already is used again, and one made there is left. What runs is
told on stderr.

A contender that cannot run here (no mergekit, no shared extents on this filesystem, an option that this version lacks) is
left out, and the output says why. Exit status: 0 measured; 1 an output was wrong, or something necessary could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import contenders as who
import harness
import pair as experts
from harness import Contender, GateError, Measurement, RunError, Surroundings

from lswap_core.errors import RecipeError
from lswap_core.text.plain import parse_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--size", type=size, default=experts.FULL_BYTES, help="of each expert (default: 2.47GB)")
    parser.add_argument(
        "--methods", type=listed(who.METHODS), default=["auto"], help=f"of {','.join(who.METHODS)} (default: auto)"
    )
    parser.add_argument("--digests", type=listed(who.DIGESTS), default=["none", "auto"], help="(default: none,auto)")
    parser.add_argument("--link", action="store_true", help="hard links too")
    parser.add_argument("--mergekit-venv", type=Path, metavar="PATH", help="where mergekit is, or is to be installed")
    parser.add_argument(
        "--install-peers", action="store_true", help=f"install {who.MERGEKIT} in --mergekit-venv, if it is not there"
    )
    parser.add_argument(
        "--skip", action="append", default=[], metavar="TEXT", help="leave out contenders with this in their name"
    )
    options = parser.parse_args()
    if options.install_peers:
        if options.mergekit_venv is None:
            parser.error("--install-peers needs --mergekit-venv PATH")
        who.install_mergekit(options.mergekit_venv)
    try:
        with ExitStack() as stack:
            place = options.dir or Path(stack.enter_context(TemporaryDirectory(prefix="bench-merge-")))
            pair = experts.make(place.absolute(), options.size)
            record = compare(pair, options, Path(stack.enter_context(TemporaryDirectory(prefix="bench-merge-configurations-"))))
    except (GateError, RunError) as failure:
        sys.exit(f"bench_merge: {failure}; no figures are given")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of a merge takes."""
    command = [sys.executable, "-m", "lswap_core"]
    parser.add_argument("--dir", type=Path, help="where to put models and outputs: the disk that is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--lswap-core", nargs="+", default=command, metavar="WORD", help="the command that is measured (default: this Python's)"
    )


def size(text: str) -> int:
    """Bytes, for argparse."""
    try:
        return parse_size(text)
    except RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for argparse: words of `known`, separated by commas."""

    def words(text: str) -> list[str]:
        found = text.split(",")
        if unknown := sorted(set(found) - set(known)):
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return found

    return words


def compare(pair: experts.Pair, options: argparse.Namespace, configurations: Path) -> dict[str, object]:
    """Gate, measure, print; the same as JSON. configurations: a directory for mergekit's."""
    place = pair.math.parent
    chosen: list[Contender] = who.plain(pair)
    left_out: dict[str, str] = {}
    for more, without in (
        who.lswap(options.lswap_core, pair, options.methods, options.digests, link=options.link),
        who.by_hand(pair),
        who.mergekit(pair, options.mergekit_venv, configurations),
    ):
        chosen += more
        left_out |= without
    for contender in [each for each in chosen if any(text in each.name for text in options.skip)]:
        chosen.remove(contender)
        left_out[contender.name] = "not wanted (--skip)"
    surroundings = Surroundings.of(place, who.versions(options.mergekit_venv))
    admitted, incapable = harness.admit(chosen, place, pair.folders)
    left_out |= incapable
    found = harness.interleave(admitted, options.rounds, place, pair.folders)
    print(f"{surroundings.line()}\n")
    print(f"Two experts of {pair.size_bytes / 1e9:.2f} GB, bottom 4, top 2, transition 2, mix 0.5; warm, durable, medians of")
    print(f"{options.rounds} interleaved rounds (least to greatest). Every tensor of every output was right.\n")
    print(costs(found), end="\n\n")
    if comparison := beside_mergekit(found):
        print(comparison, end="\n\n")
    for name, reason in left_out.items():
        print(f"- not run: {name}: {reason}")
    return {
        "benchmark": "merge",
        "surroundings": surroundings.to_json(),
        "size_bytes": pair.size_bytes,
        "rounds": options.rounds,
        "gate": [contender.name for contender in admitted if contender.check is not None],
        "contenders": {name: figures(name, found) for name in found},
        "left_out": left_out,
    }


def figures(name: str, found: Mapping[str, list[Measurement]]) -> dict[str, object]:
    """Everything that is known of one contender."""
    return {
        **harness.summarise(found[name]),
        "wall_of_cp": harness.against(found, name, who.COPY),
        "wall_of_mergekit_linear": harness.against(found, name, who.MERGEKIT_LINEAR),
        "cpu_of_mergekit_linear": harness.against(found, name, who.MERGEKIT_LINEAR, "cpu_s"),
    }


def costs(found: Mapping[str, list[Measurement]]) -> str:
    """The Markdown table."""
    columns = ["", "wall s", "of `cp -r`", "of it sync s", "CPU s", "resident MB", "anonymous MB", "read MB", "written MB"]
    rows = []
    for name, runs in found.items():
        memory = [harness.spread(runs, f"peak_{what}_bytes", 1e6, 0) for what in ("resident", "anonymous")]
        moved = [f"{harness.middle(runs, f'{what}_bytes') / 1e6:,.0f}" for what in ("read", "written")]
        share = harness.multiple(harness.against(found, name, who.COPY))
        times = [harness.spread(runs, "wall_s"), share, f"{harness.middle(runs, 'sync_s'):.2f}", harness.spread(runs, "cpu_s")]
        rows.append([name, *times, *memory, *moved])
    return harness.table(columns, rows)


def beside_mergekit(found: Mapping[str, list[Measurement]]) -> str | None:
    """How many times as fast as mergekit's `linear`, and with what part of its CPU time."""
    if who.MERGEKIT_LINEAR not in found:
        return None
    rows = []
    for name in (name for name in found if name.startswith("lswap_core")):
        faster = harness.against(found, who.MERGEKIT_LINEAR, name)
        rows.append(
            [name, harness.multiple(faster), harness.multiple(harness.against(found, name, who.MERGEKIT_LINEAR, "cpu_s"))]
        )
    return harness.table(["", "times as fast as mergekit linear", "of its CPU time"], rows)


if __name__ == "__main__":
    main()
