"""Compares several scored logs: accuracies, paired differences to a reference, and the best setting on one half of the
problems.

A run is one setting, of one pair of experts where there are several (`model["setting"]` and `model["pair"]` in the header;
else the model's name, else the file's). Differences compare a setting with the reference's run of the same pair. A model that
belongs to no pair, such as the base, is compared with the reference's run of every pair.

Where each problem has one outcome, the error bars are Wilson's and Tango's, and p is McNemar's. Where it has several (many
languages, pairs or samples), they are clustered by problem number. Two families of tests are declared, each corrected by
Holm: the settings pooled over languages, and every setting in every language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lswap_core.errors import RecipeError
from lswap_eval.log import Header, Key, read_log
from lswap_eval.mgsm.problems import LANGUAGES, ProblemSet, half_of
from lswap_eval.score import statistics
from lswap_eval.score.scoring import Score, score_log
from lswap_eval.score.statistics import FlipTable, Interval

ALL = "all"
"""In place of a language: pooled over all languages."""


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """The scores of one log, and its records."""

    setting: str
    pair: str
    header: Header
    scores: Mapping[Key, Score]
    outputs: Mapping[Key, str]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of a setting in a language (or `ALL`), over all pairs. Counts of outcomes by category."""

    setting: str
    language: str
    interval: Interval
    best_pair: float
    count: int
    categories: Mapping[str, int]
    cut_off: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of a setting minus that of the reference, on the same problems. `flips` and McNemar's p need one outcome per
    problem.
    """

    setting: str
    language: str
    interval: Interval
    flips: FlipTable | None
    p_exact: float | None
    p_mid: float | None
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting that was best on the dev half, and its result on the test half, which did not influence the choice."""

    setting: str
    dev: float
    test: Interval
    difference: Interval
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All results. reference: the setting that differences refer to."""

    reference: str
    settings: tuple[str, ...]
    pairs: tuple[str, ...]
    languages: tuple[str, ...]
    accuracies: tuple[Accuracy, ...]
    differences: tuple[Difference, ...]
    choice: Choice | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON; fractions of one throughout."""
        return {"format": "lswap-eval-results/1", **asdict(self)}


def read_runs(paths: Iterable[Path], *, rule: str, data: ProblemSet | None = None, half: str | None = None) -> list[ScoredRun]:
    """Score logs. data: the problems, for logs without the right answers. half: only "dev" or "test" problems.

    Raises RecipeError for a log without records, of other problems than `data`, or with the setting and pair of another log,
    and whatever `score_log` raises. Raises FormatError for a file that is no log.
    """
    golds = None if data is None else data.golds()
    digest = None if data is None else data.sha256
    runs: dict[tuple[str, str], ScoredRun] = {}
    for path in paths:
        header, records = read_log(path)
        if digest not in (None, header.data_sha256):
            raise RecipeError(
                f"{path} was made from other problems (digest {header.data_sha256[:12]}) than --data holds ({digest[:12]}); "
                "name the data of the log"
            )
        kept = [record for record in records if half in (None, half_of(record.problem))]
        if not kept:
            raise RecipeError(f"{path} holds no records" + (f" of the {half} half" if half else ""))
        setting = str(header.model.get("setting") or header.model.get("name") or path.stem)
        run = ScoredRun(
            setting,
            str(header.model.get("pair") or ""),
            header,
            score_log(header, kept, rule, golds),
            {r.key: r.output for r in kept},
        )
        if (run.setting, run.pair) in runs:
            raise RecipeError(f"{path} is of {_named(run)}, as is a log before it; compare logs of different settings")
        runs[run.setting, run.pair] = run
    return list(runs.values())


def compare(runs: Sequence[ScoredRun], reference: str) -> Comparison:
    """Compare runs on the same problems. Raises RecipeError for an unknown reference, and where problems, prompts or data
    differ.
    """
    settings = tuple(dict.fromkeys(run.setting for run in runs))
    if reference not in settings:
        raise RecipeError(f"no log is of the reference {reference!r}; there are {', '.join(settings)}")
    _refuse_unlike(runs)
    languages = tuple(sorted({language for run in runs for language, _, _ in run.scores}, key=LANGUAGES.index))
    over = (*languages, ALL) if len(languages) > 1 else languages
    accuracies = [accuracy_of([run for run in runs if run.setting == s], s, language) for s in settings for language in over]
    differences = _correct_families(
        [_difference(pair_runs(runs, s, reference), s, language) for s in settings if s != reference for language in over]
    )
    pairs = tuple(dict.fromkeys(run.pair for run in runs if run.pair))
    return Comparison(
        reference,
        settings,
        pairs,
        languages,
        tuple(accuracies),
        tuple(differences),
        _choose(runs, reference),
        _notes(runs, differences),
    )


def accuracy_of(runs: Sequence[ScoredRun], setting: str, language: str = ALL) -> Accuracy:
    """Accuracy of the runs of one setting."""
    scores = [(run.pair, score) for run in runs for score in run.scores.values() if language in (ALL, score.key[0])]
    outcomes = [(score.key[1], score.correct) for _, score in scores]
    by_pair: dict[str, list[bool]] = {}
    for pair, score in scores:
        by_pair.setdefault(pair, []).append(score.correct)
    return Accuracy(
        setting,
        language,
        _accuracy_interval(outcomes),
        max(map(fmean, by_pair.values())),
        len(outcomes),
        dict(Counter(score.category for _, score in scores)),
        sum(score.cut_off for _, score in scores),
    )


def _accuracy_interval(outcomes: Sequence[tuple[int, bool]]) -> Interval:
    if _is_single(outcomes):
        return statistics.wilson_interval(sum(correct for _, correct in outcomes), len(outcomes))
    problems, right = len({problem for problem, _ in outcomes}), {correct for _, correct in outcomes}
    if problems < 2:
        return Interval(fmean(correct for _, correct in outcomes), 0.0, 1.0)
    if (
        len(right) == 1
    ):  # without any spread the standard error is 0, which would claim certainty: count as many outcomes as problems
        return statistics.wilson_interval(problems if True in right else 0, problems)
    interval = statistics.clustered_mean([(problem, float(correct)) for problem, correct in outcomes]).interval
    return Interval(interval.estimate, max(interval.low, 0.0), min(interval.high, 1.0))


def _is_single(outcomes: Sequence[tuple[int, Any]]) -> bool:
    """Whether each problem has one outcome."""
    return len({problem for problem, _ in outcomes}) == len(outcomes)


Pairs = Sequence[tuple[ScoredRun, ScoredRun]]


def pair_runs(runs: Sequence[ScoredRun], setting: str, reference: str) -> Pairs:
    """Pairs (reference's run, setting's run) of the same pair of experts, or of every pair for a run that belongs to none."""
    references = [run for run in runs if run.setting == reference]
    return [
        (against, run)
        for run in runs
        if run.setting == setting
        for against in ([r for r in references if r.pair == run.pair] or references)
    ]


def _difference(pairs: Pairs, setting: str, language: str) -> Difference:
    outcomes = [
        (key[1], (against.scores[key].correct, score.correct))
        for against, run in pairs
        for key, score in run.scores.items()
        if language in (ALL, key[0])
    ]
    if _is_single(outcomes):
        flips = statistics.tabulate_flips([was for _, (was, _) in outcomes], [now for _, (_, now) in outcomes])
        exact = statistics.mcnemar_exact(flips)
        mid = statistics.mcnemar_mid_p(flips)
        return Difference(setting, language, statistics.paired_interval(flips), flips, exact, mid, exact, exact)
    values = [(problem, float(now) - float(was)) for problem, (was, now) in outcomes]
    if len({problem for problem, _ in values}) < 2:
        return Difference(setting, language, Interval(fmean(v for _, v in values), -1.0, 1.0), None, None, None, 1.0, 1.0)
    mean = statistics.clustered_mean(values)
    return Difference(setting, language, mean.interval, None, None, None, mean.p, mean.p)


def _correct_families(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with Holm's p: over the pooled ones, and over those of single languages."""
    adjusted: dict[str, float] = {}
    for pooled in (True, False):
        family = {f"{d.setting}\n{d.language}": d.p for d in differences if (d.language == ALL) == pooled}
        adjusted |= statistics.adjust_holm(family)
    return [replace(d, p_holm=adjusted[f"{d.setting}\n{d.language}"]) for d in differences]


def _choose(runs: Sequence[ScoredRun], reference: str) -> Choice | None:
    """Choose the best setting. None where one of the halves is empty, or there is nothing to choose from."""
    dev, test = (_restrict(runs, half) for half in ("dev", "test"))
    settings = list(dict.fromkeys(run.setting for run in runs))
    if len(settings) < 2 or not all(run.scores for run in (*dev, *test)):
        return None
    on_dev = {s: fmean(x.correct for run in dev if run.setting == s for x in run.scores.values()) for s in settings}
    best = max(settings, key=lambda s: on_dev[s])
    on_test = accuracy_of([run for run in test if run.setting == best], best).interval
    if best == reference:
        return Choice(best, on_dev[best], on_test, Interval(0.0, 0.0, 0.0), 1.0)
    difference = _difference(pair_runs(test, best, reference), best, ALL)
    return Choice(best, on_dev[best], on_test, difference.interval, difference.p)


def _restrict(runs: Sequence[ScoredRun], half: str) -> list[ScoredRun]:
    return [replace(run, scores={key: score for key, score in run.scores.items() if half_of(key[1]) == half}) for run in runs]


def _refuse_unlike(runs: Sequence[ScoredRun]) -> None:
    """Raises RecipeError unless all runs answered the same problems of the same data with the same prompts."""
    first = runs[0]
    for run in runs[1:]:
        if run.header.data_sha256 != first.header.data_sha256:
            raise RecipeError(f"{_named(run)} was asked other problems than {_named(first)}; compare logs of the same data")
        for name in ("prompt", "exemplars"):
            here, there = run.header.settings.get(name), first.header.settings.get(name)
            if here != there:
                raise RecipeError(
                    f"{_named(run)} has {name} {here!r}, {_named(first)} {there!r}; compare logs of the same prompts"
                )
        if run.scores.keys() != first.scores.keys():
            raise RecipeError(
                f"{_named(run)} has {len(run.scores)} records, {_named(first)} {len(first.scores)}, not of the same problems; "
                "finish the runs with --resume"
            )


def _notes(runs: Sequence[ScoredRun], differences: Sequence[Difference]) -> tuple[str, ...]:
    notes = []
    count = len({problem for _, problem, _ in runs[0].scores})
    single = [d.flips for d in differences if d.flips is not None]
    if single:
        notes.append(f"In one language, {statistics.state_power(count, fmean((f.gained + f.lost) / f.count for f in single))}")
    settings = len({run.setting for run in runs})
    if settings > 2:
        notes.append(
            f"The best of {settings} settings on the problems it was chosen by looks better than it is; "
            "the choice below was made on the dev half and is reported on the test half."
        )
    pooled = sum(d.language == ALL for d in differences)
    notes.append(
        f"Holm's correction is over two families: {pooled} pooled differences, {len(differences) - pooled} of single languages."
    )
    return tuple(notes)


def _named(run: ScoredRun) -> str:
    return f"{run.setting!r}" + (f" of {run.pair}" if run.pair else "")
