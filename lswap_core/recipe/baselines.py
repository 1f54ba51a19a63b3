"""What layer swapping is compared with: soups, task arithmetic and TIES, over the same drafts and kernels.

All of math's floating-point tensors are merged, inside the layers and outside; the rest is math's.
"""

from __future__ import annotations

import math as numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.checkpoint.names import classify_outside
from lswap_core.errors import MismatchError, RecipeError
from lswap_core.options import METHODS, Part
from lswap_core.recipe.compatibility import compare, tensor_issues
from lswap_core.recipe.draft import Draft, SwapRecord
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.recipe.selectors import one_of

SCALES = {"task-arithmetic": 0.4, "ties": 1.0}
DENSITY = 0.2
"""What Yadav et al. (arXiv 2306.01708) recommend where there is nothing to tune them on."""


def soup(math: Checkpoint, options: LayerSwap = LayerSwap()) -> LayerSwap:
    """The average of two experts (Wortsman et al., arXiv 2203.05482) as the layer swap that blends every layer, and all that
    is recognised outside them, by the options' weight or ramp.
    """
    if options.explicit or options.bottom or options.top or options.transition:
        raise RecipeError("--method soup blends every layer; leave out what chooses layers")
    stack = math.stack(options.layer_prefix)
    outside = classify_outside(math.tensors, stack)
    embed: Part = "blend" if outside.embed else "math"
    norm: Part = "blend" if outside.norm else "math"
    head: Part = "blend" if outside.head and not math.tied else embed
    return replace(options, blend_layers=tuple(range(stack.count)), embed=embed, norm=norm, head=head)


@dataclass(frozen=True, slots=True)
class TaskSum:
    """Task arithmetic, or TIES where `method` says so: base, with what each expert changed of it added.

    scale: what the changes are multiplied by; the method's usual one by default. density: the share of each change that
    TIES keeps. cast: round the other sources' tensors to math's dtypes. Raises RecipeError.
    """

    method: Literal["task-arithmetic", "ties"]
    scale: float | None = None
    density: float | None = None
    cast: bool = False

    def __post_init__(self) -> None:
        if self.method not in SCALES:
            raise RecipeError(f"--method is {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.scale is not None and not (type(self.scale) in (int, float) and numbers.isfinite(self.scale)):
            raise RecipeError(f"--scale is {self.scale!r}; expected a number")
        if self.density is not None and self.method != "ties":
            raise RecipeError("--density has no effect without --method ties")
        if self.density is not None and not (type(self.density) in (int, float) and 0 < self.density <= 1):
            raise RecipeError(f"--density is {self.density!r}; expected a share above 0, 1 at most")

    def to_json(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> TaskSum:
        """The inverse of `to_json`. RecipeError for anything else."""
        if unknown := options.keys() - {field.name for field in fields(cls)}:
            raise RecipeError(f"unknown option {min(unknown)!r}")
        return cls(**options)

    def draft(self, *, math: Checkpoint, lang: Checkpoint, base: Checkpoint | None) -> Draft:
        """The draft. MismatchError lists everything that keeps the three from being combined."""
        if base is None:
            raise RecipeError(f"--method {self.method} needs --base, the model that both experts were tuned from")
        comparison = compare(math, lang, allow_cast=self.cast)
        if issues := (*comparison.issues, *tensor_issues(math, base, self.cast)):
            raise MismatchError(f"{math.location}, {lang.location} and {base.location} cannot be combined", issues)
        scale = SCALES[self.method] if self.scale is None else float(self.scale)
        draft = Draft.of(math)
        floating = [name for name, ref in math.tensors.items() if ref.dtype.blendable]
        rest = len(math.tensors) - len(floating)
        notes = [f"{rest} tensors hold no floating-point numbers and are math's"] if rest else []
        if self.method == "ties":
            density = self.density or DENSITY
            how = f"the largest {density:.6g} of each change kept, the average of those that agree in sign times {scale:.6g}"
            draft = draft.add_task_vectors(
                one_of(floating), base, (math, 1.0), (lang, 1.0), density=density, strength=scale, cast=self.cast
            )
        else:
            how = f"each change times {scale:.6g}"
            draft = draft.add_task_vectors(one_of(floating), base, (math, scale), (lang, scale), cast=self.cast)
        return draft.record(SwapRecord(self.to_json(), "", (), {}, (how, *notes, *comparison.notes)))
