"""Change maps as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lswap_core.analysis.changes import Change, ChangeMaps
from lswap_core.analysis.kinship import Kinship
from lswap_core.analysis.suggestion import Suggestion
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.report import Table

_SHOWN_MATRICES = 24
_SHOWN_NAMES = 8
_PARTS = {"embed": "embeddings", "norm": "final norm", "head": "head", "other": "other tensors"}


def layer_changes(maps: ChangeMaps) -> Table:
    """One row per layer and per part outside the layers. With a base, for each expert: mean |change|, |change| / |base| and
    the share of elements changed; then the cosine between the two changes, and the experts' distance, relative to math.
    """
    rows = {f"layer {number}": change for number, change in maps.by_layer().items()}
    return _table("part", rows | {_PARTS[part]: change for part, change in maps.by_part().items()}, maps)


def matrix_changes(maps: ChangeMaps) -> Table:
    """One row per matrix, all layers taken together; of many, those that differ most, relative to their norm."""
    matrices = maps.by_matrix()
    most = sorted(matrices, key=lambda name: -matrices[name].difference.relative_norm)[:_SHOWN_MATRICES]
    shown = {name: change for name, change in matrices.items() if name in most}
    left = len(matrices) - len(shown)
    return _table(f"matrix (and {left} more)" if left else "matrix", shown, maps)


def _table(title: str, rows: Mapping[str, Change], maps: ChangeMaps) -> Table:
    if maps.base is None:
        columns: Iterable[str] = ("mean |d|", "rms d", "max |d|", "|d| / |math|", "cosine", "elements that differ")
        return Table((title, *columns), tuple((name, *_apart(change.difference)) for name, change in rows.items()))
    columns = (f"{role}: {what}" for role in ("math", "lang") for what in ("mean", "/ |base|", "changed"))
    return Table(
        (title, *columns, "cosine", "|math - lang|"),
        tuple((name, *_changed(change)) for name, change in rows.items()),
    )


def _apart(stats: DifferenceStats) -> tuple[str, ...]:
    figures = (stats.mean_abs, stats.rms, stats.max_abs, stats.relative_norm)
    return (*(f"{figure:.3g}" for figure in figures), f"{stats.cosine:.6f}", _share(stats))


def _changed(change: Change) -> tuple[str, ...]:
    sides = [stats for stats in (change.math, change.lang) if stats is not None]
    cells = [cell for stats in sides for cell in (f"{stats.mean_abs:.3g}", f"{stats.relative_norm:.3g}", _share(stats))]
    cosine = "-" if change.cosine is None else f"{change.cosine:.4f}"
    return (*cells, cosine, f"{change.difference.relative_norm:.3g}")


def _share(stats: DifferenceStats) -> str:
    return f"{stats.differing / stats.count:.1%}" if stats.count else "-"


def findings(maps: ChangeMaps, kin: Iterable[Kinship], proposed: Suggestion | None, unclear: str) -> list[str]:
    """What to say beside the tables. unclear: why there is no proposal."""
    lines = [each.sentence() for each in kin] or [
        "no matrix in the layers was compared: nothing tells whether they have one base"
    ]
    if maps.uncompared:
        shown = ", ".join(maps.uncompared[:_SHOWN_NAMES]) + (", ..." if len(maps.uncompared) > _SHOWN_NAMES else "")
        lines.append(f"not compared, since their dtypes have no arithmetic here: {len(maps.uncompared)} tensors: {shown}")
    if proposed:
        lines.append(f"suggestion {proposed.sentence()}")
    return [*lines, f"no suggestion: {unclear}"] if unclear else lines
