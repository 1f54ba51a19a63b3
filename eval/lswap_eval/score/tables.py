"""Results as tables: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lswap_core.report.tables import Table
from lswap_eval.score.comparison import ALL, Accuracy, Comparison, Difference
from lswap_eval.score.statistics import Interval

CATEGORIES = ("correct", "wrong", "unparsable", "truncated")
_CSV_COLUMNS = (
    "kind", "setting", "language", "count", "estimate", "low", "high", "best_pair", *CATEGORIES, "cut_off",
    "both", "gained", "lost", "neither", "p_exact", "p_mid", "p", "p_holm",
)  # fmt: skip


def accuracy_table(results: Comparison) -> Table:
    """One line per setting: percent right per language with its interval, the average, and the best pair's average."""
    columns = _columns(results)
    accuracies = {(a.setting, a.language): a for a in results.accuracies}
    many = len(results.pairs) > 1
    rows = []
    for setting in results.settings:
        row = [setting, *(_percent(accuracies[setting, language].interval) for language in columns)]
        if many:
            row.append(f"{100 * accuracies[setting, columns[-1]].best_pair:.1f}")
        rows.append(tuple(row))
    titles = [_title(language) for language in columns]
    return Table(("setting", *titles, *(["best pair"] if many else [])), tuple(rows))


def difference_table(results: Comparison) -> Table:
    """One line per setting but the reference: points gained per language, and the pooled difference with its p."""
    columns = _columns(results)
    differences = {(d.setting, d.language): d for d in results.differences}
    rows = []
    for setting in results.settings:
        if setting != results.reference:
            last = differences[setting, columns[-1]]
            points = [_points(differences[setting, language]) for language in columns]
            rows.append((setting, *points, _p(last.p), _p(last.p_holm)))
    titles = [_title(language) for language in columns]
    return Table((f"less {results.reference}", *titles, "p", "p (Holm)"), tuple(rows))


def flip_table(results: Comparison) -> Table:
    """One line per setting and language with one outcome per problem: answers gained and lost, and McNemar's p."""
    rows = [
        (d.setting, d.language, str(d.flips.gained), str(d.flips.lost), *map(_p, (d.p_exact, d.p_mid, d.p_holm)))
        for d in results.differences
        if d.flips is not None and d.p_exact is not None and d.p_mid is not None
    ]
    return Table(("setting", "language", "gained", "lost", "p (exact)", "p (mid)", "p (Holm)"), tuple(rows))


def category_table(accuracies: Sequence[Accuracy]) -> Table:
    """One line per setting and language: how many answers were right, wrong, unparsable, or cut off before the answer."""
    rows = [
        (
            a.setting,
            a.language,
            str(a.count),
            *(str(a.categories.get(name, 0)) for name in CATEGORIES),
            str(a.cut_off),
            _percent(a.interval),
        )
        for a in accuracies
    ]
    return Table(("setting", "language", "answers", *CATEGORIES, "cut off", "percent correct"), tuple(rows))


def to_markdown(results: Comparison) -> str:
    """The whole report."""
    parts = ["# MGSM", "", "Percent right, with 95% intervals.", "", accuracy_table(results).to_markdown()]
    if results.differences:
        parts += ["## Differences", "", f"Points more than {results.reference}, paired by problem, with 95% intervals.", ""]
        parts += [difference_table(results).to_markdown()]
    if (flips := flip_table(results)).rows:
        parts += ["## Answers that flipped", "", flips.to_markdown()]
    parts += ["## Outcomes", "", category_table(results.accuracies).to_markdown(), "## What this can show", ""]
    parts += [f"- {note}" for note in results.notes]
    if (choice := results.choice) is not None:
        parts.append(
            f"- Best on the dev half: {choice.setting} ({100 * choice.dev:.1f}). On the test half it has "
            f"{_percent(choice.test)}, {_signed(choice.difference)} points less {results.reference}, p {_p(choice.p)}."
        )
    return "\n".join([*parts, ""])


def to_csv(results: Comparison) -> str:
    """One line per accuracy and per difference, with all digits; fractions of one."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for a in results.accuracies:
        counts = {name: a.categories.get(name, 0) for name in CATEGORIES}
        row = {"kind": "accuracy", "count": a.count, "best_pair": a.best_pair, "cut_off": a.cut_off}
        writer.writerow({**row, **_shared(a), **counts})
    for d in results.differences:
        cells = {} if d.flips is None else {name: getattr(d.flips, name) for name in ("both", "gained", "lost", "neither")}
        tests = {"p_exact": d.p_exact, "p_mid": d.p_mid, "p": d.p, "p_holm": d.p_holm}
        writer.writerow({"kind": "difference", **_shared(d), **cells, **tests})
    return out.getvalue()


def _shared(row: Accuracy | Difference) -> dict[str, object]:
    interval = row.interval
    return {
        "setting": row.setting,
        "language": row.language,
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
    }


def _columns(results: Comparison) -> tuple[str, ...]:
    return (*results.languages, ALL) if len(results.languages) > 1 else results.languages


def _title(language: str) -> str:
    return "average" if language == ALL else language


def _percent(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _points(difference: Difference) -> str:
    return _signed(difference.interval)


def _signed(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
