"""Selectors: predicates over tensor names, by layer or by pattern, and their combinations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase

from lswap_core.checkpoint.names import split_layer


class Selector:
    """A predicate on tensor names, combined with `~s`, `s & t` and `s | t`. Error messages show its `str`."""

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
    """Names that a selector, or any other predicate, matches, in order."""
    return list(filter(selector._matches if isinstance(selector, Selector) else selector, names))


def named(*patterns: str) -> Selector:
    """Select names that match one of the shell patterns, case-sensitively.

    >>> named("*.mlp.*", "lm_head.*")("model.layers.3.mlp.up_proj.weight")
    True
    """
    return Selector(lambda name: any(fnmatchcase(name, p) for p in patterns), f"named({', '.join(map(repr, patterns))})")


def one_of(names: Collection[str]) -> Selector:
    """Select exactly these names."""
    chosen = frozenset(names)
    return Selector(chosen.__contains__, f"one_of({len(chosen)} names)")


def layers(begin: int, end: int, prefix: str | None = None) -> Selector:
    """Select tensors of layers [begin, end) of the stack at `prefix`; without a prefix, of every stack in the checkpoint.

    >>> layers(2, 4)("model.layers.3.mlp.up_proj.weight"), layers(2, 4, "vision.blocks")("model.layers.3.a")
    (True, False)
    """

    def matches(name: str) -> bool:
        at = split_layer(name)
        return at is not None and begin <= at[1] < end and prefix in (None, at[0])

    return Selector(matches, f"layers({begin}, {end})" if prefix is None else f"layers({begin}, {end}, {prefix!r})")
