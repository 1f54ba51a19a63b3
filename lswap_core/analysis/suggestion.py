"""Suggests which layers to swap, from where the experts changed. A heuristic, and every message says so.

Each expert's mean absolute change per layer is divided by its mean over all layers, so that longer training alone does not
count. The dominance of language in a layer is lang / (lang + math) of these values. Above one half, the layer matters more to
the language expert. A layer's gain is its dominance minus one half minus a margin.

Lang gets the layers at both ends that have the largest sum of gains. Each end extends inward as long as its sum stays above
0. So an end that math dominates stays math's, and one outlier does not end a zone. Layers beside a zone that neither expert
dominates are blended: at least one, so that no layer feeds directly into a layer of the other expert, and at most two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

from lswap_core.analysis.changes import ChangeMaps
from lswap_core.errors import RecipeError

MARGIN = 0.05
"""Distance of dominance from one half that counts: lang's change is then 1.22 times math's, both relative to their means."""
MOST_BLENDED = 2


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Number of lang's layers at each end, of blended layers at each seam, and the dominance of language in every layer."""

    bottom: int
    top: int
    transition_bottom: int
    transition_top: int
    dominance: tuple[float, ...]

    @property
    def options(self) -> dict[str, int]:
        """The suggestion as options of a layer swap. One option sets both seams where they are equal, or where only one end
        is swapped.
        """
        ends = {"bottom": self.bottom, "top": self.top}
        if self.transition_bottom == self.transition_top or not (self.bottom and self.top):
            return ends | {"transition": max(self.transition_bottom, self.transition_top)}
        return ends | {"transition_bottom": self.transition_bottom, "transition_top": self.transition_top}

    @property
    def flags(self) -> str:
        """The options as on the command line."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.options.items())

    def sentence(self) -> str:
        """The suggestion and its evidence, as a sentence."""
        shown = " ".join(f"{value:.2f}" for value in self.dominance)
        return f"{self.flags}: a heuristic, from language's dominance over math by layer, relative to each expert's mean: {shown}"

    def to_json(self) -> dict[str, Any]:
        """Return options and evidence as JSON."""
        return {**self.options, "dominance": list(self.dominance), "heuristic": True}


def suggest(maps: ChangeMaps) -> Suggestion:
    """Return the suggestion. Raises RecipeError without a base, where layers were not measured, and where no layer gains from
    a swap.
    """
    if maps.base is None:
        raise RecipeError("which layers changed shows only against the base that both experts come from; give --base")
    dominance = find_dominance(maps)
    gains = [value - 0.5 - MARGIN for value in dominance]
    bottom, top = _best_ends(gains)
    if not bottom and not top:
        shown = " ".join(f"{value:.2f}" for value in dominance)
        raise RecipeError(
            f"nothing speaks for a layer swap: the language expert's changes dominate at neither end ({shown} by layer, "
            "where 0.5 is a draw); choose the layers by hand"
        )
    free = len(gains) - bottom - top - 1  # at least one layer stays math's
    middle = dominance[bottom : len(dominance) - top]
    at_bottom = min(free, _undecided(middle)) if bottom else 0
    at_top = min(free - at_bottom, _undecided(middle[::-1])) if top else 0
    return Suggestion(bottom, top, at_bottom, at_top, tuple(dominance))


def find_dominance(maps: ChangeMaps) -> list[float]:
    """Dominance of language in each layer: its fraction of both experts' change, each relative to its own mean. One half
    where neither changed.
    """
    layers = maps.by_layer()
    if len(layers) != maps.stack.count:
        raise RecipeError(f"{maps.stack.count - len(layers)} of {maps.stack.count} layers were not measured; analyse all of them")
    profiles = []
    for role in ("math", "lang"):
        means = [stats.mean_abs for change in layers.values() if (stats := change.side(role)) is not None]
        if not 0 < sum(means) < float("inf"):
            raise RecipeError(f"the layers of {role} did not change from base by a finite amount, so there is nothing to compare")
        profiles.append([mean / sum(means) for mean in means])
    return [lang / (math + lang) if math + lang else 0.5 for math, lang in zip(*profiles, strict=True)]


def _best_ends(gains: Sequence[float]) -> tuple[int, int]:
    """Lengths of the two ends with the largest gain, and among those the shortest. At least one layer stays between them."""
    below, above = _sums(gains), _sums(gains[::-1])
    possible = ((b, u) for b in range(len(below)) for u in range(min(len(above), len(gains) - b)))
    return max(possible, key=lambda ends: (below[ends[0]] + above[ends[1]], -sum(ends)))


def _sums(gains: Sequence[float]) -> list[float]:
    """Partial sums of the gains: 0, the first, the first two and so on, until a sum is not above 0."""
    sums = accumulate(gains)
    return [0.0, *takewhile(lambda total: total > 0, sums)]


def _undecided(middle: Sequence[float]) -> int:
    """Number of layers, from the first on, that neither expert dominates, compared with the layers that math dominates most.

    At least one, at most MOST_BLENDED.
    """
    least = max(0.5, min(middle) + 2 * MARGIN) - MARGIN
    return max(1, sum(1 for _ in takewhile(lambda value: value >= least, middle[:MOST_BLENDED])))
