"""The content of a report, as a value: a manifest, change maps and evaluation results, arranged for display.

Nothing is measured here. `Page.to_json` gives the same data to programs; `lswap_core.report.html` renders it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lswap_core.analysis.changes import ChangeMaps
from lswap_core.analysis.shared_base import check_shared_base
from lswap_core.analysis.suggestion import suggest
from lswap_core.checkpoint.names import Stack, find_stack
from lswap_core.errors import RecipeError
from lswap_core.plan.manifest import Manifest
from lswap_core.report.card import repeat_command
from lswap_core.report.evaluations import Evaluation
from lswap_core.report.heatmaps import HeatMap, OriginMap, blended_maps, change_maps, find_origins
from lswap_core.report.tables import Table, findings, layer_changes, layer_table, matrix_changes, seam_table

FORMAT = "lswap-report/1"


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """Summary of a source of the merge."""

    role: str
    name: str
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that a report shows.

    command: repeats the merge, None for surgery by hand. parts: the source of each part. seams: how the experts differ in the
    blended layers. maps: heat maps, of the change maps if there are any, else of the blended layers. base: the base's name in
    the change maps. figures: tables of the change maps by layer and by matrix. findings: conclusions from the change maps,
    one sentence each. unscored: logs of an evaluation without results.
    """

    name: str
    tool: str
    plan_sha256: str
    host: str
    command: str | None
    sources: tuple[SourceSummary, ...]
    options: Mapping[str, Any]
    notes: tuple[str, ...]
    tensors: int
    size_bytes: int
    shares: tuple[float, ...]
    parts: Table | None
    seams: Table | None
    origins: OriginMap | None
    maps: tuple[HeatMap, ...]
    measured: bool
    base: str | None
    figures: Mapping[str, Table]
    findings: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    unscored: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the page as JSON. Fractions of one, sizes in bytes."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        said |= {
            "options": dict(self.options),
            "sources": [asdict(source) for source in self.sources],
            "parts": _table_to_json(self.parts),
            "seams": _table_to_json(self.seams),
            "origins": None if self.origins is None else asdict(self.origins),
            "maps": [{name: getattr(one, name) for name in HeatMap.__slots__} for one in self.maps],
            "figures": {name: _table_to_json(table) for name, table in self.figures.items()},
            "evaluations": [evaluation.to_json() for evaluation in self.evaluations],
        }
        return {"format": FORMAT, **said}


def compile_page(
    name: str,
    manifest: Manifest,
    changes: ChangeMaps | None = None,
    evaluations: Iterable[Evaluation] = (),
    unscored: Iterable[str] = (),
) -> Page:
    """Return the page of the output called `name`. Raises RecipeError where `changes` were measured on other experts."""
    swap = manifest.swap
    if changes is not None:
        _check_sources(manifest, changes)
    stack = _stack_of(manifest)
    by_layers = swap is not None and bool(swap.weights)
    sizes = {tensor: record.end - record.begin for tensor, record in manifest.tensors.items()}
    return Page(
        name=name,
        tool=manifest.tool,
        plan_sha256=manifest.plan_digest,
        host=manifest.primary,
        command=None if swap is None else repeat_command(manifest, swap),
        sources=tuple(
            SourceSummary(source.role, source.name, len(source.files), sum(file.size for file in source.files))
            for source in manifest.sources
        ),
        options={} if swap is None else swap.options,
        notes=() if swap is None else swap.notes,
        tensors=len(sizes),
        size_bytes=sum(shard.size for shard in manifest.shards),
        shares=() if swap is None else swap.weights,
        parts=None if swap is None else layer_table(swap, sizes),
        seams=seam_table(manifest, swap) if swap is not None and by_layers else None,
        origins=None if stack is None else find_origins(manifest, stack),
        maps=blended_maps(manifest, stack) if changes is None else change_maps(changes),
        measured=changes is not None,
        base=None if changes is None else changes.base,
        figures={} if changes is None else {"layer": layer_changes(changes), "matrix": matrix_changes(changes)},
        findings=() if changes is None else _findings(changes),
        evaluations=tuple(evaluations),
        unscored=tuple(unscored),
    )


def _check_sources(manifest: Manifest, changes: ChangeMaps) -> None:
    measured = {source.role: set(source.files) for source in changes.sources}
    for source in manifest.sources:
        if source.role in measured and measured[source.role] != set(source.files):
            raise RecipeError(
                f"the changes were not measured on the {source.role} that was merged ({source.name}); run `analyze` on that"
            )


def _stack_of(manifest: Manifest) -> Stack | None:
    swap = manifest.swap
    if swap is not None and swap.weights:
        return Stack(swap.prefix, len(swap.weights))
    try:
        return find_stack(manifest.tensors, prefix=swap.prefix if swap is not None and swap.prefix else None)
    except RecipeError:  # surgery by hand, of any checkpoint: then there may be no layers
        return None


def _findings(changes: ChangeMaps) -> tuple[str, ...]:
    proposed, unclear = None, ""
    if changes.base is not None:
        try:
            proposed = suggest(changes)
        except RecipeError as error:  # a finding about these experts
            unclear = str(error)
    return tuple(findings(changes, check_shared_base(changes), proposed, unclear))


def _table_to_json(table: Table | None) -> dict[str, Any] | None:
    return None if table is None else asdict(table)
