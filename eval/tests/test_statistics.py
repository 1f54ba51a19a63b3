"""The statistics equal scipy's and statsmodels' on the same tables, and the intervals cover as often as they say."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from lswap_eval.score import statistics
from lswap_eval.score.statistics import FlipTable

TABLES = [FlipTable(*cells) for cells in itertools.product((0, 3, 120), (0, 1, 7, 30), (0, 2, 7, 19), (0, 5, 90)) if sum(cells)]


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (0, 250), (250, 250), (3, 10), (101, 250), (1200, 2750)])
def test_wilson_is_statsmodels(correct: int, count: int) -> None:
    found = statistics.wilson_interval(correct, count)
    assert (found.low, found.high) == pytest.approx(proportion_confint(correct, count, method="wilson"), abs=1e-12)
    assert found.estimate == correct / count


def test_flips_are_counted() -> None:
    reference, other = [True, True, False, False, True, False], [True, False, True, False, True, True]
    assert statistics.tabulate_flips(reference, other) == FlipTable(both=2, gained=2, lost=1, neither=1)
    assert statistics.tabulate_flips(reference, other).difference == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="shorter"):
        statistics.tabulate_flips(reference, other[1:])


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_mcnemar_is_statsmodels(table: FlipTable) -> None:
    square = [[table.both, table.lost], [table.gained, table.neither]]
    if table.gained + table.lost:
        expected = mcnemar(square, exact=True).pvalue
        assert statistics.mcnemar_exact(table) == pytest.approx(expected)
        flips, fewer = table.gained + table.lost, min(table.gained, table.lost)
        point = stats.binom.pmf(fewer, flips, 0.5)
        twice = 2 * (math.fsum(stats.binom.pmf(k, flips, 0.5) for k in range(fewer)) + point / 2)
        assert statistics.mcnemar_mid_p(table) == pytest.approx(twice)
        assert statistics.mcnemar_mid_p(table) <= statistics.mcnemar_exact(table) + 1e-12
    else:
        assert statistics.mcnemar_exact(table) == statistics.mcnemar_mid_p(table) == 1.0


def likelihood_statistic(table: FlipTable, difference: float) -> float:
    """The score statistic with the nuisance parameter found by maximising the likelihood numerically."""
    n, gained, lost = table.count, table.gained, table.lost
    low, high = max(0.0, -difference), (1 - difference) / 2

    def unlikelihood(share: float) -> float:
        terms = ((lost, share), (gained, share + difference), (n - gained - lost, 1 - 2 * share - difference))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    best = optimize.minimize_scalar(unlikelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    return (gained - lost - n * difference) / math.sqrt(n * (2 * best + difference * (1 - difference)))


@pytest.mark.parametrize("table", [t for t in TABLES if t.gained and t.lost and t.both + t.neither], ids=str)
def test_the_paired_interval_inverts_the_score_test(table: FlipTable) -> None:
    found = statistics.paired_interval(table)
    assert -1 < found.low < found.estimate < found.high < 1
    assert likelihood_statistic(table, found.low) == pytest.approx(stats.norm.ppf(0.975), abs=1e-4)
    assert likelihood_statistic(table, found.high) == pytest.approx(stats.norm.ppf(0.025), abs=1e-4)


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_the_paired_interval_is_mirrored_and_holds_the_estimate(table: FlipTable) -> None:
    found, mirrored = (
        statistics.paired_interval(t) for t in (table, FlipTable(table.both, table.lost, table.gained, table.neither))
    )
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high


def test_the_clustered_error_is_statsmodels() -> None:
    drawn = np.random.default_rng(3)
    for clusters, each in ((2, 3), (40, 11), (250, 4)):
        groups = np.repeat(np.arange(clusters), each)[: clusters * each - 1]  # one cluster is smaller
        values = drawn.normal(size=len(groups)) + drawn.normal(size=clusters)[groups] + 0.1
        fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
        found = statistics.clustered_mean(list(zip(groups.tolist(), values.tolist(), strict=True)))
        assert found.interval.estimate == pytest.approx(fit.params[0])
        assert (found.interval.low, found.interval.high) == pytest.approx(tuple(fit.conf_int()[0]))
        assert found.p == pytest.approx(fit.pvalues[0])
        assert (found.items, found.clusters) == (len(values), clusters)


def test_the_clustered_error_refuses_one_cluster_and_knows_no_spread() -> None:
    with pytest.raises(ValueError, match="two clusters"):
        statistics.clustered_mean([("a", 1.0), ("a", 0.0)])
    assert statistics.clustered_mean([("a", 0.0), ("b", 0.0)]).p == 1
    assert statistics.clustered_mean([("a", 1.0), ("b", 1.0)]).p == 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    found = statistics.adjust_holm({str(n): p for n, p in enumerate(p_values)})
    assert list(found) == [str(n) for n in range(len(p_values))]
    assert list(found.values()) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def correlated(
    drawn: np.random.Generator, count: int, languages: int, accuracy: float, gain: float
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (problem, language) of two models: hard problems are hard for both models and in every language."""
    hard = drawn.normal(size=(count, 1))
    models = []
    for target in (accuracy, accuracy + gain):
        at = stats.norm.ppf(target) * math.sqrt(2)
        models.append(hard + drawn.normal(size=(count, languages)) < at)
    return models[0], models[1]


def test_the_intervals_cover_as_often_as_they_say() -> None:
    """2,000 draws: the standard error of a coverage of 95% is half a point; three of them are allowed."""
    drawn = np.random.default_rng(11)
    covered = {"wilson": 0, "paired": 0, "clustered": 0, "naive": 0}
    draws, accuracy, gain = 2000, 0.4, 0.03
    for _ in range(draws):
        first, second = correlated(drawn, 120, 4, accuracy, gain)
        wilson = statistics.wilson_interval(int(first[:, 0].sum()), 120)
        covered["wilson"] += wilson.low <= accuracy <= wilson.high
        paired = statistics.paired_interval(statistics.tabulate_flips(first[:, 0].tolist(), second[:, 0].tolist()))
        covered["paired"] += paired.low <= gain <= paired.high
        values = [(n, float(x)) for n, row in enumerate(first) for x in row]
        clustered = statistics.clustered_mean(values).interval
        covered["clustered"] += clustered.low <= accuracy <= clustered.high
        naive = statistics.wilson_interval(int(first.sum()), first.size)
        covered["naive"] += naive.low <= accuracy <= naive.high
    share = {name: hits / draws for name, hits in covered.items()}
    for name in ("wilson", "paired", "clustered"):
        assert share[name] == pytest.approx(0.95, abs=0.015), share
    assert share["naive"] < 0.88, share  # so that the clusters matter, and this test can fail


def test_mcnemar_keeps_its_level_and_finds_the_difference_it_should() -> None:
    drawn = random.Random(5)
    count, discordance, draws = 250, 0.25, 3000
    difference = statistics.resolvable_difference(count, discordance)
    assert 0.08 < difference < 0.1
    rejected = {}
    for gain in (0.0, difference):
        hits = 0
        for _ in range(draws):
            flips = [drawn.random() for _ in range(count)]
            gained = sum(u < (discordance + gain) / 2 for u in flips)
            lost = sum((discordance + gain) / 2 <= u < discordance for u in flips)
            hits += statistics.mcnemar_mid_p(FlipTable(0, gained, lost, count - gained - lost)) < 0.05
        rejected[gain] = hits / draws
    assert rejected[0.0] == pytest.approx(0.05, abs=0.015)
    assert rejected[difference] == pytest.approx(0.8, abs=0.03)


def test_the_power_statement_says_what_cannot_be_shown() -> None:
    assert "250 problems, of which 25% are" in statistics.state_power(250, 0.25)
    assert "cannot show" in statistics.state_power(10, 0.05)
    assert math.isnan(statistics.resolvable_difference(250, 0.0))
