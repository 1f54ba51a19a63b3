"""Layer swaps that are computed from what the experts changed: `--ramp mav` and `--auto`."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from lswap_core.analysis.changes import ChangeMaps
from lswap_core.analysis.shared_base import check_shared_base
from lswap_core.analysis.suggestion import suggest
from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.errors import RecipeError
from lswap_core.io.ports import Progress
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.layer_swap import LayerSwap, MeasuredWeights
from lswap_core.verbs.analyze import analyze

CHOICES = ("bottom", "top", "transition", "transition_bottom", "transition_top", "lang_layers", "blend_layers")
"""Options that choose layers; `--auto` sets them."""


def draft_measured(
    recipe: LayerSwap,
    math: Checkpoint,
    lang: Checkpoint,
    *,
    base: Checkpoint | None = None,
    changes: ChangeMaps | None = None,
    auto: bool = False,
    progress: Progress,
    workers: int,
) -> Draft:
    """Return the draft of a swap whose layers (`auto`) or weights (`ramp="mav"`) come from `changes` or are measured against
    `base`.
    """
    if auto and (set_by_hand := [f.name for f in fields(recipe) if f.name in CHOICES and getattr(recipe, f.name) != f.default]):
        raise RecipeError(f"--auto chooses the layers; leave out --{set_by_hand[0].replace('_', '-')}")
    if base is None and changes is None:
        raise RecipeError(f"{'--auto' if auto else '--ramp mav'} needs to know what changed: give either --base or --changes")
    if base and changes and not recipe.revert_layers:
        raise RecipeError("--base and --changes say the same; give one of them")
    if changes is None:
        stack = math.stack(recipe.layer_prefix)
        layers = None if auto else recipe.seams(stack.count)
        changes = analyze(
            math=math, lang=lang, base=base,
            layers=layers, layer_prefix=recipe.layer_prefix, progress=progress, workers=workers,
        )  # fmt: skip
    changes.check(math, lang)
    notes = [kin.sentence() for kin in check_shared_base(changes) if kin.verdict != "one base"]
    if auto:
        suggestion = suggest(changes)
        chosen: dict[str, Any] = {**suggestion.options}
        recipe = replace(recipe, **chosen)
        notes.insert(0, f"layers chosen by what changed from {changes.base}: {suggestion.sentence()}")
    measured = _measured_weights(recipe, changes, math.stack(recipe.layer_prefix).count) if recipe.ramp == "mav" else None
    draft = recipe.draft(math=math, lang=lang, base=base if recipe.revert_layers else None, measured=measured)
    return draft if draft.swap is None else draft.record(replace(draft.swap, notes=(*notes, *draft.swap.notes)))


def _measured_weights(recipe: LayerSwap, changes: ChangeMaps, layer_count: int) -> MeasuredWeights:
    """Lang's weight in every blended layer, inversely proportional to each expert's mean absolute change from the base."""
    if changes.base is None:
        raise RecipeError("--ramp mav: the changes were measured without a base; analyse them with --base")
    by_layer, weights, notes = changes.by_layer(), {}, []
    for number in recipe.seams(layer_count):
        if number not in by_layer:
            raise RecipeError(f"--ramp mav: layer {number} was not measured; analyse it too")
        weight = by_layer[number].lang_share
        weights[number] = float(recipe.weight) if weight is None else weight
        if weight is None:
            notes.append(
                f"layer {number}: math or lang did not change from {changes.base} (by a finite amount), so --weight "
                f"{recipe.weight} is taken"
            )
    if weights:
        notes.insert(0, f"blend shares are inversely proportional to the mean absolute change from {changes.base}, per layer")
    return MeasuredWeights(weights, changes.base, tuple(notes))
