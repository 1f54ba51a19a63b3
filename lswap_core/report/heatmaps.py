"""Heat maps as values: figures of change maps or of a manifest by layer and matrix, and the source of each cell."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

from lswap_core.analysis.changes import Change, ChangeMaps, Side, figures
from lswap_core.checkpoint.names import Stack
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import Manifest
from lswap_core.recipe.expressions import Average, Blend, Expression, TaskVectors
from lswap_core.text.plain import listed

Cell = float | str | None
"""A figure. `inf` or `nan` as text, since JSON has no such numbers. None where there is no tensor or no figure."""
Rows = tuple[tuple[Cell, ...], ...]
CellKey = tuple[int, str]
"""Layer and matrix."""
Value = TypeVar("Value")
MEASURES = ("mean_abs", "rms", "max_abs", "relative_norm", "changed", "cosine")
_SIDES: Mapping[Side, str] = {
    "math": "What math changed of the base",
    "lang": "What lang changed of the base",
    "difference": "Difference of math and lang",
}


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Figures by layer (rows) and matrix (columns). measures: name -> one row per layer, one cell per matrix."""

    key: str
    title: str
    layers: tuple[int, ...]
    matrices: tuple[str, ...]
    measures: Mapping[str, Rows]

    @property
    def cells(self) -> int:
        """Number of cells of one measure."""
        return len(self.layers) * len(self.matrices)


@dataclass(frozen=True, slots=True)
class OriginMap:
    """The source of each cell, by layer and matrix.

    giver: `math`, `lang`, `base`, `blend` and so on, None where there is no tensor. share: lang's weight, None where it has
    no meaning.
    """

    layers: tuple[int, ...]
    matrices: tuple[str, ...]
    giver: tuple[tuple[str | None, ...], ...]
    share: Rows

    @property
    def cells(self) -> int:
        """Number of cells: layers times matrices."""
        return len(self.layers) * len(self.matrices)


def gather(matrix: str) -> str:
    """Replace the numbers in a matrix's name by `*`, so that the experts of a layer, which may be hundreds, become one
    matrix.

    >>> gather("mlp.experts.7.w1.weight"), gather("mlp.up_proj.weight")
    ('mlp.experts.*.w1.weight', 'mlp.up_proj.weight')
    """
    return ".".join("*" if part.isdecimal() else part for part in matrix.split("."))


def _grouped(entries: Iterable[tuple[str, Value]], stack: Stack, add: Callable[[Value, Value], Value]) -> dict[CellKey, Value]:
    """Sum values by layer and matrix, with names shortened by `gather`. Tensors outside the layers are left out."""
    groups: dict[CellKey, list[Value]] = {}
    for name, value in entries:
        if (number := stack.layer_of(name)) is not None:
            groups.setdefault((number, gather(name.removeprefix(f"{stack.prefix}.{number}."))), []).append(value)
    return {place: reduce(add, values) for place, values in groups.items()}


def _axes(places: Iterable[CellKey]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    held = list(places)
    return tuple(sorted({number for number, _ in held})), tuple(dict.fromkeys(matrix for _, matrix in held))


def _heat_map(key: str, title: str, cells: Mapping[CellKey, Mapping[str, Cell]], measures: Iterable[str]) -> HeatMap:
    layers, matrices = _axes(cells)
    nothing: Mapping[str, Cell] = {}
    return HeatMap(
        key,
        title,
        layers,
        matrices,
        {
            measure: tuple(tuple(cells.get((n, matrix), nothing).get(measure) for matrix in matrices) for n in layers)
            for measure in measures
        },
    )


def blended_maps(manifest: Manifest, stack: Stack | None) -> tuple[HeatMap, ...]:
    if stack is None:
        return ()
    blended = [(name, record.statistics) for name, record in manifest.tensors.items() if record.statistics is not None]
    sums: dict[CellKey, DifferenceStats] = _grouped(blended, stack, operator.add)
    if not sums:
        return ()
    title = "Difference of math and lang where they are blended"
    return (_heat_map("difference", title, {place: figures(stats) for place, stats in sums.items()}, MEASURES),)


def change_maps(changes: ChangeMaps) -> tuple[HeatMap, ...]:
    sums: dict[CellKey, Change] = _grouped(
        ((name, tensor.change) for name, tensor in changes.tensors.items()), changes.stack, operator.add
    )
    maps = []
    for side, title in _SIDES.items():
        cells = {place: figures(stats) for place, change in sums.items() if (stats := change.side(side)) is not None}
        if cells:
            maps.append(_heat_map(side, title, cells, MEASURES))
    if changes.base is not None and sums:
        both: dict[CellKey, dict[str, Cell]] = {
            place: {"change_cosine": change.cosine, "lang_share": change.lang_share} for place, change in sums.items()
        }
        difference = maps.pop()  # last, as it is the widest on the page
        maps.append(_heat_map("agreement", "Cosine of the two changes", both, ["change_cosine"]))
        maps.append(_heat_map("balance", "Blend by inverse change", both, ["lang_share"]))
        maps.append(difference)
    return tuple(maps)


def find_origins(manifest: Manifest, stack: Stack) -> OriginMap:
    given = ((name, (*_origin(record.made_of), math.prod(record.shape))) for name, record in manifest.tensors.items())
    cells = _grouped(given, stack, _together)
    layers, matrices = _axes(cells)
    table = [[cells.get((number, matrix), (None, None)) for matrix in matrices] for number in layers]
    return OriginMap(
        layers,
        matrices,
        tuple(tuple(cell[0] for cell in row) for row in table),
        tuple(tuple(cell[1] for cell in row) for row in table),
    )


_Origin = tuple[str, float | None, int]
"""Source, lang's weight, number of elements."""


def _together(a: _Origin, b: _Origin) -> _Origin:
    count = a[2] + b[2]
    giver = a[0] if a[0] == b[0] else "several"
    if a[1] is None or b[1] is None or a[1] == b[1]:
        return giver, a[1] if a[1] == b[1] else None, count
    return giver, (a[1] * a[2] + b[1] * b[2]) / count if count else None, count


def _origin(made_of: Expression) -> tuple[str, float | None]:
    if isinstance(made_of, TaskVectors):
        return "base and what was changed of it", None
    if isinstance(made_of, Average):
        return f"blend of {listed([operand.ref.role for operand in made_of.operands])}", None
    if isinstance(made_of, Blend):
        roles = made_of.x.ref.role, made_of.y.ref.role
        if roles == ("math", "lang"):
            return "blend", made_of.weight
        return ("blend", 1 - made_of.weight) if roles == ("lang", "math") else (f"blend of {roles[0]} and {roles[1]}", None)
    role = made_of.refs[0].role
    return role, {"math": 0.0, "lang": 1.0}.get(role)
