"""The commands that show differences: `analyze` and `report`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from lswap_core.cli.console import load_tables, print_json, print_table, progress_bar, say
from lswap_core.cli.planning import open_pair
from lswap_core.errors import RecipeError
from lswap_core.text.plain import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from lswap_core.analysis.changes import ChangeMaps
    from lswap_core.checkpoint.catalogue import Checkpoint


def run_analyze(arguments: argparse.Namespace) -> int:
    """Run `lswap-core analyze`: print tables, or JSON, of the differences, and conclusions."""
    from concurrent.futures import ThreadPoolExecutor

    from lswap_core.verbs.analyze import analyze

    if arguments.profiles and not arguments.json:
        raise RecipeError("--profiles are printed by --json alone; give both")
    if arguments.suggest and not arguments.base:
        raise RecipeError("--suggest needs --base: which layers changed shows only against the model that both experts come from")
    math, lang, base = open_pair(arguments)
    csv = _csv_place(arguments.csv, math, lang, base)
    with ThreadPoolExecutor(1) as beside:
        loading = None if arguments.json or arguments.quiet else beside.submit(_load_tables)
        maps = analyze(
            math=math,
            lang=lang,
            base=base,
            layer_prefix=arguments.layer_prefix,
            profiles=arguments.profiles,
            progress=progress_bar(arguments, "analysing"),
            workers=arguments.workers,
        )
        if loading is not None:
            loading.result()  # raises what the import raised
    if csv is not None:
        with open(csv, "x", encoding="utf-8", newline="") as file:
            file.write(maps.to_csv())
    _show(maps, arguments)
    return 0


def _csv_place(path: str | None, *experts: Checkpoint | None) -> Path | None:
    """Where to write the figures, if they are wanted. Raises RecipeError for an impossible place."""
    if not path:
        return None
    from lswap_core.sinks.disk.partial_directory import check_destination

    return check_destination(path, [expert.location for expert in experts if expert is not None])


def _load_tables() -> None:
    """Load the modules that show the figures, while the experts are being read."""
    from lswap_core.analysis import shared_base, suggestion  # noqa: F401
    from lswap_core.report import tables  # noqa: F401

    load_tables()


def _show(maps: ChangeMaps, arguments: argparse.Namespace) -> None:
    from lswap_core.analysis import shared_base, suggestion

    checked = shared_base.check_shared_base(maps)
    proposed, unclear = None, ""
    if arguments.suggest:
        try:
            proposed = suggestion.suggest(maps)
        except RecipeError as error:  # a finding about these experts, which the tables explain
            unclear = str(error)
    if arguments.json:
        kin = [{**dataclasses.asdict(each), "verdict": each.verdict} for each in checked]
        advice = proposed.to_json() if proposed else {"reason": unclear} if unclear else None
        print_json(maps.to_json() | {"kinship": kin, "suggestion": advice})
    elif not arguments.quiet:
        from lswap_core.report import tables

        print_table(tables.layer_changes(maps))
        print_table(tables.matrix_changes(maps))
        for line in tables.findings(maps, checked, proposed, unclear):
            say(f"- {line}")


def run_report(arguments: argparse.Namespace) -> int:
    """Run `lswap-core report`: write an output's report as one HTML page, or print it as JSON."""
    from lswap_core.verbs.report import describe, write_page

    page = describe(arguments.output, changes=arguments.changes, evaluation=arguments.eval)
    place = None
    if arguments.html or not arguments.json:
        place = write_page(page, arguments.output, arguments.html)
    if arguments.json:
        print_json(page.to_json())
    elif not arguments.quiet:
        say(f"{place}: {format_size(place.stat().st_size if place else 0)}, opens in a browser and needs no network")
    return 0
