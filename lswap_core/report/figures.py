"""Heat maps as plotly figures, with the data that the page's script needs to fill cells, label axes and choose colours."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from lswap_core.report.heatmaps import HeatMap, OriginMap, Rows
from lswap_core.report.page import Page
from lswap_core.text.plain import one_line

MOST_CELLS = 20_000
"""Most cells in one heat map: 126 layers of 9 matrices have 1,134. More could not be distinguished, and would not fit on the
page."""
_MOST_LABEL = 30
TITLES = {
    "mean_abs": "mean |change|",
    "rms": "root mean square",
    "max_abs": "largest |change|",
    "relative_norm": "relative norm",
    "changed": "share of elements changed",
    "cosine": "cosine",
    "change_cosine": "cosine of the changes",
    "lang_share": "lang's weight",
}
_SHADES = {"cosine": "sequence", "change_cosine": "diverging", "lang_share": "share"}
_FIXED = {"change_cosine": (-1.0, 1.0), "lang_share": (0.0, 1.0)}


def draw_maps(page: Page) -> dict[str, Any]:
    """Return figure and cell data for each element id. Maps with more than MOST_CELLS cells are left out."""
    experts = [one for one in page.maps if one.key in ("math", "lang")]
    drawn = {}
    if page.origins is not None and page.origins.cells <= MOST_CELLS:
        shares = _measure("lang_share", page.origins.share, [])
        drawn["origins"] = _drawing(page.origins, [shares]) | {"givers": page.origins.giver}
    for one in page.maps:
        if one.cells <= MOST_CELLS:
            beside = experts if one in experts else [one]  # both experts share one colour scale
            measures = [_measure(name, rows, [other.measures[name] for other in beside]) for name, rows in one.measures.items()]
            drawn[f"map-{one.key}"] = _drawing(one, measures)
    return drawn


def _measure(name: str, rows: Rows, beside: Sequence[Rows]) -> dict[str, Any]:
    """The data of one measure. beside: the tables that share its colour scale."""
    low, high = _FIXED.get(name) or _range(name, beside)
    return {"name": name, "title": TITLES[name], "rows": rows, "low": low, "high": high, "shade": _SHADES.get(name, "sequence")}


def _range(name: str, tables: Sequence[Rows]) -> tuple[float, float]:
    """Ends of the colour scale. It begins at 0, except for a cosine, whose values are near 1 wherever it is useful."""
    seen = [cell for rows in tables for row in rows for cell in row if isinstance(cell, float | int) and math.isfinite(cell)]
    if name == "cosine":
        low = min(seen, default=0.0)
        return low, max(1.0, low + 1e-12)
    return 0.0, max(seen, default=0.0) or 1.0


def _drawing(one: HeatMap | OriginMap, measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import plotly.graph_objects as go

    # Positions are numbers, and names are tick labels: as categories, plotly would read some names as numbers or dates.
    figure = go.Figure(
        go.Heatmap(
            z=[[cell if isinstance(cell, float) else None for cell in row] for row in measures[0]["rows"]],
            x=list(range(len(one.matrices))),
            y=list(range(len(one.layers))),
            zmin=measures[0]["low"],
            zmax=measures[0]["high"],
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate="%{text}<extra></extra>",
            colorbar={
                "orientation": "h",
                "thickness": 8,
                "len": 1,
                "x": 0.5,
                "y": 1,
                "yanchor": "bottom",
                "ypad": 6,
                "nticks": 5,
            },
        ),
        layout={"template": "none", "dragmode": False, "xaxis": {"fixedrange": True}, "yaxis": {"fixedrange": True}},
    )
    return {
        "figure": json.loads(figure.to_json()),
        "layers": one.layers,
        "matrices": [_label(matrix) for matrix in one.matrices],
        "labels": [_label(_short(matrix)) for matrix in one.matrices],
        "measures": measures,
    }


def _label(name: str) -> str:
    """Escape a name for plotly, which interprets markup in every text."""
    return escape(one_line(name), quote=False)


def _short(matrix: str) -> str:
    name = matrix.removesuffix(".weight")
    return name if len(name) <= _MOST_LABEL else f"{name[: _MOST_LABEL // 2 - 1]}…{name[-_MOST_LABEL // 2 :]}"
