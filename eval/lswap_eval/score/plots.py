"""Plots of results: accuracy with its interval by setting, and a sweep as a heat map. Drawing needs no display."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lswap_eval.score.comparison import ALL, Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PER_INCH = 150


def draw_accuracies(results: Comparison) -> Figure:
    """One panel per language and one for all, one line per setting: percent right with its 95% interval. The reference's line
    is dashed.
    """
    from matplotlib.figure import Figure

    columns = (*results.languages, ALL) if len(results.languages) > 1 else results.languages
    figure = Figure(figsize=(2.2 + 1.9 * len(columns), 1.4 + 0.32 * len(results.settings)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    intervals_of = {(a.setting, a.language): a.interval for a in results.accuracies}
    heights = list(range(len(results.settings)))[::-1]
    for panel, language in zip(panels, columns, strict=True):
        intervals = [intervals_of[setting, language] for setting in results.settings]
        percents = [100 * i.estimate for i in intervals]
        below = [max(0.0, 100 * (i.estimate - i.low)) for i in intervals]
        above = [max(0.0, 100 * (i.high - i.estimate)) for i in intervals]
        panel.errorbar(percents, heights, xerr=[below, above], fmt="o", markersize=4, capsize=2, linewidth=1, color="#1f4e79")
        panel.axvline(100 * intervals_of[results.reference, language].estimate, linestyle="--", linewidth=0.8, color="#999999")
        panel.set_title("average" if language == ALL else language, fontsize=10)
        panel.set_yticks(heights, results.settings, fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(axis="x", linewidth=0.3)
    figure.supxlabel("percent right, 95% interval", fontsize=9)
    return figure


def draw_sweep(accuracies: Mapping[tuple[int, int, int], float]) -> Figure:
    """Draw a sweep: (bottom, top, transition) -> accuracy as a fraction. One panel per transition, bottom by top, percent in
    each cell.

    Points that were not run stay blank. Raises ValueError where there are no points.
    """
    from matplotlib.figure import Figure

    if not accuracies:
        raise ValueError("a sweep without points has no picture")
    bottoms, tops, transitions = (sorted({point[axis] for point in accuracies}) for axis in range(3))
    size = (1.2 + (0.9 + 0.5 * len(tops)) * len(transitions), 1.4 + 0.5 * len(bottoms))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(transitions), squeeze=False)[0]
    low, high = 100 * min(accuracies.values()), 100 * max(accuracies.values())
    for panel, transition in zip(panels, transitions, strict=True):
        cells = [[100 * accuracies.get((b, t, transition), math.nan) for t in tops] for b in bottoms]
        image = panel.imshow(cells, origin="lower", vmin=low, vmax=max(high, low + 1e-9), cmap="viridis", aspect="auto")
        panel.set_xticks(range(len(tops)), [str(t) for t in tops])
        panel.set_yticks(range(len(bottoms)), [str(b) for b in bottoms])
        panel.set_title(f"transition {transition}", fontsize=10)
        panel.set_xlabel("top")
        for row, percents in enumerate(cells):
            for column, percent in enumerate(percents):
                if not math.isnan(percent):
                    dark = percent < (low + high) / 2
                    panel.text(
                        column, row, f"{percent:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
                    )
    panels[0].set_ylabel("bottom")
    figure.colorbar(image, ax=list(panels), label="percent right")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure in the format of its suffix (.png, .svg, .pdf). Equal figures give equal bytes, so no time of drawing is
    saved.
    """
    from matplotlib import rc_context

    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "lswap_eval"}):
        figure.savefig(path, dpi=_PER_INCH, metadata=dated.get(path.suffix))
