"""The methods that layer swapping is compared with: soups, task arithmetic and TIES, with the same drafts and kernels.

They merge all floating-point tensors of math, inside the layers and outside. Other tensors are math's.
"""

from __future__ import annotations

import math as numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from lswap_core.checkpoint.catalogue import Checkpoint, Role, parse_role
from lswap_core.checkpoint.names import classify_outside, modules_with_scale
from lswap_core.errors import MismatchError, RecipeError
from lswap_core.options import METHODS, OutsideChoice
from lswap_core.recipe.compatibility import check_roles, compare, tensor_issues
from lswap_core.recipe.draft import Draft, SwapRecord
from lswap_core.recipe.expressions import in_fp32
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.recipe.selectors import one_of
from lswap_core.text.plain import listed

SCALES = {"task-arithmetic": 0.4, "ties": 1.0}
DENSITY = 0.2
"""The recommendation of Yadav et al. (arXiv 2306.01708) where there is no data to tune it."""
_MOST_WEIGHT = 1e100
"""Largest weight of an expert in a soup: sums of such weights are finite."""


def soup(math: Checkpoint, options: LayerSwap = LayerSwap()) -> LayerSwap:
    """Return the average of two experts (Wortsman et al., arXiv 2203.05482) as a layer swap. It blends every layer, and every
    part outside the layers that is recognised, with the weight or ramp of `options`.
    """
    if options.explicit or options.bottom or options.top or options.transition:
        raise RecipeError("--method soup blends every layer; leave out what chooses layers")
    stack = math.stack(options.layer_prefix)
    outside = classify_outside(math.tensors, stack)
    embed: OutsideChoice = "blend" if outside.embed else "math"
    norm: OutsideChoice = "blend" if outside.norm else "math"
    head: OutsideChoice = "blend" if outside.head and not math.tied else embed
    return replace(options, blend_layers=tuple(range(stack.count)), embed=embed, norm=norm, head=head)


@dataclass(frozen=True, slots=True)
class Soup:
    """The weighted average of all floating-point tensors of two or more experts (Wortsman et al., arXiv 2203.05482), which
    mergekit calls `linear`. Other tensors, layout and sidecars are the first expert's.

    weights: by role, above 0, in any unit, since they are divided by their sum. None: equal weights. cast: round the other
    experts' tensors to the first's dtypes. Raises RecipeError for invalid values.
    """

    weights: Mapping[Role, float] | None = None
    cast: bool = False

    def __post_init__(self) -> None:
        for role, weight in ({} if self.weights is None else self.weights).items():
            parse_role(role)
            if not (type(weight) in (int, float) and 0 < weight <= _MOST_WEIGHT):
                raise RecipeError(f"the weight of {role} in a soup is {weight!r}; expected a number above 0")
        if self.weights is not None and len(self.weights) < 2:
            raise RecipeError("a soup has two experts at least; give each a weight")

    def to_json(self) -> dict[str, Any]:
        """Return the method, and the options that were given, as JSON."""
        weights = {} if self.weights is None else {"weights": dict(self.weights)}
        return {"method": "soup", **weights, **({"cast": True} if self.cast else {})}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> Soup:
        """The inverse of `to_json` for a soup with weights, as in a plan. Raises RecipeError for anything else."""
        if unknown := options.keys() - {"method", "weights", "cast"}:
            raise RecipeError(f"unknown option {min(unknown)!r}")
        weights, cast = options.get("weights"), options.get("cast", False)
        if options.get("method") != "soup" or not isinstance(weights, dict) or type(cast) is not bool:
            raise RecipeError("no options of a soup: expected method, weights by role and, at most, cast")
        return cls(weights, cast)

    def draft(self, *experts: Checkpoint) -> Draft:
        """Return the draft of the soup.

        Raises MismatchError, which lists everything that prevents the merge, and RecipeError where the weights name other
        experts.
        """
        roles = [expert.role for expert in experts]
        weights = dict.fromkeys(roles, 1.0) if self.weights is None else self.weights
        if len(experts) < 2 or len(set(roles)) < len(roles):
            raise RecipeError(f"a soup takes two experts at least, each with a role of its own, not {listed(roles) or 'none'}")
        if set(roles) != set(weights):
            raise RecipeError(f"the soup has weights for {listed(list(weights))}, but its experts are {listed(roles)}")
        total = numbers.fsum(weights.values())
        fractions = [weights[role] / total for role in roles]
        if small := [role for role, fraction in zip(roles, fractions, strict=True) if not in_fp32(fraction)]:
            raise RecipeError(f"the weight of {small[0]} in the soup is too small beside the others to count; leave it out")
        first, *others = experts
        comparisons = [compare(first, other, allow_cast=self.cast) for other in others]
        if issues := [issue for comparison in comparisons for issue in comparison.issues]:
            raise MismatchError(f"{listed([expert.location for expert in experts])} cannot be combined", issues)
        chosen, notes = _floating(first)
        (one, two, *more) = zip(experts, fractions, strict=True)
        draft = Draft.of(first, *others).blend(one_of(chosen), one, two, *more, cast=self.cast)
        how = f"average of {listed([f'{role} ({fraction:.6g})' for role, fraction in zip(roles, fractions, strict=True)])}"
        notes = [how, *notes, *dict.fromkeys(note for comparison in comparisons for note in comparison.notes)]
        options = replace(self, weights={role: weights[role] for role in roles}).to_json()
        return draft.record(SwapRecord(options, "", (), {}, tuple(notes)))


def _floating(first: Checkpoint) -> tuple[list[str], list[str]]:
    """Return the floating-point tensors of a checkpoint, and notes about the others.

    Raises MismatchError for quantised weights: the average of codes times the average of scales is not the average of the
    weights.
    """
    floating = [name for name, ref in first.tensors.items() if ref.dtype.blendable]
    with_scale = modules_with_scale(first.tensors)
    codes = [name for name, ref in first.tensors.items() if not ref.dtype.blendable or ref.dtype.bits <= 8]
    parts = ((name, *name.rpartition(".")[::2]) for name in codes)
    if refused := [name for name, module, part in parts if module in with_scale and "scale" not in part]:
        said = [f"tensor {name!r} is {first.tensors[name].dtype} with a scale beside it" for name in refused]
        raise MismatchError("quantised weights cannot be blended", said)
    rest = len(first.tensors) - len(floating)
    return floating, [f"{rest} tensors hold no floating-point numbers and are {first.role}'s"] if rest else []


@dataclass(frozen=True, slots=True)
class TaskSum:
    """Task arithmetic or TIES, as `method` says: base plus what each expert changed.

    scale: the factor of the changes; by default the method's usual one. density: the fraction of each change that TIES keeps.
    cast: round the other sources' tensors to math's dtypes. Raises RecipeError for invalid values.
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
            raise RecipeError(f"--density is {self.density!r}; expected a fraction above 0, 1 at most")

    def to_json(self) -> dict[str, Any]:
        """Return the options that were given, as JSON."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> TaskSum:
        """The inverse of `to_json`. Raises RecipeError for anything else."""
        if unknown := options.keys() - {field.name for field in fields(cls)}:
            raise RecipeError(f"unknown option {min(unknown)!r}")
        return cls(**options)

    def draft(self, *, math: Checkpoint, lang: Checkpoint, base: Checkpoint | None) -> Draft:
        """Return the draft. Raises MismatchError, which lists everything that prevents the merge."""
        if base is None:
            raise RecipeError(f"--method {self.method} needs --base, the model that both experts were tuned from")
        check_roles(math=math, lang=lang, base=base)
        comparison = compare(math, lang, allow_cast=self.cast)
        if issues := (*comparison.issues, *tensor_issues(math, base, self.cast)):
            raise MismatchError(f"{math.location}, {lang.location} and {base.location} cannot be combined", issues)
        scale = SCALES[self.method] if self.scale is None else float(self.scale)
        draft = Draft.of(math)
        floating, notes = _floating(math)
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
