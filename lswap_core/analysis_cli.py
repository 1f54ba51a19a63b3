"""The part of the command line that shows what differs."""

from __future__ import annotations

import argparse
import dataclasses

from lswap_core.console import load_tables, print_json, print_table, progress_bar, say
from lswap_core.errors import RecipeError
from lswap_core.planning_cli import open_pair
from lswap_core.sizes import format_size


def run_analyze(arguments: argparse.Namespace) -> int:
    """`lswap_core analyze`: tables, or JSON, of what differs, and what it means."""
    from concurrent.futures import ThreadPoolExecutor

    from lswap_core import api, change_tables, kinship, suggestion
    from lswap_core.sinks.partial import check_destination

    if arguments.profiles and not arguments.json:
        raise RecipeError("--profiles are printed by --json alone; give both")
    if arguments.suggest and not arguments.base:
        raise RecipeError("--suggest needs --base: which layers changed shows only against the model that both experts come from")
    math, lang, base = open_pair(arguments)
    places = [source.location for source in (math, lang, base) if source is not None]
    csv = check_destination(arguments.csv, places) if arguments.csv else None
    with ThreadPoolExecutor(1) as beside:
        if not arguments.json and not arguments.quiet:
            beside.submit(load_tables)  # which takes a tenth of a second, while the experts are read
        maps = api.analyze(
            math=math,
            lang=lang,
            base=base,
            layer_prefix=arguments.layer_prefix,
            profiles=arguments.profiles,
            progress=progress_bar(arguments, "analysing"),
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
        print_json(maps.to_json() | {"kinship": kin, "suggestion": advice})
    elif not arguments.quiet:
        print_table(change_tables.layer_changes(maps))
        print_table(change_tables.matrix_changes(maps))
        for line in change_tables.findings(maps, found, proposed, unclear):
            say(f"- {line}")
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """`lswap_core report`: an output as one HTML page, or as JSON."""
    from lswap_core.page_files import describe, write_page

    page = describe(arguments.output, changes=arguments.changes, evaluation=arguments.eval)
    place = None
    if arguments.html or not arguments.json:
        place = write_page(page, arguments.output, arguments.html)
    if arguments.json:
        print_json(page.to_json())
    elif not arguments.quiet:
        say(f"{place}: {format_size(place.stat().st_size if place else 0)}, opens in a browser and needs no network")
    return 0
