"""Makes a report: collects what there is to show of an output, and writes the page beside it."""

from __future__ import annotations

import os
from pathlib import Path

from lswap_core.errors import RecipeError
from lswap_core.io.locations import is_remote
from lswap_core.report.evaluations import find_evaluations, find_logs, read_evaluation
from lswap_core.report.page import Page, compile_page
from lswap_core.sinks.disk.partial_directory import check_destination
from lswap_core.sources.outputs import read_manifest
from lswap_core.verbs.analyze import read_changes

StrPath = str | os.PathLike[str]


def describe(output: StrPath, *, changes: StrPath | None = None, evaluation: StrPath | None = None) -> Page:
    """Collect the content of a report: an output's manifest, the change maps in `changes`, and evaluation results in
    `evaluation` or, without that, in the files of `find_evaluations`. `write_page` renders it.

    Raises FormatError for malformed files, and RecipeError where `changes` are of other experts.
    """
    manifest = read_manifest(output)
    root = _path_of(output)
    maps = None if changes is None else read_changes(changes)
    evaluations = find_evaluations(root) if evaluation is None else (Path(evaluation),)
    logs = [log.name for log in find_logs(root)]
    return compile_page(root.name, manifest, maps, map(read_evaluation, evaluations), logs)


def write_page(page: Page, output: StrPath, into: StrPath | None = None) -> Path:
    """Write a page of an output as one HTML file, by default `<output>-report.html` beside it. Returns its path.

    Raises RecipeError where the file exists or would be inside the output, and where plotly is not installed.
    """
    from lswap_core.report import html

    root = _path_of(output)
    place = check_destination(into or root.with_name(f"{root.name}-report.html"), [], option="--html")
    if place.is_relative_to(os.path.realpath(root)):
        raise RecipeError(f"{place} would be in {root}, which holds what its manifest says and no more; choose another --html")
    text = html.render(page)
    with open(place, "x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except BaseException:  # half a page is useless
            place.unlink()
            raise
    return place


def _path_of(output: StrPath) -> Path:
    """The path that pages and results of an output are beside: of a remote output, its name in the working directory."""
    location = os.fspath(output)
    return Path(os.path.abspath(location.rstrip("/").rpartition("/")[2] if is_remote(location) else location))
