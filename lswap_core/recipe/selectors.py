"""Selectors: predicates over tensor names, by layer or by pattern, and their combinations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase

from lswap_core.checkpoint.names import split_layer


class Selector:
    """A predicate on tensor names, combined by `~s`, `s & t` and `s | t`. Its `str` is what error messages show."""

    def __init__(self, matches: Callable[[str], bool], text: str) -> None:
        self._matches = matches
        self._text = text

    def __call__(self, name: str) -> bool:
        return self._matches(name)

    def __invert__(self) -> Selector:
        return Selector(lambda name: not self(name), f"~{self}")

    def __and__(self, other: Selector) -> Selector:
        return Selector(lambda name: self(name) and other(name), f"({self} & {other})")

    def __or__(self, other: Selector) -> Selector:
        return Selector(lambda name: self(name) or other(name), f"({self} | {other})")

    def __str__(self) -> str:
        return self._text


def chosen_by(selector: Callable[[str], bool], names: Iterable[str]) -> list[str]:
    """Those of `names` that a selector, or any other predicate, matches, in their order."""
    return list(filter(selector._matches if isinstance(selector, Selector) else selector, names))


def named(*patterns: str) -> Selector:
    """Names that match one of the shell patterns, case and all.

    >>> named("*.mlp.*", "lm_head.*")("model.layers.3.mlp.up_proj.weight")
    True
    """
    return Selector(lambda name: any(fnmatchcase(name, p) for p in patterns), f"named({', '.join(map(repr, patterns))})")


def one_of(names: Collection[str]) -> Selector:
    """Exactly these names."""
    chosen = frozenset(names)
    return Selector(chosen.__contains__, f"one_of({len(chosen)} names)")


def layers(begin: int, end: int, prefix: str | None = None) -> Selector:
    """Tensors of layers [begin, end) of the stack at `prefix`; without one, of every stack in the checkpoint.

    >>> layers(2, 4)("model.layers.3.mlp.up_proj.weight"), layers(2, 4, "vision.blocks")("model.layers.3.a")
    (True, False)
    """

    def matches(name: str) -> bool:
        found = split_layer(name)
        return found is not None and begin <= found[1] < end and prefix in (None, found[0])

    return Selector(matches, f"layers({begin}, {end})" if prefix is None else f"layers({begin}, {end}, {prefix!r})")
