"""A draft: the output's tensors, and an expression for each. A value: names and expressions, no bytes.

Every method returns a new draft. A selector that matches nothing raises, so that a misspelt name is never a silent no-op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from lswap_core.checkpoint.catalogue import Checkpoint, Role, TensorRef
from lswap_core.checkpoint.dtypes import DType
from lswap_core.checkpoint.header import METADATA
from lswap_core.checkpoint.names import modules_with_scale
from lswap_core.errors import MismatchError, RecipeError, SelectionError
from lswap_core.recipe.expressions import (
    Adapted,
    Average,
    Blend,
    Copy,
    Expression,
    Operand,
    TaskVectors,
    add_up_to_one,
    copies,
    in_fp32,
    operand_in,
    rounded_to,
)
from lswap_core.recipe.selectors import Selector, chosen_by
from lswap_core.text.strict_json import is_unicode


@dataclass(frozen=True, slots=True)
class SwapRecord:
    """What a recipe decided, for people: the plan, the manifest and the model card include it.

    options: the recipe as JSON. prefix: where the layers are. weights: lang's weight in each layer (0 is math, 1 lang); empty
    for a method that does not go by layers, which `options` then names. outside: part of the model outside the layers -> (its
    source, its tensors). notes: one sentence each. base: name of the base from which weights were computed, None where none
    was needed.
    """

    options: Mapping[str, Any]
    prefix: str
    weights: tuple[float, ...]
    outside: Mapping[str, tuple[str, tuple[str, ...]]]
    notes: tuple[str, ...]
    base: str | None = None


@dataclass(frozen=True)
class Draft:
    """Output tensor name -> expression. `primary` is the checkpoint whose layout, config and tokenizer the output takes."""

    tensors: MappingProxyType[str, Expression]
    primary: Checkpoint
    sources: Mapping[Role, Checkpoint]
    tags: Mapping[str, str]
    swap: SwapRecord | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, *others: Checkpoint) -> Draft:
        """Return a draft that copies all of `checkpoint`. `others` become sources, from which nothing is taken yet."""
        refs = checkpoint.tensors
        plain = checkpoint.adapter is None
        taken = dict(zip(refs, copies(refs.values()), strict=True)) if plain else {n: operand_of(checkpoint, n) for n in refs}
        sources = {source.role: source for source in (checkpoint, *others)}
        return cls(MappingProxyType(taken), checkpoint, MappingProxyType(sources), MappingProxyType({}))

    def select(self, selector: Selector) -> list[str]:
        """Names that `selector` matches, in order. Raises SelectionError where there are none."""
        chosen = chosen_by(selector, self.tensors)
        if not chosen:
            raise SelectionError(f"{selector} matches none of the {len(self.tensors)} tensors")
        return chosen

    def keep(self, selector: Selector) -> Draft:
        """Keep only the tensors that match."""
        return self._with({name: self.tensors[name] for name in self.select(selector)})

    def drop(self, selector: Selector) -> Draft:
        """Drop the tensors that match."""
        gone = set(self.select(selector))
        return self._with({name: made_of for name, made_of in self.tensors.items() if name not in gone})

    def rename(self, selector: Selector, new_name: Callable[[str], str]) -> Draft:
        """Rename the tensors that match to what `new_name` returns. Raises RecipeError for a name that is taken or invalid."""
        chosen = set(self.select(selector))
        renamed: dict[str, Expression] = {}
        for name, made_of in self.tensors.items():
            target = new_name(name) if name in chosen else name
            if target in renamed or target == METADATA or "\0" in target or not is_unicode(target):
                what = "two tensors would have that name" if target in renamed else "that cannot be a tensor's name"
                raise RecipeError(f"rename of {name!r} to {target!r}: {what}")
            renamed[target] = made_of
        return self._with(renamed)

    def replace(self, selector: Selector, source: Checkpoint, *, cast: bool = False) -> Draft:
        """Replace the tensors that match by those of `source` with the same names.

        Shapes must agree. Dtypes must agree too, unless `cast` rounds the source's tensors to the draft's dtypes. Raises one
        MismatchError, which lists all that do not agree.
        """
        chosen = self.select(selector)
        taken = self._taken(chosen, source, cast)
        return self._with(self.tensors | taken, source)

    def graft(self, selector: Selector, source: Checkpoint) -> Draft:
        """Add the tensors of `source` that match. Raises RecipeError where the draft has one already."""
        chosen = chosen_by(selector, source.tensors)
        if not chosen:
            raise SelectionError(f"{selector} matches none of the {len(source.tensors)} tensors of {source.location}")
        if taken := [name for name in chosen if name in self.tensors]:
            raise RecipeError(f"graft: {len(taken)} of the tensors are there already, the first is {taken[0]!r}; use replace")
        return self._with(self.tensors | {name: operand_of(source, name) for name in chosen}, source)

    def blend(
        self,
        selector: Selector,
        first: tuple[Checkpoint, float],
        second: tuple[Checkpoint, float],
        *more: tuple[Checkpoint, float],
        cast: bool = False,
    ) -> Draft:
        """Replace the tensors that match by a weighted average of the same tensors in two or more checkpoints.

        Two sources give a `Blend`, more an `Average`; for the arithmetic see `lswap_core.recipe.expressions`. The weights
        must add up to 1, to 1e-6. A weight of exactly 0 or 1 (in fp32, in which the blend is computed) is a plain copy; of
        several sources, those with a weight of 0 are left out. Integers, packed sub-byte types and weights with a
        quantisation scale beside them cannot be blended. Raises MismatchError, which lists every obstacle of a source.
        """
        if more:
            return self._average(selector, (first, second, *more), cast)
        (x_source, x_weight), (y_source, y_weight) = first, second
        if not (0 <= y_weight <= 1 and math.isclose(x_weight + y_weight, 1, rel_tol=0, abs_tol=1e-6)):
            raise RecipeError(f"blend: weights must be from 0 to 1 and add up to 1, not {x_weight!r} and {y_weight!r}")
        chosen = self.select(selector)
        if (weight := in_fp32(y_weight)) in (0, 1):
            return self.replace(selector, y_source if weight else x_source, cast=cast)
        x_side = self._taken(chosen, x_source, cast)
        y_side = self._taken(chosen, y_source, cast)
        self._refuse_uncomputable(chosen, x_side)
        blends = {name: Blend(x_side[name], y_side[name], y_weight) for name in chosen}
        return self._with(self.tensors | blends, x_source, y_source)

    def _average(self, selector: Selector, given: Sequence[tuple[Checkpoint, float]], cast: bool) -> Draft:
        weights = [float(weight) for _, weight in given]
        if not add_up_to_one(weights):
            said = f"{', '.join(map(repr, weights[:-1]))} and {weights[-1]!r}"
            raise RecipeError(f"blend: weights must be from 0 to 1 and add up to 1, not {said}")
        used = [(source, weight) for (source, _), weight in zip(given, weights, strict=True) if in_fp32(weight) > 0]
        if len(used) == 1:
            return self.replace(selector, used[0][0], cast=cast)
        if len(used) == 2:
            return self.blend(selector, used[0], used[1], cast=cast)
        chosen = self.select(selector)
        sides = [self._taken(chosen, source, cast) for source, _ in used]
        self._refuse_uncomputable(chosen, sides[0])
        above_zero = tuple(weight for _, weight in used)
        averages = {name: Average(tuple(side[name] for side in sides), above_zero) for name in chosen}
        return self._with(self.tensors | averages, *(source for source, _ in used))

    def add_task_vectors(
        self,
        selector: Selector,
        base: Checkpoint,
        *experts: tuple[Checkpoint, float],
        density: float | None = None,
        strength: float = 1.0,
        cast: bool = False,
    ) -> Draft:
        """Replace the tensors that match by base's plus what each expert changed.

        For arithmetic, scales and density see `lswap_core.recipe.expressions.TaskVectors`. Raises MismatchError as `blend`.
        """
        if density is not None and not 0 < density <= 1:
            raise RecipeError(f"add_task_vectors: the density is {density!r}; expected a fraction above 0, 1 at most")
        if not all(math.isfinite(scale) for scale in (strength, *(scale for _, scale in experts))):
            raise RecipeError("add_task_vectors: a scale is not finite")
        chosen = self.select(selector)
        base_side = self._taken(chosen, base, cast)
        sides = [self._taken(chosen, source, cast) for source, _ in experts]
        self._refuse_uncomputable(chosen, base_side)
        scales = tuple(float(scale) for _, scale in experts)
        made = {n: TaskVectors(base_side[n], tuple(side[n] for side in sides), scales, density, strength) for n in chosen}
        return self._with(self.tensors | made, base, *(source for source, _ in experts))

    def cast(self, selector: Selector, dtype: DType) -> Draft:
        """Round the tensors that match to `dtype`. Blends are computed in the dtype of their first operand."""
        chosen = self.select(selector)
        if refused := [f"tensor {n!r} is {d}" for n in chosen for d in (self.tensors[n].dtype, dtype) if not d.blendable]:
            raise MismatchError(f"cast to {dtype}: only floating-point tensors can be cast", refused)
        return self._with(self.tensors | {name: rounded_to(self.tensors[name], dtype) for name in chosen})

    def tag(self, **tags: str) -> Draft:
        """Add entries to the `__metadata__` of every output file. Only text is allowed; `format` is always `pt`."""
        for key, value in tags.items():
            if not (isinstance(value, str) and is_unicode(value)) or (key == "format" and value != "pt"):
                raise RecipeError(
                    f"tag {key}={value!r}: expected text" + (", and for format only 'pt'" if key == "format" else "")
                )
        return replace(self, tags=MappingProxyType({**self.tags, **tags}))

    def record(self, swap: SwapRecord) -> Draft:
        """Return the same draft with the record of a recipe."""
        return replace(self, swap=swap)

    def _taken(self, names: list[str], source: Checkpoint, cast: bool) -> dict[str, Operand]:
        taken: dict[str, Operand] = {}
        issues = []
        for name in names:
            wanted, ref = self.tensors[name], source.find(name)
            if ref is None:
                issues.append(f"tensor {name!r} is not in {source.role}")
            elif ref.shape != wanted.shape:
                issues.append(f"tensor {name!r} has shape {list(wanted.shape)}, {source.role} has {list(ref.shape)}")
            elif (had := source.dtype_of(name)) != wanted.dtype and not (cast and had.blendable and wanted.dtype.blendable):
                issues.append(f"tensor {name!r} is {wanted.dtype}, {source.role} has {had}")
            else:
                taken[name] = operand_in(_operand(source, name, ref), wanted.dtype)
        if issues:
            raise MismatchError(f"{source.location} does not fit", issues)
        return taken

    def _refuse_uncomputable(self, chosen: list[str], side: Mapping[str, Operand]) -> None:
        """Raises MismatchError for tensors that must not be averaged or added: integers, packed types, and weights with a
        scale.
        """
        if refused := [f"tensor {name!r} is {side[name].dtype}" for name in chosen if not side[name].dtype.blendable]:
            raise MismatchError("only floating-point tensors can be blended; copy these whole, as with --transition 0", refused)
        # The average of two quantised weights times the average of their scales is not the average of the weights.
        small = [name for name in chosen if side[name].dtype.bits <= 8]
        with_scale = modules_with_scale(self.tensors) if small else frozenset()
        scaled = [name for name in small if name.rpartition(".")[0] in with_scale]
        if scaled:
            refused = [f"tensor {name!r} is {side[name].dtype} with a scale beside it" for name in scaled]
            raise MismatchError("quantised weights cannot be blended; copy these whole, as with --transition 0", refused)

    def _with(self, tensors: dict[str, Expression], *sources: Checkpoint) -> Draft:
        known = dict(self.sources)
        for source in sources:
            if known.setdefault(source.role, source) is not source and known[source.role] != source:
                raise RecipeError(f"two sources are both {source.role}: {known[source.role].location} and {source.location}")
        # A recipe's record does not describe the changed draft.
        return replace(self, tensors=MappingProxyType(tensors), sources=MappingProxyType(known), swap=None)


def operand_of(source: Checkpoint, name: str) -> Operand:
    """A tensor of a checkpoint as an operand, with the change of the checkpoint's adapter, if it has one."""
    return _operand(source, name, source.tensors[name])


def _operand(source: Checkpoint, name: str, ref: TensorRef) -> Operand:
    if source.adapter is None:
        return Copy(ref)
    change = source.adapter.low_rank.get(name)
    operand = Copy(ref) if change is None else Adapted(ref, change.a, change.b, change.scale, change.transposed)
    return operand_in(operand, source.dtype_of(name))
