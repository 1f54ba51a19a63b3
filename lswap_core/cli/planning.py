"""Turns arguments into plans."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lswap_core.cli.console import progress_bar
from lswap_core.cli.sources import named_sources, parse_weights
from lswap_core.errors import RecipeError
from lswap_core.text.plain import parse_size

if TYPE_CHECKING:
    from lswap_core.analysis.changes import ChangeMaps
    from lswap_core.checkpoint.catalogue import Checkpoint
    from lswap_core.plan.plan import Plan
    from lswap_core.recipe.baselines import TaskSum
    from lswap_core.recipe.draft import Draft
    from lswap_core.recipe.layer_swap import LayerSwap

_SWAP_OPTIONS = (
    "bottom", "top", "transition", "transition_bottom", "transition_top", "lang_layers", "blend_layers", "revert_layers",
)  # fmt: skip


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan for the options of `merge` and `plan`."""
    with uncollected():
        return _planned(arguments)


def stored_plan(arguments: argparse.Namespace) -> Plan:
    """Read the plan in the file that commands such as `apply` name."""
    from lswap_core.verbs.merge import read_plan

    with uncollected():
        return read_plan(arguments.plan)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep objects that are made in this context away from the garbage collector, now and later. Checkpoints and plans are
    values without cycles, and searching a large plan takes time. `main` reverts this.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def open_pair(arguments: argparse.Namespace) -> tuple[Checkpoint, Checkpoint, Checkpoint | None]:
    """Open math, lang and, where given, base."""
    from lswap_core.sources.places import open_checkpoint

    math = open_checkpoint(arguments.math, role="math", name=arguments.math_name)
    lang = open_checkpoint(arguments.lang, role="lang", name=arguments.lang_name)
    return math, lang, open_checkpoint(arguments.base, role="base", name=arguments.base_name) if arguments.base else None


def _planned(arguments: argparse.Namespace) -> Plan:
    from lswap_core.plan.layout import lay_out
    from lswap_core.recipe.baselines import soup
    from lswap_core.recipe.layer_swap import LayerSwap
    from lswap_core.verbs.merge import draft_merge

    shard_size = None if arguments.shard_size is None else parse_size(arguments.shard_size)
    if arguments.source or arguments.weights is not None:
        return lay_out(_soup(arguments), shard_size)
    if missing := [f"--{role}" for role in ("math", "lang") if getattr(arguments, role) is None]:
        arguments.usage_error(f"the following arguments are required: {', '.join(missing)}")
    recipe = _task_sum(arguments) or _layer_swap(arguments)
    math, lang, base = open_pair(arguments)
    if arguments.method == "soup" and isinstance(recipe, LayerSwap):
        recipe = soup(math, recipe)
    draft = draft_merge(
        recipe,
        math=math,
        lang=lang,
        base=base,
        changes=_changes(arguments),
        auto=arguments.auto,
        progress=progress_bar(arguments, "analysing"),
        workers=getattr(arguments, "workers", None),
    )
    return lay_out(draft, shard_size)


def _soup(arguments: argparse.Namespace) -> Draft:
    """Return the soup of any number of experts."""
    from lswap_core.recipe.baselines import Soup
    from lswap_core.recipe.layer_swap import LayerSwap
    from lswap_core.sources.places import open_checkpoint

    if arguments.method != "soup":
        option = "--source" if arguments.source else "--weights"
        raise RecipeError(f"{option} has no effect with --method {arguments.method}; it is for --method soup")
    for name in (*LayerSwap.__slots__, "scale", "density", "auto", "changes", "base"):
        if name != "cast" and getattr(arguments, name) not in (None, False):
            option = name.replace("_", "-")
            raise RecipeError(f"--{option} has no effect on a soup by --source or --weights; --weights sets the experts' weights")
    recipe = Soup(None if arguments.weights is None else parse_weights(arguments.weights), bool(arguments.cast))
    experts = [
        open_checkpoint(path, role=role, name=getattr(arguments, f"{role}_name", None))
        for role, path in named_sources(arguments).items()
    ]
    return recipe.draft(*experts)


def _changes(arguments: argparse.Namespace) -> ChangeMaps | None:
    if not arguments.changes:
        return None
    from lswap_core.verbs.analyze import read_changes

    return read_changes(arguments.changes)


def _layer_swap(arguments: argparse.Namespace) -> LayerSwap:
    from lswap_core.recipe.layer_swap import LayerSwap
    from lswap_core.text.plain import parse_layers

    for option in ("scale", "density"):
        if getattr(arguments, option) is not None:
            raise RecipeError(f"--{option} has no effect with --method {arguments.method}")
    if arguments.auto and arguments.method != "layer-swap":
        raise RecipeError(f"--auto chooses the layers of a layer swap; leave it out with --method {arguments.method}")
    if (
        arguments.method == "layer-swap"
        and not arguments.auto
        and all(getattr(arguments, option) is None for option in _SWAP_OPTIONS)
    ):
        raise RecipeError("nothing to swap: say how many layers, as --bottom 4 --top 2, or which, as --lang-layers 0-3,30")
    given = {name: getattr(arguments, name) for name in LayerSwap.__slots__ if getattr(arguments, name) is not None}
    for name in ("lang_layers", "blend_layers", "revert_layers"):
        if name in given:
            given[name] = parse_layers(given[name])
    if "swap" in given:
        given["swap"] = tuple(given["swap"].split(","))
    return LayerSwap(**given)


def _task_sum(arguments: argparse.Namespace) -> TaskSum | None:
    from lswap_core.recipe.baselines import SCALES, TaskSum
    from lswap_core.recipe.layer_swap import LayerSwap

    if arguments.method not in SCALES:
        return None
    for name in LayerSwap.__slots__:
        if name != "cast" and getattr(arguments, name) is not None:
            raise RecipeError(f"--{name.replace('_', '-')} has no effect with --method {arguments.method}")
    for name in ("auto", "changes"):
        if getattr(arguments, name):
            raise RecipeError(f"--{name} has no effect with --method {arguments.method}")
    return TaskSum(arguments.method, arguments.scale, arguments.density, bool(arguments.cast))
