"""The command line: argv -> `api` call -> text. The only place that prints or exits.

Results go to stdout, progress and errors to stderr. Exit status: 0 done; 1 the operating system refused, or `diff`
found a difference; 2 usage; 3 to 7 as in `lswap_core.errors`; 130 interrupted, 129 hung up, 143 terminated.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lswap_core.arguments import build_parser
from lswap_core.display import counted, one_line
from lswap_core.errors import LswapError, RecipeError
from lswap_core.options import WriteOptions
from lswap_core.recipe import LayerSwap, parse_layers
from lswap_core.sizes import format_size, parse_size

if TYPE_CHECKING:
    from lswap_core.checkpoint import Checkpoint
    from lswap_core.plan import Plan
    from lswap_core.ports import Progress
    from lswap_core.report import Table

_INTERRUPTED = 130
_WIDE = 160
_SWAP_OPTIONS = ("bottom", "top", "transition", "transition_bottom", "transition_top", "lang_layers", "blend_layers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = build_parser(_COMMANDS).parse_args(argv)
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return int(arguments.run(arguments))
    except LswapError as error:
        return _fail(arguments, error, str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(arguments, error, f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt as error:
        what = "interrupted" if getattr(error, "__notes__", None) else "interrupted; nothing was left behind"
        return _fail(arguments, error, what, _INTERRUPTED)
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # else this process is on its way out, undisturbed
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> NoReturn:
    """Once, so that a half-made output is cleared away; whoever is impatient must not interrupt the clearing."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _fail(arguments: argparse.Namespace, error: BaseException, message: str, status: int) -> int:
    message = "; ".join([message, *getattr(error, "__notes__", ())])
    print(f"lswap_core: error: {one_line(message)}", file=sys.stderr)
    if arguments.json:
        issues = list(getattr(error, "issues", ()))
        _print_json({"error": {"type": type(error).__name__, "exit": status, "message": message, "issues": issues}})
    return status


def _say(line: str) -> None:
    """Print one line; names in it come from files, and none may break it or drive the terminal."""
    print(one_line(line))


def _merge(arguments: argparse.Namespace) -> int:
    from lswap_core import api, report

    plan = _make_plan(arguments)
    into = arguments.out or report.default_name(plan)
    if arguments.dry_run:
        api.check_output(plan, into)
        return _show_plan(plan, arguments, into)
    return _execute(plan, arguments, into, {})


def _plan(arguments: argparse.Namespace) -> int:
    from lswap_core import api

    plan = _make_plan(arguments)
    if arguments.out:
        api.write_plan(plan, arguments.out)
    return _show_plan(plan, arguments, None)


def _apply(arguments: argparse.Namespace) -> int:
    from lswap_core import api, report

    plan = api.read_plan(arguments.plan)
    return _execute(plan, arguments, arguments.out or report.default_name(plan), _locations(arguments))


def _make_plan(arguments: argparse.Namespace) -> Plan:
    gc.disable()  # a plan is all values, with nothing to collect; looking for it takes a third of the time of a large one
    try:
        return _planned(arguments)
    finally:
        gc.enable()


def _planned(arguments: argparse.Namespace) -> Plan:
    from lswap_core import api

    if not arguments.auto and all(getattr(arguments, option) is None for option in _SWAP_OPTIONS):
        raise RecipeError("nothing to swap: say how many layers, as --bottom 4 --top 2, or which, as --lang-layers 0-3,30")
    given = {name: getattr(arguments, name) for name in LayerSwap.__slots__ if getattr(arguments, name) is not None}
    for name in ("lang_layers", "blend_layers"):
        if name in given:
            given[name] = parse_layers(given[name])
    recipe = LayerSwap(**given)
    shard_size = None if arguments.shard_size is None else parse_size(arguments.shard_size)
    math = api.open_checkpoint(arguments.math, role="math", name=arguments.math_name)
    lang = api.open_checkpoint(arguments.lang, role="lang", name=arguments.lang_name)
    draft = api.draft_swap(
        recipe,
        math=math,
        lang=lang,
        base=_base(arguments),
        changes=api.read_changes(arguments.changes) if arguments.changes else None,
        auto=arguments.auto,
        progress=_progress(arguments, "analysing"),
        workers=getattr(arguments, "workers", None),
    )
    return api.lay_out(draft, shard_size)


def _base(arguments: argparse.Namespace) -> Checkpoint | None:
    from lswap_core import api

    return api.open_checkpoint(arguments.base, role="base", name=arguments.base_name) if arguments.base else None


def _analyze(arguments: argparse.Namespace) -> int:
    from lswap_core import api, change_tables, kinship, suggestion
    from lswap_core.sinks.partial import check_destination

    if arguments.profiles and not arguments.json:
        raise RecipeError("--profiles are printed by --json alone; give both")
    if arguments.suggest and not arguments.base:
        raise RecipeError("--suggest needs --base: which layers changed shows only against the model that both experts come from")
    math = api.open_checkpoint(arguments.math, role="math", name=arguments.math_name)
    lang = api.open_checkpoint(arguments.lang, role="lang", name=arguments.lang_name)
    base = _base(arguments)
    places = [source.location for source in (math, lang, base) if source is not None]
    csv = check_destination(arguments.csv, places) if arguments.csv else None
    maps = api.analyze(
        math=math,
        lang=lang,
        base=base,
        layer_prefix=arguments.layer_prefix,
        profiles=arguments.profiles,
        progress=_progress(arguments, "analysing"),
        workers=arguments.workers,
    )
    if csv is not None:
        with open(csv, "x", encoding="utf-8", newline="") as file:
            file.write(maps.to_csv())
    found = kinship.find_kinship(maps)
    proposed, unclear = None, ""
    if arguments.suggest:
        try:
            proposed = suggestion.suggest(maps)
        except RecipeError as error:  # a finding about these experts, which the tables explain
            unclear = str(error)
    if arguments.json:
        kin = [{**dataclasses.asdict(each), "verdict": each.verdict} for each in found]
        advice = proposed.to_json() if proposed else {"reason": unclear} if unclear else None
        _print_json(maps.to_json() | {"kinship": kin, "suggestion": advice})
    elif not arguments.quiet:
        _print_table(change_tables.layer_changes(maps))
        _print_table(change_tables.matrix_changes(maps))
        for line in change_tables.findings(maps, found, proposed, unclear):
            _say(f"- {line}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from lswap_core import api

    page = api.describe(arguments.output, changes=arguments.changes, evaluation=arguments.eval)
    place = None
    if arguments.html or not arguments.json:
        place = api.write_page(page, arguments.output, arguments.html)
    if arguments.json:
        _print_json(page.to_json())
    elif not arguments.quiet:
        _say(f"{place}: {format_size(place.stat().st_size if place else 0)}, opens in a browser and needs no network")
    return 0


def _execute(plan: Plan, arguments: argparse.Namespace, into: str, locations: dict[str, str]) -> int:
    from lswap_core import api
    from lswap_core.traffic import METHODS, Traffic

    given = {name: getattr(arguments, name) for name in WriteOptions.__slots__ if getattr(arguments, name) is not None}
    traffic = Traffic()
    manifest = api.execute(
        plan,
        into=into,
        locations=locations,
        progress=_progress(arguments, f"writing {Path(into).name}"),
        workers=arguments.workers,
        device=arguments.device,
        options=WriteOptions(**given),
        restart=arguments.restart,
        traffic=traffic,
    )
    if arguments.json:
        print(manifest.to_json(), end="")
    elif not arguments.quiet:
        _show_decisions(plan)
        _say(f"{into}: {plan.summary()}")
        _say(", ".join(f"{format_size(count)} {METHODS[method]}" for method, count in traffic.bytes_by_method.items()))
    return 0


def _show_plan(plan: Plan, arguments: argparse.Namespace, into: str | None) -> int:
    if arguments.json:
        print(plan.to_json(), end="")
    elif not arguments.quiet:
        _show_decisions(plan)
        _say(f"{into}: {plan.summary()}" if into else plan.summary())
        files = f"{counted(len(plan.files), 'shard')} and {counted(len(plan.sidecars), 'small file')}"
        _say(f"{files}; needs {format_size(plan.write_bytes)} of disk")
    return 0


def _show_decisions(plan: Plan) -> None:
    from lswap_core import report

    if plan.swap is not None:
        _print_table(report.layer_table(plan.swap, {step.name: step.size_bytes for step in plan.steps}))
    for note in report.plan_notes(plan):
        _say(f"- {note}")


def _inspect(arguments: argparse.Namespace) -> int:
    from lswap_core import api, report

    checkpoint = api.open_checkpoint(arguments.checkpoint, role="math")
    overview = report.Overview.of(checkpoint, arguments.layer_prefix)
    tensors = report.tensor_table(checkpoint)
    if arguments.json:
        rows = [dict(zip(tensors.columns, row, strict=True)) for row in tensors.rows]
        _print_json(overview.to_json() | ({"list": rows} if arguments.tensors else {}))
    elif not arguments.quiet:
        for line in overview.lines():
            _say(line)
        _print_table(overview.dtype_table())
        if arguments.tensors:
            _print_table(tensors)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from lswap_core import api

    found = api.diff(arguments.a, arguments.b, progress=_progress(arguments, "comparing"), workers=arguments.workers)
    if arguments.json:
        _print_json(found.to_json())
    elif not arguments.quiet:
        said = {
            "only_in_a": "only in a",
            "only_in_b": "only in b",
            "shapes": "other shape",
            "dtypes": "other dtype",
            "bytes": "other bytes",
        }
        for field, what in said.items():
            for name in getattr(found, field):
                _say(f"{what}: {name}")
        _say(f"{len(found.equal)} tensors are equal" + (f", {found.differing} differ" if found.differing else ""))
    return 1 if found.differing else 0


def _verify(arguments: argparse.Namespace) -> int:
    from lswap_core import api

    locations = _locations(arguments)
    bar = _progress(arguments, "verifying")
    manifest = api.verify(arguments.output, locations=locations, progress=bar, workers=arguments.workers)
    unread = () if locations else manifest.undigested
    held = len(manifest.tensors) - len(unread)
    if arguments.json:
        _print_json({"verified": held, "against": ["manifest", *locations], "unread": list(unread)})
    elif not arguments.quiet:
        against = "its manifest says" + (f", and as {' and '.join(locations)} give them" if locations else "")
        _say(f"{arguments.output}: {counted(held, 'tensor')}, all as {against}")
        if unread:
            roles = " and ".join(f"--{source.role}" for source in manifest.sources)
            _say(f"- {counted(len(unread), 'tensor')} shared with a source, without a digest, not read; give {roles} to compare")
    return 0


def _locations(arguments: argparse.Namespace) -> dict[str, str]:
    return {role: getattr(arguments, role) for role in ("math", "lang", "base") if getattr(arguments, role)}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _print_table(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(table.columns):
        drawn.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(one_line(cell)) for cell in row))
    Console(width=None if _is_terminal(sys.stdout) else _WIDE).print(drawn)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # Python has None for a stream that is closed from the start


def _progress(arguments: argparse.Namespace, what: str) -> Progress | None:
    if arguments.quiet or not _is_terminal(sys.stderr):
        return None
    from lswap_core.progress import Bar

    return Bar(what)


_COMMANDS = {
    "merge": _merge,
    "plan": _plan,
    "apply": _apply,
    "inspect": _inspect,
    "diff": _diff,
    "verify": _verify,
    "analyze": _analyze,
    "report": _report,
}
