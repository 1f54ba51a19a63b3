"""Which layers to swap, proposed from where the experts changed. A heuristic, not a finding: it says so wherever it is shown.

Each expert's mean absolute change per layer is divided by its mean over the layers, so that an expert that was trained
longer does not win everywhere. Language's dominance in a layer is lang / (lang + math) of these: above one half, the layer
matters more to the language expert. What a layer's dominance has beyond one half and a margin is its gain. Lang is given
the layers at either end whose gains add up to the most, as far inward as the sum from the end stays above 0: so an end that
math dominates stays math's, and one layer that falls out of line does not end a zone. Layers next to a zone that neither
expert dominates are blended: at least one, so that no layer feeds straight into one of the other expert, and two at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

from lswap_core.analysis.changes import ChangeMaps
from lswap_core.errors import RecipeError

MARGIN = 0.05
"""How far dominance must be from one half to count: lang's change is then 1.22 times math's, both relative to their means."""
MOST_BLENDED = 2


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Layers from lang at either end, blended ones at either seam, and language's dominance in every layer."""

    bottom: int
    top: int
    transition_bottom: int
    transition_top: int
    dominance: tuple[float, ...]

    @property
    def options(self) -> dict[str, int]:
        """As options of a layer swap; both seams are one option where they are equal, or where only one end is swapped."""
        ends = {"bottom": self.bottom, "top": self.top}
        if self.transition_bottom == self.transition_top or not (self.bottom and self.top):
            return ends | {"transition": max(self.transition_bottom, self.transition_top)}
        return ends | {"transition_bottom": self.transition_bottom, "transition_top": self.transition_top}

    @property
    def flags(self) -> str:
        """As the command line has them."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.options.items())

    def sentence(self) -> str:
        """The proposal, and what it rests on."""
        shown = " ".join(f"{value:.2f}" for value in self.dominance)
        return f"{self.flags}: a heuristic, from language's dominance over math by layer, relative to each expert's mean: {shown}"

    def to_json(self) -> dict[str, Any]:
        """Options and evidence."""
        return {**self.options, "dominance": list(self.dominance), "heuristic": True}


def suggest(maps: ChangeMaps) -> Suggestion:
    """The proposal; RecipeError without a base, where layers were not measured, and where nothing speaks for a swap."""
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
    free = len(gains) - bottom - top - 1  # one layer at least stays math's
    middle = dominance[bottom : len(dominance) - top]
    at_bottom = min(free, _undecided(middle)) if bottom else 0
    at_top = min(free - at_bottom, _undecided(middle[::-1])) if top else 0
    return Suggestion(bottom, top, at_bottom, at_top, tuple(dominance))


def find_dominance(maps: ChangeMaps) -> list[float]:
    """Language's share of both experts' change in each layer, each relative to its own mean; one half where none changed."""
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
    """Lengths of the two ends that gain the most, and among those the shortest; one layer at least lies between them."""
    below, above = _sums(gains), _sums(gains[::-1])
    possible = ((b, u) for b in range(len(below)) for u in range(min(len(above), len(gains) - b)))
    return max(possible, key=lambda ends: (below[ends[0]] + above[ends[1]], -sum(ends)))


def _sums(gains: Sequence[float]) -> list[float]:
    """Sums of no gain, of the first, of the first two and so on, as far as they stay above 0."""
    sums = accumulate(gains)
    return [0.0, *takewhile(lambda total: total > 0, sums)]


def _undecided(middle: Sequence[float]) -> int:
    """Layers from the first on that neither expert dominates, though math dominates others more; one at least,
    MOST_BLENDED at most.
    """
    least = max(0.5, min(middle) + 2 * MARGIN) - MARGIN
    return max(1, sum(1 for _ in takewhile(lambda value: value >= least, middle[:MOST_BLENDED])))
