"""Merges two experts: drafts, plans, and writes the plan or executes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.errors import FormatError, RecipeError
from lswap_core.io.locations import are_remote
from lswap_core.io.ports import Progress, Silence
from lswap_core.io.threads import threads_for
from lswap_core.plan.layout import lay_out
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import Plan
from lswap_core.recipe.baselines import TaskSum
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.sinks.disk.partial_directory import check_destination
from lswap_core.sinks.places import check_place
from lswap_core.sources.places import Places, Travel, open_checkpoint
from lswap_core.verbs.execute import Execution, StrPath, execute, near

if TYPE_CHECKING:
    from lswap_core.analysis.changes import ChangeMaps


def read_plan(path: StrPath) -> Plan:
    """Read the plan in a JSON file, as `Plan.to_json` writes it. Raises FormatError for anything else."""
    plan = Plan.from_json(Path(path).read_bytes(), path=os.fspath(path))
    if plan.swap is not None:
        try:
            weights = plan.swap.weights
            if plan.swap.options.get("method") == "soup":
                agree = not weights and {source.role for source in plan.sources} == {*plan.swap.options["weights"]}
            elif "method" in plan.swap.options:
                TaskSum.from_json(plan.swap.options)
                agree = not weights
            else:
                agree = LayerSwap.from_json(plan.swap.options).zones(len(weights), dict(enumerate(weights))).weights == weights
        except RecipeError as error:
            raise FormatError(f"swap.options: {error}", path=os.fspath(path)) from None
        if not agree:
            raise FormatError("swap.shares: not what swap.options give", path=os.fspath(path))
    return plan


def write_plan(plan: Plan, path: StrPath) -> None:
    """Write a plan as JSON. Raises RecipeError where the file exists or is inside a source."""
    place = check_destination(path, near(path, (source.location for source in plan.sources)))
    with open(place, "x", encoding="utf-8") as file:
        file.write(plan.to_json())


def check_output(plan: Plan, into: StrPath) -> None:
    """Raise what `execute` would raise where `into` is an impossible place."""
    check_place(into, near(into, (source.location for source in plan.sources)))


def travel(plan: Plan) -> Travel | None:
    """The network traffic of executing `plan`; None where no source is remote."""
    return Places().travel(plan)


def merge(
    recipe: LayerSwap | TaskSum,
    *,
    math: StrPath,
    lang: StrPath,
    into: StrPath,
    base: StrPath | None = None,
    shard_size: int | None = None,
    **how: Unpack[Execution],
) -> Manifest:
    """Plan and execute in one call. how: options of `execute`. base: for methods that need it."""
    opened = open_checkpoint(math, role="math"), open_checkpoint(lang, role="lang")
    origin = None if base is None else open_checkpoint(base, role="base")
    draft = draft_merge(recipe, math=opened[0], lang=opened[1], base=origin, workers=how.get("workers"))
    return execute(lay_out(draft, shard_size), into=into, **how)


def draft_merge(
    recipe: LayerSwap | TaskSum,
    *,
    math: Checkpoint,
    lang: Checkpoint,
    base: Checkpoint | None = None,
    changes: ChangeMaps | None = None,
    auto: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Draft:
    """Return the draft of a merge. Layers (`auto`) or weights (`ramp="mav"`) that depend on what changed come from `changes`,
    or are measured against `base`. For weights alone, only the blended layers are read.

    Raises RecipeError where `base` or `changes` is given and not used.
    """
    if isinstance(recipe, TaskSum):
        return recipe.draft(math=math, lang=lang, base=base)
    if not auto and recipe.ramp != "mav":
        if changes or (base and not recipe.revert_layers):
            raise RecipeError(
                f"nothing here needs {'--changes' if changes else '--base'}; leave it out, or ask for --auto or --ramp mav"
            )
        return recipe.draft(math=math, lang=lang, base=base)
    from lswap_core.verbs.measured_swap import draft_measured

    return draft_measured(
        recipe, math, lang,
        base=base, changes=changes, auto=auto, progress=progress or Silence(),
        workers=threads_for(workers, remote=are_remote(math, lang, base)),
    )  # fmt: skip
