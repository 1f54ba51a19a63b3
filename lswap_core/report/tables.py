"""Tables of plans, manifests and change maps, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from lswap_core.analysis.changes import Change, ChangeMaps
from lswap_core.analysis.shared_base import SharedBaseCheck
from lswap_core.analysis.suggestion import Suggestion
from lswap_core.checkpoint.names import Stack
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import Manifest
from lswap_core.recipe.draft import SwapRecord
from lswap_core.text.plain import format_size, listed

_LAYER_COLUMNS = ("part", "from", "lang's weight", "tensors", "size")


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text: column titles and rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """Return a GitHub table."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def layer_table(swap: SwapRecord, sizes: Mapping[str, int]) -> Table:
    """The source of each part: ranges of layers, then the parts outside them. sizes: bytes by tensor name."""
    if not swap.weights:
        said = "base and what math and lang changed"
        if swap.options.get("method") == "soup":
            said = f"blend of {listed([*swap.options['weights']])}"
        made = ("all tensors", said, "-", str(len(sizes)), format_size(sum(sizes.values())))
        return Table(_LAYER_COLUMNS, (made,))
    stack = Stack(swap.prefix, len(swap.weights))
    by_layer: dict[int, list[int]] = {number: [] for number in range(stack.count)}
    for number, size in zip(stack.layers_of(sizes), sizes.values(), strict=True):
        if number is not None:
            by_layer[number].append(size)
    rows = []
    reverted = set(swap.options.get("revert_layers", ()))
    for (weight, is_base), run in groupby(range(stack.count), key=lambda n: (swap.weights[n], n in reverted)):
        numbers = list(run)
        held = [size for number in numbers for size in by_layer[number]]
        span = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        rows.append(
            (
                f"layer{'s' if len(numbers) > 1 else ''} {span}",
                "base" if is_base else _giver(weight),
                f"{weight:.6g}",
                str(len(held)),
                format_size(sum(held)),
            )
        )
    weight = swap.options.get("weight", 0.5)
    weights = {"math": "0", "lang": "1", "blend": f"{weight:.6g}"}
    titles = {"embed": "embeddings", "norm": "final norm", "head": "head", "other": "other tensors"}
    for part, (giver, names) in swap.outside.items():
        if names:
            said = "blend of math and lang" if giver == "blend" else giver
            total = sum(sizes[name] for name in names)
            rows.append((titles.get(part, part), said, weights[giver], str(len(names)), format_size(total)))
    return Table(_LAYER_COLUMNS, tuple(rows))


def _giver(weight: float) -> str:
    return {0.0: "math", 1.0: "lang"}.get(weight, "blend of math and lang")


def seam_table(manifest: Manifest, swap: SwapRecord) -> Table | None:
    """Difference of the two experts in every blended layer, None where nothing was blended."""
    stack = Stack(swap.prefix, len(swap.weights))
    totals: dict[int, DifferenceStats] = {}
    for name, record in manifest.tensors.items():
        number = stack.layer_of(name)
        if record.statistics is not None and number is not None:
            totals[number] = totals.get(number, DifferenceStats()) + record.statistics
    rows = [
        (
            str(number),
            f"{swap.weights[number]:.6g}",
            f"{stats.mean_abs:.3g}",
            f"{stats.max_abs:.3g}",
            f"{stats.relative_norm:.3g}",
            f"{stats.cosine:.6f}",
            f"{stats.differing / stats.count:.1%}" if stats.count else "-",
        )
        for number, stats in sorted(totals.items())
    ]
    columns = ("layer", "lang's weight", "mean |d|", "max |d|", "|d| / |math|", "cosine", "elements that differ")
    return Table(columns, tuple(rows)) if rows else None


_SHOWN_MATRICES = 24

_SHOWN_NAMES = 8

_PARTS = {"embed": "embeddings", "norm": "final norm", "head": "head", "other": "other tensors"}


def layer_changes(maps: ChangeMaps) -> Table:
    """One row per layer and per part outside the layers.

    With a base, for each expert: mean |change|, |change| / |base| and the fraction of elements changed; then the cosine
    between the two changes, and the experts' distance, relative to math.
    """
    rows = {f"layer {number}": change for number, change in maps.by_layer().items()}
    return _table("part", rows | {_PARTS[part]: change for part, change in maps.by_part().items()}, maps)


def matrix_changes(maps: ChangeMaps) -> Table:
    """One row per matrix, with all layers summed. Of many, those that differ most relative to their norm."""
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


def findings(maps: ChangeMaps, kin: Iterable[SharedBaseCheck], proposed: Suggestion | None, unclear: str) -> list[str]:
    """Sentences beside the tables. unclear: why there is no suggestion."""
    lines = [each.sentence() for each in kin] or [
        "no matrix in the layers was compared, so it is unknown whether they have one base"
    ]
    if maps.uncompared:
        shown = ", ".join(maps.uncompared[:_SHOWN_NAMES]) + (", ..." if len(maps.uncompared) > _SHOWN_NAMES else "")
        lines.append(f"not compared, since their dtypes have no arithmetic here: {len(maps.uncompared)} tensors: {shown}")
    if proposed:
        lines.append(f"suggestion {proposed.sentence()}")
    return [*lines, f"no suggestion: {unclear}"] if unclear else lines
