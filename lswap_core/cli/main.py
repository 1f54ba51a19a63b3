"""The command line: parses arguments, calls a verb, prints text. Only this wing prints or exits.

Results go to stdout, progress and errors to stderr. Exit status: 0 done; 1 the operating system refused, or `diff` found a
difference; 2 usage; 3 to 7 as in `lswap_core.errors`; 130 interrupted, 129 hung up, 143 terminated.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lswap_core.cli.analysis import run_analyze, run_report
from lswap_core.cli.arguments import build_parser
from lswap_core.cli.command import run_command
from lswap_core.cli.console import print_json, print_table, progress_bar, say, shows_progress
from lswap_core.cli.parts import check_engine, run_keywords, run_on_ray, run_part, run_publish
from lswap_core.cli.planning import make_plan, stored_plan
from lswap_core.cli.sources import named_sources
from lswap_core.errors import LswapError, RecipeError
from lswap_core.io.locations import is_url
from lswap_core.text.plain import counted, format_size, listed

if TYPE_CHECKING:
    from lswap_core.plan.plan import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    arguments = build_parser(_COMMANDS).parse_args(argv)
    try:
        return run_command("lswap-core", arguments, interrupted="interrupted; nothing was left behind")
    finally:
        gc.unfreeze()  # the objects that `uncollected` froze


def _merge(arguments: argparse.Namespace) -> int:
    from lswap_core.report.card import default_name
    from lswap_core.verbs.merge import check_output

    plan = make_plan(arguments)
    into = arguments.out or default_name(plan)
    if arguments.dry_run:
        check_output(plan, into)
        _check_push(arguments, into)
        return _show_plan(plan, arguments, into)
    return _execute(plan, arguments, into, {})


def _plan(arguments: argparse.Namespace) -> int:
    from lswap_core.verbs.merge import write_plan

    plan = make_plan(arguments)
    if arguments.out:
        write_plan(plan, arguments.out)
    return _show_plan(plan, arguments, None)


def _apply(arguments: argparse.Namespace) -> int:
    if arguments.part is not None:
        return run_part(arguments, named_sources(arguments))
    from lswap_core.report.card import default_name

    plan = stored_plan(arguments)
    return _execute(plan, arguments, arguments.out or default_name(plan), named_sources(arguments))


def _publish(arguments: argparse.Namespace) -> int:
    return run_publish(arguments, named_sources(arguments))


def _execute(plan: Plan, arguments: argparse.Namespace, into: str, locations: dict[str, str]) -> int:
    from lswap_core.io.traffic import METHODS, Traffic
    from lswap_core.verbs.execute import execute
    from lswap_core.verbs.push import push

    check_engine(arguments)
    _check_push(arguments, into)
    traffic, how = Traffic(), run_keywords(arguments, f"writing {Path(into).name}")
    if arguments.engine == "ray":
        manifest = run_on_ray(plan, arguments, into, locations, how)
    else:
        how["traffic"] = traffic
        manifest = execute(plan, into=into, locations=locations, **how)
    if arguments.json:
        print(manifest.to_json(), end="")
    elif not arguments.quiet:
        _show_decisions(plan)
        say(f"{into}: {plan.summary()}")
        if moved := traffic.bytes_by_method:
            say(", ".join(f"{format_size(count)} {METHODS[method]}" for method, count in moved.items()))
    if arguments.push:
        try:
            uploaded = push(into, arguments.push, public=arguments.public, bars=shows_progress(arguments))
        except LswapError as error:
            error.add_note(f"{into} is complete; `lswap-core push {into} {arguments.push}` tries again")
            raise
        if not (arguments.json or arguments.quiet):
            say(f"{uploaded.url}: commit {uploaded.commit}")
    return 0


def _check_push(arguments: argparse.Namespace, into: str) -> None:
    """Check before any work whether the output can be pushed."""
    from lswap_core.verbs.push import check_repository

    if arguments.public and not arguments.push:
        raise RecipeError("--public has no effect without --push")
    if arguments.push and is_url(into):
        raise RecipeError(f"--push takes a local output, not {into}")
    if arguments.push:
        check_repository(arguments.push, public=arguments.public)


def _push(arguments: argparse.Namespace) -> int:
    from lswap_core.verbs.push import push

    done = push(arguments.output, arguments.repository, public=arguments.public, bars=shows_progress(arguments))
    if arguments.json:
        print_json(asdict(done))
    elif not arguments.quiet:
        kind = "private" if done.private else "public"
        say(f"{done.url}: commit {done.commit}; {counted(done.files, 'file')}, {format_size(done.size_bytes)}, {kind}")
    return 0


def _show_plan(plan: Plan, arguments: argparse.Namespace, into: str | None) -> int:
    from lswap_core.verbs.merge import travel

    if arguments.json:
        print(plan.to_json(), end="")
    elif not arguments.quiet:
        _show_decisions(plan)
        say(f"{into}: {plan.summary()}" if into else plan.summary())
        if (distance := travel(plan)) is not None:
            say(f"fetches {format_size(distance.needed)}; a full download would be {format_size(distance.download)}")
        files = f"{counted(len(plan.files), 'shard')} and {counted(len(plan.sidecars), 'small file')}"
        say(f"{files}; needs {format_size(plan.write_bytes)} of disk")
    return 0


def _show_decisions(plan: Plan) -> None:
    from lswap_core.report.card import plan_notes
    from lswap_core.report.tables import layer_table

    if plan.swap is not None:
        print_table(layer_table(plan.swap, plan.sizes()))
    for note in plan_notes(plan):
        say(f"- {note}")


def _inspect(arguments: argparse.Namespace) -> int:
    from lswap_core.report.overview import Overview, tensor_table
    from lswap_core.sources.places import open_checkpoint

    checkpoint = open_checkpoint(arguments.checkpoint, role="math")
    overview = Overview.of(checkpoint, arguments.layer_prefix)
    tensors = tensor_table(checkpoint)
    if arguments.json:
        rows = [dict(zip(tensors.columns, row, strict=True)) for row in tensors.rows]
        print_json(overview.to_json() | ({"list": rows} if arguments.tensors else {}))
    elif not arguments.quiet:
        for line in overview.lines():
            say(line)
        print_table(overview.dtype_table())
        if arguments.tensors:
            print_table(tensors)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from lswap_core.verbs.verify import diff

    difference = diff(arguments.a, arguments.b, progress=progress_bar(arguments, "comparing"), workers=arguments.workers)
    if arguments.json:
        print_json(difference.to_json())
    elif not arguments.quiet:
        said = {
            "only_in_a": "only in a",
            "only_in_b": "only in b",
            "shapes": "other shape",
            "dtypes": "other dtype",
            "bytes": "other bytes",
        }
        for field, what in said.items():
            for name in getattr(difference, field):
                say(f"{what}: {name}")
        say(f"{len(difference.equal)} tensors are equal" + (f", {difference.differing} differ" if difference.differing else ""))
    return 1 if difference.differing else 0


def _verify(arguments: argparse.Namespace) -> int:
    from lswap_core.verbs.execute import option_of
    from lswap_core.verbs.verify import verify

    locations = named_sources(arguments)
    bar = progress_bar(arguments, "verifying")
    manifest = verify(arguments.output, locations=locations, progress=bar, workers=arguments.workers)
    unread = () if locations else manifest.undigested
    held = len(manifest.tensors) - len(unread)
    if arguments.json:
        print_json({"verified": held, "against": ["manifest", *locations], "unread": list(unread)})
    elif not arguments.quiet:
        against = "its manifest says" + (f", and as {listed([*locations])} give them" if locations else "")
        say(f"{arguments.output}: {counted(held, 'tensor')}, all as {against}")
        if unread:
            roles = listed([option_of(source.role) for source in manifest.sources])
            say(f"- {counted(len(unread), 'tensor')} shared with a source, without a digest, not read; give {roles} to compare")
    return 0


_COMMANDS = {
    "merge": _merge,
    "plan": _plan,
    "apply": _apply,
    "inspect": _inspect,
    "diff": _diff,
    "verify": _verify,
    "push": _push,
    "analyze": run_analyze,
    "publish": _publish,
    "report": run_report,
}
