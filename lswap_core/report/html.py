"""Renders a page as one HTML file that needs no network: HTML tables, heat maps as plotly figures, plotly's script inlined.

Names come from files, so every text is escaped for its context: HTML, a script's data, or plotly's markup. Should one slip
through, the content security policy allows only the two scripts of this page, and no loading of anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from lswap_core.errors import RecipeError
from lswap_core.options import ROLES
from lswap_core.report.evaluations import ALL, Accuracy, Evaluation
from lswap_core.report.figures import MOST_CELLS, TITLES, draw_maps
from lswap_core.report.heatmaps import HeatMap, OriginMap
from lswap_core.report.page import Page
from lswap_core.report.tables import Table
from lswap_core.text.plain import format_size, one_line

_ABOUT = {
    "math": "Both experts are on one colour scale.",
    "lang": "Both experts are on one colour scale.",
    "difference": "x is math, y is lang: relative norm is |y - x| / |x|.",
    "agreement": "1: both moved the same way; 0: ways that have nothing to do with each other; -1: opposite ways.",
    "balance": "Lang's weight where weights are inverse to each expert's mean |change|: low where lang changed more.",
}


def render(page: Page) -> str:
    """Return the page as HTML text. Equal pages give equal text. Raises RecipeError where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise RecipeError(
            "a report is drawn with plotly, which is missing; `pip install lswap-core[report]` brings it (--json does without)"
        ) from error
    plotly, script = get_plotlyjs(), _part("report.js")
    drawn = draw_maps(page)
    policy = f"default-src 'none'; script-src {_digest(plotly)} {_digest(script)}; style-src 'unsafe-inline'; img-src data: blob:"
    return Template(_part("report.html")).substitute(
        title=_text(page.name),
        policy=escape(policy),
        style=_part("report.css"),
        summary=_summary(page),
        tiles=_tiles(page),
        sections="\n".join(filter(None, (_layers(page), _changes(page), _seams(page), _scores(page), _provenance(page)))),
        tool=_text(page.tool),
        figures=_data(drawn),
        plotly=plotly,
        script=script,
    )


def _part(name: str) -> str:
    return (files("lswap_core.report") / "templates" / name).read_text("utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _text(text: str) -> str:
    return escape(one_line(text))


def _data(value: Any) -> str:
    """JSON that cannot end the script element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _summary(page: Page) -> str:
    given = {source.role: source for source in page.sources}
    named = [f'<span class="role {_role(role)}">{role}</span> <b>{_text(source.name)}</b>' for role, source in given.items()]
    return "Made from " + " and ".join(named) if named else ""


def _tiles(page: Page) -> str:
    tiles = [("tensors", f"{page.tensors:,}"), ("size", format_size(page.size_bytes))]
    if page.shares:
        blended = sum(0 < weight < 1 for weight in page.shares)
        counts = [("layers", str(len(page.shares))), ("from lang", str(page.shares.count(1.0)))]
        tiles = [*counts, ("blended", str(blended)), ("from math", str(page.shares.count(0.0))), *tiles]
    return "".join(f"<div class=tile><dt>{title}</dt><dd>{value}</dd></div>" for title, value in tiles)


def _section(key: str, title: str, *inner: str) -> str:
    return f'<section id="{key}"><h2>{title}</h2>\n' + "\n".join(filter(None, inner)) + "\n</section>"


def _table(table: Table, *, left: int = 1, roles: int | None = None) -> str:
    """A table in a box that scrolls. left: left-aligned columns of text. roles: the column that names the source."""
    head = "".join(f"<th{'' if n < left else ' class=n'}>{_text(title)}</th>" for n, title in enumerate(table.columns))
    rows = []
    for row in table.rows:
        cells = []
        for n, cell in enumerate(row):
            shown = f'<span class="role {_role(cell)}">{_text(cell)}</span>' if n == roles else _text(cell)
            cells.append(f"<td{'' if n < left else ' class=n'}>{shown}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _box(f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")


def _box(table: str) -> str:
    return f'<div class="box" tabindex="0"><table>{table}</table></div>'


def _role(giver: str) -> str:
    """CSS class of a source: its own for math, lang and base, one for tensors made from several sources, none for others."""
    return giver if giver in ROLES else "blend" if " " in giver else ""


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<ul class=notes>{items}</ul>" if items else ""


def _plot(key: str, title: str, about: str = "") -> str:
    said = f"<figcaption><h3>{_text(title)}</h3>{f'<p>{_text(about)}</p>' if about else ''}</figcaption>"
    return f'<figure class="card">{said}<div class="plot" id="{key}" role="img" aria-label="{_text(title)}"></div></figure>'


def _too_many(one: HeatMap | OriginMap) -> str:
    size = f"{len(one.layers)} layers and {len(one.matrices)} matrices"
    return f'<p class="card hint">{size} are too many for a picture; <code>--json</code> has the figures.</p>'


def _layers(page: Page) -> str:
    plot = ""
    if page.origins is not None:
        fits = page.origins.cells <= MOST_CELLS
        shared = any(share is not None for row in page.origins.share for share in row)
        title = "Lang's weight, layer by layer" if shared else "Who gives what, layer by layer"
        plot = _plot("origins", title, "Layer 0 is at the bottom.") if fits else _too_many(page.origins)
    table = "" if page.parts is None else f'<div class="card">{_table(page.parts, left=2, roles=1)}{_notes(page.notes)}</div>'
    if not plot and not table:
        table = '<p class="card hint">These tensors were put together by hand; no layers were recognised among them.</p>'
    return _section("layers", "Layers", f'<div class="pair">{table}{plot}</div>')


def _changes(page: Page) -> str:
    title = "Changes and differences" if page.measured else "Differences"
    hint = ""
    if not page.measured:
        hint = (
            '<p class="hint">A merge measures the experts only where it blends them. For all layers, and for what each expert '
            "changed of the base:</p><pre class=box tabindex=0>lswap-core analyze --math A --lang B --base X --json &gt; "
            "changes.json\nlswap-core report OUT --changes changes.json</pre>"
        )
    elif page.base is None:
        hint = '<p class="hint">Measured without a base; <code>analyze --base X</code> shows what each expert changed of it.</p>'
    switch = ""
    if any(len(one.measures) > 1 for one in page.maps):
        names = next(one.measures for one in page.maps if len(one.measures) > 1)
        options = "".join(f'<option value="{name}">{TITLES[name]}</option>' for name in names)
        switch = f'<label class="switch">Colour by <select id="measure">{options}</select></label>'
    plots = "".join(
        _plot(f"map-{one.key}", one.title, _ABOUT[one.key]) if one.cells <= MOST_CELLS else _too_many(one) for one in page.maps
    )
    empty = "" if page.maps else '<p class="card hint">No layer was blended, so the merge measured nothing.</p>'
    tables = "".join(
        f'<details class="card"><summary>Figures by {name}</summary>{_table(table)}</details>'
        for name, table in page.figures.items()
    )
    about = f'<div class="card">{_notes(page.findings)}</div>' if page.findings else ""
    return _section("changes", title, about, hint, switch, f'<div class="maps">{plots}</div>' if plots else empty, tables)


def _seams(page: Page) -> str:
    if page.seams is None:
        return ""
    about = "<p class=hint>How the experts differ in the layers that are blended: d is lang less math.</p>"
    return _section("transition", "Transition zone", about, f'<div class="card">{_table(page.seams, left=0)}</div>')


def _scores(page: Page) -> str:
    parts = [f'<div class="card"><h3>{_text(one.name)}</h3>{_evaluation(one)}</div>' for one in page.evaluations]
    if not parts and page.unscored:
        logs = ", ".join(f"<code>{_text(log)}</code>" for log in page.unscored)
        parts = [f'<p class="hint">{logs}: not scored yet. <code>lswap-eval score LOG --json &gt; OUT.eval.json</code> does.</p>']
    about = "<p class=hint>Percent of problems solved, with the interval that the file gives.</p>" if page.evaluations else ""
    return _section("mgsm", "MGSM", about, *parts) if parts else ""


def _evaluation(one: Evaluation) -> str:
    note = "" if one.rule is None else f"<p class=hint>Answers read by the rule <code>{_text(one.rule)}</code>.</p>"
    if len(one.settings) == 1:
        rows = []
        for row in one.accuracies:
            bar = (
                f'<span class="bar"><i style="left:{100 * row.low:.2f}%;width:{100 * max(row.high - row.low, 0):.2f}%"></i>'
                f'<b style="left:{100 * row.estimate:.2f}%"></b></span>'
            )
            cells = (str(row.answers), f"{100 * row.estimate:.1f}", f"{100 * row.low:.1f} to {100 * row.high:.1f}")
            shown = "".join(f"<td class=n>{cell}</td>" for cell in cells)
            rows.append(f"<tr><td>{_language(row.language)}</td>{shown}<td>{bar}</td></tr>")
        head = "<th>language</th><th class=n>answers</th><th class=n>% right</th><th class=n>interval</th><th>0 to 100</th>"
        return note + _box(f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")
    accuracies: Mapping[tuple[str | None, str], Accuracy] = {(row.setting, row.language): row for row in one.accuracies}
    head = "<th>setting</th>" + "".join(f"<th class=n>{_language(language)}</th>" for language in one.languages)
    lines = []
    for setting in one.settings:
        cells_of = [_percent(accuracies.get((setting, language))) for language in one.languages]
        lines.append(f"<tr><td>{_text(setting or '')}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells_of)}</tr>")
    return note + _box(f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>")


def _language(language: str) -> str:
    return "average" if language == ALL else _text(language)


def _percent(row: Accuracy | None) -> str:
    if row is None:
        return "-"
    return f"{100 * row.estimate:.1f}<small> {100 * row.low:.1f} to {100 * row.high:.1f}</small>"


def _provenance(page: Page) -> str:
    rows = tuple((s.role, s.name, str(s.files), format_size(s.size_bytes)) for s in page.sources)
    sources = _table(Table(("role", "source", "shards", "size"), rows), left=2, roles=0)
    facts = [("plan, SHA-256", f"<code>{_text(page.plan_sha256)}</code>"), ("made with", _text(page.tool))]
    facts.append(("layout and config from", _text(page.host)))
    facts += [(_text(name.replace("_", " ")), _text(_shown(value))) for name, value in page.options.items()]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    command = ""
    if page.command is not None:
        command = f"<h3>The command that repeats it</h3><pre class=box tabindex=0>{_text(page.command)}</pre>"
    return _section("provenance", "Provenance", f'<div class="card">{sources}<dl class="facts">{listed}</dl>{command}</div>')


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
