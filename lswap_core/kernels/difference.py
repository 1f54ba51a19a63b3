"""Difference statistics of two tensors, which every kernel computes in the same pass as the blend."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

BLOCK_ELEMENTS = 1024
"""Elements whose terms are summed in the compute type before the sum is added in fp64. Chunks of a tensor are multiples of
it."""


@dataclass(frozen=True, slots=True)
class DifferenceStats:
    """Difference of x (math) and y (lang), d = y - x, over `count` pairs of elements.

    differing: pairs whose bits differ. The sums and the maximum cover the pairs in which both elements are finite.
    x_nonfinite and y_nonfinite count elements that are not finite. For the order of summation see
    `lswap_core.kernels.reference`.
    """

    count: int = 0
    differing: int = 0
    sum_abs: float = 0.0
    sum_squares: float = 0.0
    max_abs: float = 0.0
    dot: float = 0.0
    x_squares: float = 0.0
    y_squares: float = 0.0
    x_nonfinite: int = 0
    y_nonfinite: int = 0

    def __add__(self, other: DifferenceStats) -> DifferenceStats:
        """Statistics of both tensors together. The sums are added in fp64, left operand first."""
        totals = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return DifferenceStats(**totals | {"max_abs": max(self.max_abs, other.max_abs)})

    @property
    def mean_abs(self) -> float:
        """Mean of |d|; 0 for no elements."""
        return self.sum_abs / self.count if self.count else 0.0

    @property
    def rms(self) -> float:
        """Root mean square of d; 0 for no elements."""
        return math.sqrt(self.sum_squares / self.count) if self.count else 0.0

    @property
    def relative_norm(self) -> float:
        """|d| / |x| in the Frobenius norm; infinite where only x is zero."""
        if self.x_squares:
            return math.sqrt(self.sum_squares / self.x_squares)
        return math.inf if self.sum_squares else 0.0

    @property
    def cosine(self) -> float:
        """Cosine of the angle between x and y; 1 where both are zero, 0 where one is."""
        if self.x_squares and self.y_squares:
            return self.dot / (math.sqrt(self.x_squares) * math.sqrt(self.y_squares))
        return 0.0 if self.x_squares or self.y_squares else 1.0

    def to_json(self) -> dict[str, int | float | str]:
        """Return the fields as JSON. A sum that overflowed is the string `inf` or `nan`, since JSON has no such numbers."""
        return {name: value if math.isfinite(value) else str(value) for name, value in asdict(self).items()}
