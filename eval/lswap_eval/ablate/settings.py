"""The settings of an ablation and the points of a sweep: the source of each layer, and the order in which to visit the
settings.

The settings answer the questions of layer swapping (method: Bandarkar et al., arXiv 2410.01335): does the transition zone
matter, do the bottom or the top layers matter, or only their number? All settings of an ablation share one policy for the
tensors outside the layers. The controls `base`, `math` and `lang` are those checkpoints without a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from lswap_core import Checkpoint, Draft, LayerSwap
from lswap_core.errors import RecipeError
from lswap_core.recipe.expressions import Expression

REFERENCE_LAYERS = 32
"""The number of layers for which the method's default was chosen (Llama 3.1 8B)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Layers of the default setting: lang's at the bottom and at the top, and the two seams."""

    bottom: int = 5
    transition_bottom: int = 1
    transition_top: int = 1
    top: int = 2

    def scaled(self, layer_count: int) -> Sizes:
        """The same proportions for a model with fewer layers than 32: rounded to the nearest, a half upwards, and at least 1
        where there was one. A model with 32 layers or more has these sizes unchanged.

        >>> Sizes().scaled(12), Sizes().scaled(80) == Sizes()
        (Sizes(bottom=2, transition_bottom=1, transition_top=1, top=1), True)
        """
        if layer_count >= REFERENCE_LAYERS:
            return self

        def share(size: int) -> int:
            return max(min(size, 1), (2 * size * layer_count + REFERENCE_LAYERS) // (2 * REFERENCE_LAYERS))

        return Sizes(*(share(getattr(self, name)) for name in Sizes.__slots__))

    def check(self, layer_count: int) -> Sizes:
        """Return itself. Raises RecipeError unless both ends and a middle of at least one layer fit into the model."""
        used = self.bottom + self.transition_bottom + self.transition_top + self.top
        if min(self.bottom, self.top) < 1 or min(self.transition_bottom, self.transition_top) < 0:
            raise RecipeError(
                f"an ablation of bottom {self.bottom} and top {self.top} has an end missing; give each 1 layer or more"
            )
        if used >= layer_count:
            raise RecipeError(
                f"bottom {self.bottom} + transition {self.transition_bottom} + transition {self.transition_top} + top {self.top} "
                f"= {used} layers leave no middle in a model of {layer_count}; give fewer with --bottom, --top, --transition"
            )
        return self


Whole = Literal["base", "math", "lang"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One model to evaluate: a recipe, or a whole checkpoint. point: (bottom, top, transition) in a sweep."""

    id: str
    recipe: LayerSwap | Whole
    why: str
    point: tuple[int, int, int] | None = None

    def draft(self, *, math: Checkpoint, lang: Checkpoint, base: Checkpoint | None = None) -> Draft:
        """The draft of this model. Raises RecipeError for the base's where no base is given."""
        if isinstance(self.recipe, LayerSwap):
            return self.recipe.draft(math=math, lang=lang)
        whole = {"math": math, "lang": lang, "base": base}[self.recipe]
        if whole is None:
            raise RecipeError(f"setting {self.id!r} needs --base")
        return Draft.of(whole)


def ablation(layer_count: int, sizes: Sizes, *, base: bool, **outside: Any) -> list[Setting]:
    """The settings of an ablation for a model of `layer_count` layers, around a default of these sizes.

    base: whether a base is given, as a control. outside: `embed`, `norm`, `head`, `weight` and other options that all recipes
    share. Some settings may be the same model (see `lswap_eval.generate.identity`). Raises RecipeError where the sizes leave
    no middle.
    """
    b, tb, tu, u = sizes.check(layer_count).bottom, sizes.transition_bottom, sizes.transition_top, sizes.top

    def swap(bottom: int, seam: int, upper_seam: int, top: int) -> LayerSwap:
        return LayerSwap(bottom, top, transition_bottom=seam, transition_top=upper_seam, **outside)

    seams = {*range(b, b + tb), *range(layer_count - u - tu, layer_count - u)}
    inner = tuple(range(b + tb, layer_count - u - tu))
    controls = [
        Setting("math", "math", "control: the math expert"),
        Setting("lang", "lang", "control: the language expert"),
        Setting("soup", LayerSwap(blend_layers=tuple(range(layer_count)), **outside), "control: every layer blended"),
    ]
    return [
        *([Setting("base", "base", "control: what both experts were tuned from")] if base else []),
        *controls,
        Setting("default", swap(b, tb, tu, u), "the method"),
        Setting("no-zone-math", swap(b, 0, 0, u), "transition zone removed, its layers to math"),
        Setting("no-zone-lang", swap(b + tb, 0, 0, u + tu), "transition zone removed, its layers to lang"),
        Setting("bottom-zone", swap(b, tb, 0, 0), "only the bottom swapped, with its zone"),
        Setting("bottom", swap(b, 0, 0, 0), "only the bottom swapped"),
        Setting("top-zone", swap(0, 0, tu, u), "only the top swapped, with its zone"),
        Setting("top", swap(0, 0, 0, u), "only the top swapped"),
        Setting("bottom-all", swap(b + u, 0, 0, 0), "as many layers as both ends, all at the bottom"),
        Setting("top-all", swap(0, 0, 0, b + u), "as many layers as both ends, all at the top"),
        Setting("bottom-as-top", swap(u, 0, 0, 0), "as many layers as the top has, at the bottom"),
        Setting("top-as-bottom", swap(0, 0, 0, b), "as many layers as the bottom has, at the top"),
        Setting(
            "middle",
            LayerSwap(lang_layers=inner, blend_layers=tuple(sorted(seams)), **outside),
            "negative control: the middle from lang, the ends math's",
        ),
    ]


def sweep(
    layer_count: int, bottoms: Sequence[int], tops: Sequence[int], transitions: Sequence[int], **outside: Any
) -> tuple[list[Setting], list[str]]:
    """Return every point of the grid that fits into the model, and the names of those that do not."""
    points, misfits = [], []
    for bottom, top, transition in product(bottoms, tops, transitions):
        name = f"b{bottom}u{top}t{transition}"
        if bottom + top + transition * ((bottom > 0) + (top > 0)) > layer_count:
            misfits.append(name)
        else:
            points.append(
                Setting(name, LayerSwap(bottom, top, transition, **outside), "point of a sweep", (bottom, top, transition))
            )
    return points, misfits


def changed(before: Draft, after: Draft) -> dict[str, Expression]:
    """Tensors of `after` whose expression is not the one in `before`."""
    return {name: made_of for name, made_of in after.tensors.items() if before.tensors.get(name) != made_of}


def nearest_order(start: Draft, drafts: Sequence[Draft]) -> list[int]:
    """Positions of the drafts in visiting order. Each is the remaining draft that differs from the one before in the fewest
    bytes.

    The first is nearest to `start`. Of equal ones, the first in `drafts` comes first.
    """
    left = list(range(len(drafts)))
    order: list[int] = []
    here = start
    while left:
        nearest = min(left, key=lambda number: sum(tensor_bytes(made_of) for made_of in changed(here, drafts[number]).values()))
        left.remove(nearest)
        order.append(nearest)
        here = drafts[nearest]
    return order


def tensor_bytes(made_of: Expression) -> int:
    """Size in bytes of the tensor that an expression gives."""
    return made_of.refs[0].size_bytes * made_of.dtype.bits // made_of.refs[0].dtype.bits
