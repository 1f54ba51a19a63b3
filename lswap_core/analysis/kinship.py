"""Do two checkpoints look like fine-tunes of one base? Merging those that are not gives gibberish, with no error.

Evidence: over all matrices of the layers, relative distance |x - y| / |x| and cosine of x and y. Vectors are left out: norms
and biases are alike in any two models. `tests/analysis/test_kinship.py` and the README say how the thresholds were found.
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
"""At least this, with a relative distance of at most RELATED_DISTANCE: one base. Independent initialisations have a cosine
of 0, to within one over the square root of the number of elements, and a distance of about 1.4."""
RELATED_DISTANCE = 0.5
UNRELATED_COSINE = 0.5
"""Below this: different bases."""
_PAIRS: dict[Side, tuple[Role, Role]] = {"difference": ("math", "lang"), "math": ("base", "math"), "lang": ("base", "lang")}


@dataclass(frozen=True, slots=True)
class Kinship:
    """How far two checkpoints are apart. relative_distance: |x - y| / |x|."""

    x: Role
    y: Role
    relative_distance: float
    cosine: float

    @property
    def verdict(self) -> Verdict:
        """What that says."""
        if self.cosine >= RELATED_COSINE and self.relative_distance <= RELATED_DISTANCE:
            return "one base"
        return "different bases" if not self.cosine >= UNRELATED_COSINE else "unclear"

    def sentence(self) -> str:
        """The verdict and its evidence."""
        both = f"{self.x} and {self.y}"
        close = f"{self.y} looks like a fine-tune of base" if self.x == "base" else f"{both} look like fine-tunes of one base"
        said = {
            "one base": close,
            "unclear": f"{both} are far apart: whether they have one origin is unclear, and merging may not work",
            "different bases": f"{both} do NOT look like fine-tunes of one base: merging them gives gibberish",
        }
        return f"{said[self.verdict]} (relative distance {self.relative_distance:.3g}, cosine {self.cosine:.4f})"


def find_kinship(maps: ChangeMaps) -> tuple[Kinship, ...]:
    """Of math and lang and, where there is a base, of it and each of them; none where no matrix was compared."""
    matrices = [t.change for name, t in maps.tensors.items() if len(t.shape) > 1 and maps.stack.layer_of(name) is not None]
    changes = reduce(operator.add, matrices) if matrices else None
    found = []
    for side in SIDES:
        stats = changes.side(side) if changes else None
        if stats is not None and stats.count:
            distance = stats.relative_norm
            found.append(Kinship(*_PAIRS[side], distance, stats.cosine if math.isfinite(distance) else math.nan))
    return tuple(found)
