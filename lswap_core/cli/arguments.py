"""The grammar of the command line: commands and their options. It runs nothing and imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from lswap_core.cli.command import Parser
from lswap_core.options import COPY_METHODS, DIGESTS, LINKS, METHODS, OUTSIDE_CHOICES, RAMPS, ROLES

ENGINES = ("local", "ray")
Command = Callable[[argparse.Namespace], int]


def build_parser(run: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser of every command. The chosen function is `run` of the parsed arguments."""
    parser = Parser(
        prog="lswap-core", description="Take checkpoints apart and put them together: layer swapping, streamed to disk."
    )
    parser.add_version()
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    merge = commands.add_parser("merge", help="merge two experts into a new checkpoint (plan and apply in one)")
    _add_sources(merge, required=False)
    _add_recipe(merge)
    merge.add_argument(
        "--out", metavar="OUT", help="where to write, as DIR or s3://bucket/prefix; must not exist (default: ./MATH+LANG-b4u2t2)"
    )
    merge.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    _add_writing(merge)
    _add_engine(merge)
    _add_running(merge, run["merge"])

    plan = commands.add_parser("plan", help="plan a merge from the headers alone")
    _add_sources(plan, required=False)
    _add_recipe(plan)
    plan.add_argument("--out", metavar="FILE", help="where to write the plan as JSON")
    _add_running(plan, run["plan"], workers=False)

    apply = commands.add_parser("apply", help="execute a plan")
    apply.add_argument("plan", metavar="PLAN", help="the JSON file that `plan` wrote")
    apply.add_argument(
        "--out", metavar="OUT", help="where to write, as DIR or s3://bucket/prefix; must not exist (default: ./MATH+LANG-b4u2t2)"
    )
    _add_locations(apply, "where {role} is now, if not where it was planned")
    _add_writing(apply)
    _add_engine(apply)
    apply.add_argument(
        "--part",
        metavar="K/N",
        help="do only the K-th of N parts, from 1 on, beside other workers; auto or auto/N: as Slurm, torchrun or Kubernetes say",
    )
    _add_running(apply, run["apply"])

    publish = commands.add_parser("publish", help="put the parts that `apply --part` made together under the final name")
    publish.add_argument("plan", metavar="PLAN", help="the JSON file that `plan` wrote")
    publish.add_argument(
        "--out", metavar="OUT", help="the output that the parts are of, DIR or s3://bucket/prefix (default: ./MATH+LANG-b4u2t2)"
    )
    _add_locations(publish, "where {role} is now, if not where it was planned")
    _add_running(publish, run["publish"])

    inspect = commands.add_parser("inspect", help="show what a checkpoint holds")
    inspect.add_argument(
        "checkpoint",
        metavar="PATH",
        help="a model directory or a safetensors file, BASE+ADAPTER, org/name[@revision] on the hub, or a URL",
    )
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.add_argument("--layer-prefix", metavar="NAME", help="where the layers are, if that is unclear")
    _add_running(inspect, run["inspect"], workers=False)

    diff = commands.add_parser("diff", help="compare two checkpoints: names, shapes, dtypes, bytes (exit 1 if they differ)")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    _add_running(diff, run["diff"])

    analyze = commands.add_parser("analyze", help="show where two experts differ, and what each changed from their base")
    _add_sources(analyze)
    analyze.add_argument("--suggest", action="store_true", help="propose layers to swap (a heuristic; needs --base)")
    analyze.add_argument("--profiles", action="store_true", help="with --json: mean change of each row and column of matrices")
    analyze.add_argument("--csv", metavar="FILE", help="write the figures of every tensor to a new file")
    analyze.add_argument("--layer-prefix", metavar="NAME", help="where the layers are, if that is unclear, as model.layers")
    _add_running(analyze, run["analyze"])

    report = commands.add_parser("report", help="draw an output as one HTML page: its layers, changes, provenance, results")
    report.add_argument("output", metavar="OUT", help="a directory that `merge` or `apply` wrote")
    report.add_argument("--changes", metavar="FILE", help="what `analyze --json` printed of the experts, for all layers")
    report.add_argument(
        "--eval", metavar="FILE", help="results of an evaluation (default: OUT.eval.json, OUT.*.eval.json, eval.json)"
    )
    report.add_argument(
        "--html", metavar="FILE", help="where to write; must not exist (default: OUT-report.html; with --json: none)"
    )
    _add_running(report, run["report"], workers=False)

    push = commands.add_parser("push", help="put an output on the hub; run again to go on where it ended")
    push.add_argument("output", metavar="OUT", help="a directory that `merge` or `apply` wrote")
    push.add_argument("repository", metavar="ORG/NAME", help="the model on the hub; it is made if need be, private")
    push.add_argument("--public", action="store_true", help="make it for everyone to see")
    _add_running(push, run["push"], workers=False)

    verify = commands.add_parser("verify", help="verify an output against its manifest and its sources")
    verify.add_argument("output", metavar="OUT", help="a directory, or a place in a store, that `merge` or `apply` wrote")
    _add_locations(verify, "derive every byte again from {role}")
    _add_running(verify, run["verify"])
    return parser


def _add_sources(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    for role, what in (("math", "the expert that gives the middle layers"), ("lang", "the expert that gives the bottom and top")):
        parser.add_argument(
            f"--{role}",
            metavar="PATH",
            required=required,
            help=f"{what}: a model directory or a safetensors file, BASE+ADAPTER, org/name[@revision] on the hub, or a URL",
        )
        parser.add_argument(f"--{role}-name", metavar="NAME", help=f"what to call {role} in the model card, such as its hub id")
    parser.add_argument("--base", metavar="PATH", help="the model that both were tuned from, for what needs it")
    parser.add_argument("--base-name", metavar="NAME", help="what to call base in the model card")


def _add_locations(parser: argparse.ArgumentParser, text: str) -> None:
    for role in ROLES:
        parser.add_argument(f"--{role}", metavar="PATH", help=text.format(role=role))
    any_role = "the same for a source of any role, as code=models/code; may be repeated"
    parser.add_argument("--source", action="append", default=[], metavar="ROLE=PATH", help=any_role)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    other = parser.add_argument_group("other methods")
    other.add_argument("--method", choices=METHODS, default="layer-swap", help="how to merge (default: layer-swap)")
    other.add_argument("--scale", type=float, metavar="S", help="task-arithmetic (0.4), ties (1): what changes are multiplied by")
    other.add_argument("--density", type=float, metavar="D", help="ties: the fraction of each change that is kept (default: 0.2)")
    other.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="ROLE=PATH",
        help="soup: an expert of any role, beside --math and --lang or instead; the first gives the layout; may be repeated",
    )
    other.add_argument(
        "--weights", metavar="ROLE=W,...", help="soup: weight of every expert, divided by their sum (default: all the same)"
    )
    parser.set_defaults(usage_error=parser.error)
    layers = parser.add_argument_group("layers")
    layers.add_argument("--bottom", type=int, metavar="N", help="layers from lang at the bottom")
    layers.add_argument("--top", type=int, metavar="N", help="layers from lang at the top")
    layers.add_argument("--transition", type=int, metavar="N", help="blended layers at each seam (default: 0)")
    layers.add_argument("--transition-bottom", type=int, metavar="N", help="blended layers at the bottom seam alone")
    layers.add_argument("--transition-top", type=int, metavar="N", help="blended layers at the top seam alone")
    layers.add_argument("--lang-layers", metavar="SET", help="layers from lang by number, as 0-3,30,31, instead of the above")
    layers.add_argument("--blend-layers", metavar="SET", help="blended layers by number, instead of the above")
    layers.add_argument("--weight", type=float, metavar="W", help="lang's weight in blended layers, 0 to 1 (default: 0.5)")
    layers.add_argument(
        "--ramp",
        choices=RAMPS,
        help="constant: --weight in every blended layer; linear: falling from lang to math; mav: inversely proportional to each "
        "expert's mean absolute change from --base, per layer",
    )
    layers.add_argument("--swap", metavar="KINDS", help="confine the swap to kinds of modules: attn, mlp, norms, as attn,norms")
    layers.add_argument("--revert-layers", metavar="SET", help="layers that go back to base's, by number; needs --base")
    layers.add_argument("--auto", action="store_true", help="choose the layers by what changed from --base (a heuristic)")
    layers.add_argument("--changes", metavar="FILE", help="what `analyze --base X --json` printed, instead of --base")
    layers.add_argument("--layer-prefix", metavar="NAME", help="where the layers are, if that is unclear, as model.layers")
    outside = parser.add_argument_group("outside the layers")
    for part, what in (("embed", "embeddings"), ("norm", "final norm"), ("head", "output head; tied ones follow --embed")):
        outside.add_argument(f"--{part}", choices=OUTSIDE_CHOICES, help=f"the source of the {what} (default: math)")
    parser.add_argument(
        "--cast", action="store_true", default=None, help="round lang's tensors to math's dtypes where they differ"
    )
    parser.add_argument(
        "--shard-size", metavar="SIZE", help="give the output a new layout, in shards of this size, as 5GB (default: as math's)"
    )


def _add_writing(parser: argparse.ArgumentParser) -> None:
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to blend; auto is the CPU (default: auto)"
    )
    writing.add_argument(
        "--copy-method", choices=COPY_METHODS, help="the only way of copying to try; auto: all, the fastest first (default: auto)"
    )
    writing.add_argument(
        "--digest",
        choices=DIGESTS,
        help="what to record of the tensors' bytes; auto: XXH3 of all that this run moves; sha256: of whole shards as well",
    )
    writing.add_argument(
        "--link", choices=LINKS, help="hard: link shards in which nothing changes to their source's file (default: none)"
    )
    writing.add_argument(
        "--restart", action="store_true", help="discard what an unfinished run left (with --part: that part), and begin again"
    )
    writing.add_argument("--push", metavar="ORG/NAME", help="put the output on the hub as well, private")
    writing.add_argument("--public", action="store_true", help="with --push: for everyone to see")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("on a cluster")
    cluster.add_argument("--engine", choices=ENGINES, default="local", help="ray: as tasks of a Ray cluster (default: local)")
    cluster.add_argument(
        "--address", metavar="HOST", help="ray: of the cluster; auto: this machine's (default: RAY_ADDRESS, or one started here)"
    )
    cluster.add_argument("--parts", type=int, metavar="N", help="ray: how many parts (default: some for each task at once)")


def _add_running(parser: argparse.ArgumentParser, run: Command, *, workers: bool = True) -> None:
    if workers:
        parser.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help="threads (default: one per processor, two where an output is written, at most 8; 16 over a network)",
        )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)
