"""Checks whether two checkpoints look like fine-tunes of one base. A merge of others gives gibberish, without an error.

The evidence is the relative distance |x - y| / |x| and the cosine of x and y, over all matrices of the layers. Vectors are
left out: norms and biases are alike in any two models. For the choice of thresholds see `tests/analysis/test_shared_base.py` and
the README.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import reduce
from typing import Literal

from lswap_core.analysis.changes import SIDES, ChangeMaps, Side
from lswap_core.checkpoint.catalogue import Role

Verdict = Literal["one base", "unclear", "different bases"]
RELATED_COSINE = 0.9
"""A cosine of at least this, and a relative distance of at most RELATED_DISTANCE, mean one base. Independent initialisations
have a cosine of 0, to within one over the square root of the number of elements, and a distance of about 1.4."""
RELATED_DISTANCE = 0.5
UNRELATED_COSINE = 0.5
"""A cosine below this means different bases."""
_PAIRS: dict[Side, tuple[Role, Role]] = {"difference": ("math", "lang"), "math": ("base", "math"), "lang": ("base", "lang")}


@dataclass(frozen=True, slots=True)
class SharedBaseCheck:
    """How different two checkpoints are. relative_distance: |x - y| / |x|."""

    x: Role
    y: Role
    relative_distance: float
    cosine: float

    @property
    def verdict(self) -> Verdict:
        """The conclusion from distance and cosine."""
        if self.cosine >= RELATED_COSINE and self.relative_distance <= RELATED_DISTANCE:
            return "one base"
        return "different bases" if not self.cosine >= UNRELATED_COSINE else "unclear"

    def sentence(self) -> str:
        """The verdict and its evidence, as a sentence."""
        both = f"{self.x} and {self.y}"
        close = f"{self.y} looks like a fine-tune of base" if self.x == "base" else f"{both} look like fine-tunes of one base"
        said = {
            "one base": close,
            "unclear": f"{both} are far apart: whether they have one origin is unclear, and merging may not work",
            "different bases": f"{both} do NOT look like fine-tunes of one base: merging them gives gibberish",
        }
        return f"{said[self.verdict]} (relative distance {self.relative_distance:.3g}, cosine {self.cosine:.4f})"


def check_shared_base(maps: ChangeMaps) -> tuple[SharedBaseCheck, ...]:
    """Check math against lang and, with a base, the base against each of them. Returns nothing where no matrix was compared."""
    matrices = [t.change for name, t in maps.tensors.items() if len(t.shape) > 1 and maps.stack.layer_of(name) is not None]
    changes = reduce(operator.add, matrices) if matrices else None
    results = []
    for side in SIDES:
        stats = changes.side(side) if changes else None
        if stats is not None and stats.count:
            distance = stats.relative_norm
            results.append(SharedBaseCheck(*_PAIRS[side], distance, stats.cosine if math.isfinite(distance) else math.nan))
    return tuple(results)
