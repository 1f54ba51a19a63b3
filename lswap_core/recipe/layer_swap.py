"""Layer swapping as a recipe: decides the source of each layer, checks it, and turns it into a draft.

Method: Bandarkar et al., Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language Models, ICLR 2025 (arXiv
2410.01335). Layers are numbered 0..L-1; ranges are half-open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from typing import Any, NamedTuple

from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.checkpoint.names import MODULES, Outside, Stack, classify_outside, module_of
from lswap_core.errors import MismatchError, RecipeError
from lswap_core.options import OUTSIDE_CHOICES, RAMPS, OutsideChoice, Ramp
from lswap_core.recipe.compatibility import check_roles, compare, tensor_issues
from lswap_core.recipe.draft import Draft, SwapRecord
from lswap_core.recipe.selectors import one_of
from lswap_core.text.plain import counted

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Zones:
    """Lang's weight in each layer: 0 is math byte for byte, 1 is lang byte for byte, anything between is a blend."""

    weights: tuple[float, ...]

    @property
    def lang(self) -> tuple[int, ...]:
        """Layers that are lang's."""
        return tuple(n for n, weight in enumerate(self.weights) if weight == 1)

    @property
    def blended(self) -> tuple[int, ...]:
        """Layers of the transition zones."""
        return tuple(n for n, weight in enumerate(self.weights) if 0 < weight < 1)

    @property
    def math(self) -> tuple[int, ...]:
        """Layers that are math's."""
        return tuple(n for n, weight in enumerate(self.weights) if weight == 0)


class MeasuredWeights(NamedTuple):
    """Lang's weight in each blended layer where the change from a base decides it (`ramp="mav"`)."""

    weights: Mapping[int, float]
    """By layer number."""
    base: str
    """The base's name."""
    notes: tuple[str, ...]
    """Notes about the weights, for the plan."""


@dataclass(frozen=True, slots=True)
class LayerSwap:
    """The options of a layer swap. Raises RecipeError for values that no checkpoint could satisfy.

    bottom, top: layers from lang at either end. transition: blended layers at both seams; transition_bottom and
    transition_top set one seam each. lang_layers, blend_layers: layer numbers, in place of all of these.

    weight: lang's weight in blended layers, from 0 to 1. With `ramp="linear"`, the k-th of t layers counted from the language
    side has 1 - (k + 1) / (t + 1) instead; with `ramp="mav"`, the change maps decide. embed, norm, head: the source of each
    part outside the layers; `blend` uses `weight`. cast: round lang's tensors to math's dtypes. layer_prefix: where the
    layers are, if that is ambiguous.

    swap: the kinds of modules (`attn`, `mlp`, `norms`) that are swapped; the rest of every layer stays math's. revert_layers:
    layers that become base's; no zone may contain them.
    """

    bottom: int = 0
    top: int = 0
    transition: int = 0
    transition_bottom: int | None = None
    transition_top: int | None = None
    lang_layers: tuple[int, ...] | None = None
    blend_layers: tuple[int, ...] | None = None
    weight: float = 0.5
    ramp: Ramp = "constant"
    embed: OutsideChoice = "math"
    norm: OutsideChoice = "math"
    head: OutsideChoice | None = None
    cast: bool = False
    layer_prefix: str | None = None
    swap: tuple[str, ...] | None = None
    revert_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        counts = ("bottom", "top", "transition", "transition_bottom", "transition_top")
        for name in counts:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise RecipeError(f"{_flag(name)} is {value!r}; expected a number of layers, 0 or more")
        for end in ("bottom", "top"):
            if not getattr(self, end) and getattr(self, f"transition_{end}"):
                raise RecipeError(f"--transition-{end} asks for a seam, but --{end} is 0, so there is none to blend at that end")
        if self.explicit and any(getattr(self, name) for name in counts):
            raise RecipeError(
                "--lang-layers and --blend-layers name the layers one by one; leave out --bottom, --top and --transition"
            )
        for name in ("lang_layers", "blend_layers", "revert_layers"):
            if any(type(number) is not int or number < 0 for number in getattr(self, name) or ()):
                raise RecipeError(f"{_flag(name)} is {getattr(self, name)!r}; expected numbers of layers")
        if both := sorted(set(self.lang_layers or ()) & set(self.blend_layers or ())):
            raise RecipeError(f"layers {_listed(both)} are in --lang-layers and in --blend-layers")
        if not (isinstance(self.weight, int | float) and 0 <= self.weight <= 1):
            raise RecipeError(f"--weight is {self.weight!r}; expected lang's weight, from 0 to 1")
        if self.ramp not in RAMPS:
            raise RecipeError(f"--ramp is {self.ramp!r}; expected one of {', '.join(RAMPS)}")
        if self.ramp == "linear" and self.weight != 0.5 and "blend" not in (self.embed, self.norm, self.head):
            raise RecipeError(f"--weight {self.weight} has no effect with --ramp linear, which sets every blended layer's weight")
        if self.swap is not None and (not self.swap or not set(self.swap) <= set(MODULES)):
            raise RecipeError(f"--swap is {','.join(self.swap)!r}; expected some of {', '.join(MODULES)}")
        for name in ("embed", "norm", "head"):
            if getattr(self, name) not in (*OUTSIDE_CHOICES, *((None,) if name == "head" else ())):
                raise RecipeError(f"{_flag(name)} is {getattr(self, name)!r}; expected one of {', '.join(OUTSIDE_CHOICES)}")

    @property
    def explicit(self) -> bool:
        """Whether the layers are given by number."""
        return self.lang_layers is not None or self.blend_layers is not None

    def to_json(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        default = asdict(LayerSwap())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> LayerSwap:
        """The inverse of `to_json`. Raises RecipeError for anything else."""
        if unknown := options.keys() - {field.name for field in fields(cls)}:
            raise RecipeError(f"unknown option {min(unknown)!r}")
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        for name in ("lang_layers", "blend_layers", "revert_layers", "swap"):
            if not isinstance(given.get(name), tuple | None):
                raise RecipeError(f"{_flag(name)} is {given[name]!r}; expected a list")
        return cls(**given)

    def seams(self, layer_count: int) -> tuple[int, ...]:
        """The blended layers, whatever their weights."""
        return replace(self, ramp="constant", weight=0.5).zones(layer_count).blended

    def zones(self, layer_count: int, weights: Mapping[int, float] | None = None) -> Zones:
        """Return lang's weight in each of `layer_count` layers. Raises RecipeError where the zones do not fit.

        weights: those in blended layers, for `ramp="mav"`.
        """
        if self.ramp == "mav":
            resolved = list(replace(self, ramp="constant", weight=0.5).zones(layer_count).weights)
            for number in self.seams(layer_count):
                if weights is None or number not in weights:
                    raise RecipeError("--ramp mav needs what changed from the base: give --base, or --changes of an analysis")
                resolved[number] = weights[number]
            return Zones(tuple(resolved))
        if self.explicit:
            return self._explicit_zones(layer_count)
        at_bottom, at_top = self._seams()
        asked = self.bottom + at_bottom + at_top + self.top
        if asked > layer_count:
            raise RecipeError(
                f"bottom {self.bottom} + transition {at_bottom} + transition {at_top} + top {self.top} = {asked} layers, "
                f"but the model has {layer_count}"
            )
        middle = layer_count - asked
        rising = self._ramp(at_bottom)
        from_bottom = [1.0] * self.bottom + rising + [0.0] * middle + self._ramp(at_top)[::-1] + [1.0] * self.top
        return Zones(tuple(from_bottom))

    def draft(
        self, *, math: Checkpoint, lang: Checkpoint, base: Checkpoint | None = None, measured: MeasuredWeights | None = None
    ) -> Draft:
        """Return the draft of this swap. Raises MismatchError, which lists everything that prevents the merge.

        base: needed to revert layers. measured: needed for `ramp="mav"`.
        """
        check_roles(math=math, lang=lang)
        comparison = compare(math, lang, allow_cast=self.cast)
        if comparison.issues:
            raise MismatchError(f"{math.location} and {lang.location} cannot be combined", comparison.issues)
        stack = math.stack(self.layer_prefix)
        zones = self.zones(stack.count, None if measured is None else measured.weights)
        changed: list[tuple[str, int]] = []
        others: list[str] = []
        for name, number in zip(math.tensors, stack.layers_of(math.tensors), strict=True):
            if number is None:
                others.append(name)
            elif zones.weights[number] > 0:
                changed.append((name, number))
        outside = classify_outside(others, stack)
        givers = self._givers(outside, tied=math.tied)
        draft = Draft.of(math, lang)
        by_weight: dict[float, list[str]] = {}
        for name, number in changed:
            if self.swap is None or module_of(name) in self.swap:
                by_weight.setdefault(zones.weights[number], []).append(name)
        if self.swap is not None and any(zones.weights) and not by_weight:
            raise RecipeError(f"--swap {','.join(self.swap)}: no tensor of these layers is recognised as such")
        for weight, names in by_weight.items():
            if weight == 1:
                draft = draft.replace(one_of(names), lang, cast=self.cast)
            else:
                draft = draft.blend(one_of(names), (math, 1 - weight), (lang, weight), cast=self.cast)
        if self.revert_layers:
            draft = self._reverted(draft, base, stack, zones)
        parts = {part: (giver, getattr(outside, part)) for part, giver in givers.items()}
        for giver, names in parts.values():
            if names and giver == "lang":
                draft = draft.replace(one_of(names), lang, cast=self.cast)
            elif names and giver == "blend":
                draft = draft.blend(one_of(names), (math, 1 - self.weight), (lang, self.weight), cast=self.cast)
        parts["other"] = ("math", outside.other)
        notes = (*(measured.notes if measured else ()), *self._notes(outside), *comparison.notes)
        base_name = measured.base if measured and measured.notes else None
        return draft.record(SwapRecord(self.to_json(), stack.prefix, zones.weights, parts, notes, base_name))

    def _reverted(self, draft: Draft, base: Checkpoint | None, stack: Stack, zones: Zones) -> Draft:
        """Replace the layers to revert by base's."""
        numbers = sorted(set(self.revert_layers or ()))
        if base is None:
            raise RecipeError("--revert-layers needs --base, the model that both experts were tuned from")
        check_roles(base=base)
        if outside := [number for number in numbers if number >= stack.count]:
            raise RecipeError(f"layers {_listed(outside)} do not exist; the model has layers 0 to {stack.count - 1}")
        if taken := [number for number in numbers if zones.weights[number] > 0]:
            raise RecipeError(f"layers {_listed(taken)} are in --revert-layers, but they are lang's or blended")
        if issues := tuple(tensor_issues(draft.primary, base, self.cast)):
            raise MismatchError(f"{draft.primary.location} and {base.location} cannot be combined", issues)
        chosen = set(numbers)
        of_layers = zip(draft.tensors, stack.layers_of(draft.tensors), strict=True)
        return draft.replace(one_of([name for name, number in of_layers if number in chosen]), base, cast=self.cast)

    def _seams(self) -> tuple[int, int]:
        """Number of blended layers at the bottom and at the top. An end without layers from lang has no seam."""
        bottom = self.transition if self.transition_bottom is None else self.transition_bottom
        top = self.transition if self.transition_top is None else self.transition_top
        return (bottom if self.bottom else 0), (top if self.top else 0)

    def _ramp(self, count: int) -> list[float]:
        """Lang's weights in a seam of `count` layers, starting at the language side."""
        if self.ramp == "linear":
            return [1 - (k + 1) / (count + 1) for k in range(count)]
        return [float(self.weight)] * count

    def _explicit_zones(self, layer_count: int) -> Zones:
        lang, blended = set(self.lang_layers or ()), sorted(set(self.blend_layers or ()))
        if outside := sorted(n for n in lang | set(blended) if not 0 <= n < layer_count):
            raise RecipeError(f"layers {_listed(outside)} do not exist; the model has layers 0 to {layer_count - 1}")
        weights = [1.0 if n in lang else 0.0 for n in range(layer_count)]
        for begin, end in _contiguous(blended):
            ramp = self._ramp(end - begin)
            below, above = begin - 1 in lang, end in lang
            if self.ramp == "linear" and below == above:
                where = "on both sides" if below else "on neither side"
                raise RecipeError(
                    f"--ramp linear: blended layers {begin} to {end - 1} have language layers {where}; use constant"
                )
            weights[begin:end] = ramp if below else ramp[::-1]
        return Zones(tuple(weights))

    def _givers(self, outside: Outside, *, tied: bool) -> dict[str, OutsideChoice]:
        """The source of embeddings, norm and head. Tied embeddings are one tensor, so the head follows them."""
        for part in ("embed", "norm"):
            if getattr(self, part) != "math" and not getattr(outside, part):
                raise RecipeError(f"{_flag(part)} {getattr(self, part)}: no tensor outside the layers is recognised as {part}")
        head = self.head
        if tied or not outside.head:
            if head not in (None, self.embed):
                raise RecipeError(
                    f"--head {head} contradicts --embed {self.embed}: the two are tied, one tensor; set --embed alone"
                )
            head = self.embed
        return {"embed": self.embed, "norm": self.norm, "head": head or "math"}

    def _notes(self, outside: Outside) -> list[str]:
        notes = []
        if self.swap is not None:
            notes.append(f"only {' and '.join(self.swap)} of a layer come from lang; the rest of it is math's")
        for end in ("bottom", "top"):
            if self.transition and not self.explicit and not getattr(self, end):
                notes.append(f"no seam at the {end}: --{end} is 0, so --transition {self.transition} blends nothing there")
        if outside.other:
            shown = ", ".join(outside.other[:_SHOWN]) + (", ..." if len(outside.other) > _SHOWN else "")
            what = counted(len(outside.other), "tensor")
            notes.append(f"{what} neither in the layers nor recognised as embeddings, norm or head, from math: {shown}")
        return notes


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _contiguous(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring numbers, half-open."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1] + 1
