"""Measures what experts changed, wherever they are stored."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from lswap_core import kernels
from lswap_core.analysis.changes import ChangeMaps
from lswap_core.checkpoint.catalogue import Checkpoint, Role
from lswap_core.engine.measure import measure_changes
from lswap_core.errors import RecipeError
from lswap_core.io.locations import are_remote
from lswap_core.io.ports import Progress, Silence
from lswap_core.io.threads import threads_for
from lswap_core.sources.places import Places


def analyze(
    *,
    math: Checkpoint,
    lang: Checkpoint,
    base: Checkpoint | None = None,
    layers: Collection[int] | None = None,
    layer_prefix: str | None = None,
    profiles: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> ChangeMaps:
    """Measure where two experts differ and, with their base, what each changed; in one pass over all tensors, or those of
    `layers`.

    See `lswap_core.engine.measure.measure_changes`. Raises StalePlanError where a file changes during the pass.
    """
    experts: dict[Role, Checkpoint] = {"math": math, "lang": lang}
    if base is not None:
        experts["base"] = base
    if list(experts) != [checkpoint.role for checkpoint in experts.values()]:
        raise RecipeError(
            f"the checkpoints are opened as {', '.join(c.role for c in experts.values())}; expected {', '.join(experts)}"
        )
    threads = threads_for(workers, remote=are_remote(*experts.values()))
    with Places().source(experts) as source:
        maps = measure_changes(
            experts, source, kernels,
            layers=layers, layer_prefix=layer_prefix, profiles=profiles, progress=progress or Silence(), workers=threads,
        )  # fmt: skip
        source.check()
    return maps


def read_changes(path: str | os.PathLike[str]) -> ChangeMaps:
    """Read the maps in a JSON file, as `lswap-core analyze --json` prints them. Raises FormatError for anything else."""
    return ChangeMaps.from_json(Path(path).read_bytes(), path=os.fspath(path))
