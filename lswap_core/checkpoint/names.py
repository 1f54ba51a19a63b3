"""The grammar of tensor names: which names belong to which layer.

A tensor name is a path of components joined by dots. A *stack* is a prefix followed by a number: `model.layers.7.` or
`transformer.h.7.`. Only the first number in a name counts, so the experts of an MoE layer stay inside their layer. No
architecture is known by name here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from lswap_core.errors import RecipeError

EMBEDDING_MODULES = ("embed_tokens", "wte", "wpe", "tok_embeddings", "word_embeddings", "embed_positions", "embed_in")

NORM_MODULES = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm")

HEAD_MODULES = ("lm_head", "output", "embed_out")
"""Modules outside the layers that are recognised, beside the stack or above it."""

_NUMBERED = re.compile(r"(?:^|\.)([0-9]{1,9})(?=\.)")
"""A component of digits with another component after it. No model has more than 999,999,999 layers, and Python refuses to
parse numbers of thousands of digits."""


MODULES = ("attn", "mlp", "norms")
"""Kinds of modules in a layer that the name shows."""

_KINDS = (
    ("norms", re.compile(r"norm|^ln_\d|^ln$|layernorm", re.IGNORECASE)),
    ("attn", re.compile(r"attn|attention", re.IGNORECASE)),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|moe|experts", re.IGNORECASE)),
)


def split_layer(name: str) -> tuple[str, int] | None:
    """Stack prefix and layer number of a name. None where no numbered component is followed by another component.

    >>> split_layer("model.layers.3.mlp.experts.7.w1.weight"), split_layer("model.norm.weight")
    (('model.layers', 3), None)
    """
    match = _NUMBERED.search(name)
    # "07" is not a layer number, or two spellings would name one layer.
    if match is None or not match.start() or (match[1] != "0" and match[1][0] == "0"):
        return None
    return name[: match.start()], int(match[1])


def module_of(name: str) -> str:
    """The kind of module that a tensor of a layer belongs to: `attn`, `mlp`, `norms`, or `other`.

    The first component after the layer's number that matches a kind decides; so a norm inside the attention is attention.

    >>> module_of("model.layers.3.self_attn.q_norm.weight"), module_of("model.layers.3.post_attention_layernorm.weight")
    ('attn', 'norms')
    """
    match = _NUMBERED.search(name)
    for component in name[match.end() + 1 :].split(".") if match else ():
        for kind, pattern in _KINDS:
            if pattern.search(component):
                return kind
    return "other"


def modules_with_scale(names: Iterable[str]) -> frozenset[str]:
    """Modules that have a quantisation scale beside their weights.

    >>> sorted(modules_with_scale(["a.weight", "a.weight_scale", "b.weight"]))
    ['a']
    """
    return frozenset(name.rpartition(".")[0] for name in names if "scale" in name.rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class Stack:
    """The transformer layers of a checkpoint: names `<prefix>.<0..count-1>.<rest>`."""

    prefix: str
    count: int

    def layer_of(self, name: str) -> int | None:
        """Number of the layer that `name` belongs to, None outside the stack."""
        return next(self.layers_of((name,)))

    def layers_of(self, names: Iterable[str]) -> Iterator[int | None]:
        """Number of the layer that each of `names` belongs to, None outside the stack."""
        for match in map(_in_stack(self.prefix), names):
            yield layer if match is not None and (layer := int(match[1])) < self.count else None


@lru_cache(maxsize=64)
def _in_stack(prefix: str) -> Callable[[str], re.Match[str] | None]:
    """Match a name in the stack. The prefix must end before the name's first number; see `split_layer`."""
    return re.compile(re.escape(prefix) + r"\.(0|[1-9][0-9]{0,8})\.").match


def find_stack(
    names: Iterable[str], *, expected: int | None = None, extra: int = 0, prefix: str | None = None, where: str = "the checkpoint"
) -> Stack:
    """Find the stack of transformer layers among `names`.

    expected: the number of layers in config.json, if it has one. extra: layers that config.json counts separately (draft
    heads for multi-token prediction, numbered after the last layer). prefix: the user's choice. Raises RecipeError, which
    names the candidates, unless exactly one stack qualifies.
    """
    numbers: dict[str, set[int]] = {}
    # A layer has many tensors, which all begin alike.
    for head in {match.string[: match.end()] for match in map(_NUMBERED.search, names) if match is not None}:
        if (at := split_layer(f"{head}.")) is not None:
            numbers.setdefault(at[0], set()).add(at[1])
    whole = {p: len(seen) for p, seen in numbers.items() if seen == set(range(len(seen)))}
    shown = ", ".join(f"{p} ({len(seen)} layers)" for p, seen in sorted(numbers.items())) or "none"
    if prefix is not None:
        if prefix not in numbers:
            raise RecipeError(f"{where} has no layers at {prefix!r}; numbered stacks: {shown}")
        if prefix not in whole:
            raise RecipeError(
                f"{where}: the layers at {prefix!r} are not numbered 0, 1, 2 ... without gaps: {_ranges(numbers[prefix])}"
            )
        return Stack(prefix, expected if expected == whole[prefix] - extra else whole[prefix])
    fitting = whole if expected is None else {p: n for p, n in whole.items() if expected in (n, n - extra)}
    if len(fitting) == 1:
        ((only, count),) = fitting.items()
        return Stack(only, count if expected is None else expected)
    if fitting:
        raise RecipeError(f"{where}: more than one stack of layers qualifies ({shown}); choose one with --layer-prefix")
    stated = f"; config.json says {expected} layers" if expected is not None else ""
    raise RecipeError(f"{where}: no stack of layers numbered 0, 1, 2 ... found{stated}; numbered stacks: {shown}")


def _ranges(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    return f"{ordered[0]} to {ordered[-1]}, {len(ordered)} of them"


@dataclass(frozen=True, slots=True)
class Outside:
    """Names outside the layers, by their part of the model. `other` holds every name that is not recognised."""

    embed: tuple[str, ...]
    norm: tuple[str, ...]
    head: tuple[str, ...]
    other: tuple[str, ...]


def classify_outside(names: Iterable[str], stack: Stack) -> Outside:
    """Classify embeddings, final norm and head by their usual names, where they are beside the stack or above it.

    The `norm` or `embed_tokens` of a vision tower is therefore `other`.
    """
    beside = stack.prefix.rpartition(".")[0]
    steps = beside.split(".") if beside else []
    above = {".".join(steps[:depth]) for depth in range(len(steps) + 1)}
    parts: dict[str, list[str]] = {"embed": [], "norm": [], "head": [], "other": []}
    for name in names:
        if stack.layer_of(name) is not None:
            continue
        module = name.rpartition(".")[0]
        parent, _, leaf = module.rpartition(".")
        part = "other"
        if parent in above:
            if leaf in EMBEDDING_MODULES:
                part = "embed"
            elif leaf in NORM_MODULES and parent == beside:
                part = "norm"
            elif leaf in HEAD_MODULES:
                part = "head"
        parts[part].append(name)
    return Outside(**{part: tuple(chosen) for part, chosen in parts.items()})
