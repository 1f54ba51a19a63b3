"""The commands `score` and `compare`, which turn logs into tables."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lswap_core.text.plain import counted, one_line
from lswap_eval.score.writing import write_results

if TYPE_CHECKING:
    from lswap_core.report.tables import Table
    from lswap_eval.mgsm.problems import ProblemSet


_RULES = ("lswap", "lm-eval-strict", "lm-eval-flexible", "simple-evals")  # a test compares them with `scoring.RULES`

_WIDE = 160


def add_commands(commands: Any) -> None:
    """Add `score` and `compare` to argparse's subparsers."""
    score = commands.add_parser("score", help="score a log again, under one of several rules")
    score.add_argument("log", metavar="LOG", type=Path, help="a log that `run` wrote")
    score.add_argument(
        "--answers", action="store_true", help="list every answer: what was taken, by which rule, and if it is right"
    )
    _add_shared(score, _score)

    compare = commands.add_parser("compare", help="compare logs of several settings with one of them")
    compare.add_argument("logs", metavar="LOG", type=Path, nargs="+", help="logs of the same problems")
    compare.add_argument(
        "--reference", metavar="NAME", help="the setting to take differences from (default: default, else the first)"
    )
    compare.add_argument("--half", choices=("dev", "test"), help="count only this half of the problems")
    compare.add_argument("--out", metavar="DIR", type=Path, help="write Markdown, CSV, JSON, a plot and a page of flips there")
    _add_shared(compare, _compare)


def _add_shared(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--rule", choices=_RULES, default="lswap", help="how an answer is read from an output (default: lswap)")
    parser.add_argument(
        "--data", metavar="DIR|hub", help="the problems, for logs that do not hold the right answers, and for --out's page"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def _score(arguments: argparse.Namespace) -> int:
    from lswap_eval.score.comparison import ALL, accuracy_of, read_runs
    from lswap_eval.score.tables import category_table

    data = _load(arguments.data)
    (run,) = read_runs([arguments.log], rule=arguments.rule, data=data)
    languages = list(dict.fromkeys(language for language, _, _ in run.scores))
    rows = [accuracy_of([run], run.setting, language) for language in (*languages, *([ALL] if len(languages) > 1 else []))]
    if arguments.json:
        shown = [
            {"language": row.language, "answers": row.count, "accuracy": row.interval.estimate, "low": row.interval.low}
            | {"high": row.interval.high, "categories": row.categories, "cut_off": row.cut_off}
            for row in rows
        ]
        answers = [
            dict(zip(("language", "problem", "sample"), key, strict=True))
            | {"correct": score.correct, "value": score.value, "found_by": score.found_by, "category": score.category}
            for key, score in run.scores.items()
        ]
        _print_json({"rule": arguments.rule, "scores": shown} | ({"answers": answers} if arguments.answers else {}))
    elif not arguments.quiet:
        _print_table(category_table(rows))
        if arguments.answers:
            for (language, problem, sample), score in run.scores.items():
                _say(f"{language} {problem} {sample}: {score.category}, {score.value} by {score.found_by}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from lswap_eval.score import tables
    from lswap_eval.score.comparison import compare, read_runs

    data = _load(arguments.data)
    runs = read_runs(arguments.logs, rule=arguments.rule, data=data, half=arguments.half)
    settings = [run.setting for run in runs]
    results = compare(runs, arguments.reference or ("default" if "default" in settings else settings[0]))
    if arguments.out is not None:
        write_results(results, runs, arguments.out, data)
    if arguments.json:
        _print_json(results.to_json())
    elif not arguments.quiet:
        for table in (tables.accuracy_table(results), tables.difference_table(results), tables.flip_table(results)):
            if table.rows:
                _print_table(table)
        for line in tables.to_markdown(results).partition("## What this can show\n")[2].strip().splitlines():
            _say(line)
        if arguments.out is not None:
            _say(f"{arguments.out}: results of {counted(len(runs), 'log')}")
    return 0


def _load(where: str | None) -> ProblemSet | None:
    from lswap_eval.mgsm.download import load_problems

    return None if where is None else load_problems(where)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _say(line: str) -> None:
    print(one_line(line))


def _print_table(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(table.columns):
        drawn.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(one_line(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(drawn)
