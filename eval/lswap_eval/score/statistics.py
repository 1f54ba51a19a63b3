"""Error bars and tests for accuracies on the same problems. Uses scipy where it has them.

All tests are two-sided. Outcomes are booleans; a pair of outcomes is one problem answered by two models.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval, as fractions of one."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class FlipTable:
    """The same problems under a reference and under another model: counts by which of them was right."""

    both: int
    gained: int
    lost: int
    neither: int

    @property
    def count(self) -> int:
        """Number of problems."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the other model minus that of the reference."""
        return (self.gained - self.lost) / self.count


def tabulate_flips(reference: Sequence[bool], other: Sequence[bool]) -> FlipTable:
    """Tabulate two sequences of outcomes in the same order. Raises ValueError where their lengths differ."""
    pairs = list(zip(reference, other, strict=True))
    return FlipTable(*(pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False))))


def wilson_interval(correct: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion. Raises ValueError where count is 0."""
    from scipy.stats import binomtest

    if not count:
        raise ValueError("no outcome, no interval")
    bounds = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    return Interval(correct / count, float(bounds.low), float(bounds.high))


def mcnemar_exact(table: FlipTable) -> float:
    """p of McNemar's exact test, whose hypothesis is equally many gains and losses. 1 where nothing flipped."""
    from scipy.stats import binomtest

    flips = table.gained + table.lost
    return float(binomtest(table.gained, flips).pvalue) if flips else 1.0


def mcnemar_mid_p(table: FlipTable) -> float:
    """p of McNemar's mid-p test: half the probability of the observed table is left out (Fagerland et al. 2013)."""
    from scipy.stats import binom

    flips, fewer = table.gained + table.lost, min(table.gained, table.lost)
    return min(1.0, float(2 * binom.cdf(fewer, flips, 0.5) - binom.pmf(fewer, flips, 0.5))) if flips else 1.0


def paired_interval(table: FlipTable, confidence: float = CONFIDENCE) -> Interval:
    """Tango's score interval of the difference of two paired proportions (Statistics in Medicine 17:891, 1998).

    The bounds are the differences at which the score statistic, with the nuisance parameter at its constrained maximum of
    likelihood, is the normal quantile. Raises ValueError where the table is empty.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if not table.count:
        raise ValueError("no outcome, no interval")
    z = float(norm.ppf((1 + confidence) / 2))
    estimate = table.difference
    bounds = []
    for end, quantile in ((-1.0, z), (1.0, -z)):
        if abs(estimate - end) < 1e-12:
            bounds.append(end)
            continue
        inner = estimate + math.copysign(1e-12, end)
        bounds.append(float(brentq(lambda d, q=quantile: _tango(table, d) - q, end, inner, xtol=1e-12)))
    return Interval(estimate, *bounds)


def _tango(table: FlipTable, difference: float) -> float:
    """Tango's statistic for the hypothesis that other minus reference is `difference`."""
    n, gained, lost = table.count, table.gained, table.lost
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    lost_share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * lost_share + difference * (1 - difference))
    deviation = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf if abs(deviation) > 1e-9 else 0.0, deviation)
    return deviation / math.sqrt(variance)


@dataclass(frozen=True, slots=True)
class ClusteredMean:
    """A mean over clustered items, with its interval and p against 0."""

    interval: Interval
    p: float
    items: int
    clusters: int


def clustered_mean(values: Sequence[tuple[Hashable, float]], confidence: float = CONFIDENCE) -> ClusteredMean:
    """Mean of (cluster, value) pairs, with the cluster-robust standard error and Student's t with clusters - 1 degrees of
    freedom.

    Problem n is the same problem in every language, so its outcomes are not independent and it is a cluster. The variance is
    the sandwich estimate with the factor G/(G-1). Raises ValueError for fewer than two clusters.
    """
    from scipy.stats import t as student

    mean = math.fsum(value for _, value in values) / len(values) if values else 0.0
    residuals: dict[Hashable, float] = {}
    for cluster, value in values:
        residuals[cluster] = residuals.get(cluster, 0.0) + (value - mean)
    clusters = len(residuals)
    if clusters < 2:
        raise ValueError("a standard error needs at least two clusters")
    error = math.sqrt(clusters / (clusters - 1) * math.fsum(total**2 for total in residuals.values())) / len(values)
    reach = float(student.ppf((1 + confidence) / 2, clusters - 1)) * error
    p = float(2 * student.sf(abs(mean) / error, clusters - 1)) if error else float(mean == 0)
    return ClusteredMean(Interval(mean, mean - reach, mean + reach), p, len(values), clusters)


def adjust_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p of each member of a family, in the order given. Reject where it is below the level."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def resolvable_difference(count: int, discordance: float, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest difference that McNemar's test detects with `power` among `count` problems (Miettinen 1968).

    discordance: the fraction of problems that exactly one of the two models answers correctly. NaN where no difference can be
    that large.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    at_level, at_power = float(norm.ppf(1 - level / 2)), float(norm.ppf(power))

    def shortfall(difference: float) -> float:
        return (at_level * math.sqrt(discordance) + at_power * math.sqrt(discordance - difference**2)) / difference - math.sqrt(
            count
        )

    if discordance <= 0 or shortfall(discordance) > 0:
        return math.nan
    return float(brentq(shortfall, 1e-9, discordance))


def state_power(count: int, discordance: float) -> str:
    """One sentence about the difference that this many problems can show."""
    seen = f"{count} problems, of which {discordance:.0%} are answered rightly by one of two models alone,"
    difference = resolvable_difference(count, discordance)
    if math.isnan(difference):
        return f"{seen} cannot show a difference with a power of 80%."
    shown = f"a difference of {100 * difference:.1f} points or more with a power of 80% (5% level)"
    return f"{seen} show {shown}; smaller ones are often missed."
