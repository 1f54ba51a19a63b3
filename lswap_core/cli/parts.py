"""The commands `apply --part` and `publish`: one output by many workers."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from lswap_core.cli.console import print_json, progress_bar, say
from lswap_core.cli.planning import stored_plan
from lswap_core.errors import RecipeError
from lswap_core.options import WriteOptions
from lswap_core.text.plain import counted, format_size

if TYPE_CHECKING:
    from lswap_core.plan.manifest import Manifest
    from lswap_core.plan.plan import Plan
    from lswap_core.verbs.execute import Execution


def run_keywords(arguments: argparse.Namespace, what: str) -> Execution:
    """The keyword arguments of a run. what: the progress bar's label."""
    given = {name: getattr(arguments, name) for name in WriteOptions.__slots__ if getattr(arguments, name) is not None}
    return {
        "progress": progress_bar(arguments, what),
        "workers": arguments.workers,
        "device": arguments.device,
        "options": WriteOptions(**given),
        "restart": arguments.restart,
    }


def run_part(arguments: argparse.Namespace, locations: dict[str, str]) -> int:
    """Do one part of a plan."""
    from lswap_core.cli.launcher import parse_part
    from lswap_core.report import card
    from lswap_core.verbs import parts

    if arguments.engine != "local":
        raise RecipeError(f"--part and --engine {arguments.engine} do not go together: the engine divides the work itself")
    check_engine(arguments)
    if arguments.push or arguments.public:
        raise RecipeError("--push has no effect with --part: a part is no output; push what `lswap-core publish` made")
    part = parse_part(arguments.part, os.environ)
    plan = stored_plan(arguments)
    into = arguments.out or card.default_name(plan)
    how = run_keywords(arguments, f"part {part} of {os.path.basename(into)}")
    done = parts.apply_part(plan, part, into=into, locations=locations, **how)
    if arguments.json:
        told = {"part": part.number, "parts": part.count, "tensors": done.tensors, "bytes": done.size_bytes, "anew": done.anew}
        print_json(told)
    elif not arguments.quiet:
        what = f"{counted(done.tensors, 'tensor')}, {format_size(done.size_bytes)}"
        say(f"{into}: part {part} {'is done' if done.anew else 'was done already'}: {what}")
        where = ["--out", arguments.out] if arguments.out else []
        say(f"- when all {part.count} are: {shlex.join(['lswap-core', 'publish', arguments.plan, *where])}")
    return 0


def check_engine(arguments: argparse.Namespace) -> None:
    """Raises RecipeError for options that have no effect on this machine alone."""
    if arguments.engine != "local":
        return
    for option in ("address", "parts"):
        if getattr(arguments, option) is not None:
            raise RecipeError(f"--{option} has no effect without --engine ray")


def run_on_ray(plan: Plan, arguments: argparse.Namespace, into: str, locations: dict[str, str], how: Execution) -> Manifest:
    """Execute a plan on a Ray cluster."""
    from lswap_core.verbs import ray_cluster

    return ray_cluster.execute_on_ray(
        plan,
        into=into,
        address=arguments.address,
        parts=arguments.parts,
        locations=locations,
        **how,
    )


def run_publish(arguments: argparse.Namespace, locations: dict[str, str]) -> int:
    """Publish an output whose parts are all done."""
    from lswap_core.report import card
    from lswap_core.verbs import parts

    plan = stored_plan(arguments)
    into = arguments.out or card.default_name(plan)
    manifest = parts.publish(plan, into=into, locations=locations, workers=arguments.workers)
    if arguments.json:
        print(manifest.to_json(), end="")
    elif not arguments.quiet:
        say(f"{into}: {plan.summary()}")
    return 0
