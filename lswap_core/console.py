"""What the command line prints: lines, tables, JSON, progress."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, TextIO

from lswap_core.text import one_line

if TYPE_CHECKING:
    from lswap_core.io.ports import Progress
    from lswap_core.report.tables import Table

_WIDE = 160


def say(line: str) -> None:
    """Print one line; names in it come from files, and none may break it or drive the terminal."""
    print(one_line(line))


def print_json(value: Any) -> None:
    """Print a value as the library serialises it."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def load_tables() -> None:
    """Load what `print_table` needs, to save the time later."""
    from rich import box, console, markup, table  # noqa: F401


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or wide enough for a file."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(table.columns):
        drawn.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(one_line(cell)) for cell in row))
    Console(width=None if _is_terminal(sys.stdout) else _WIDE).print(drawn)


def progress_bar(arguments: argparse.Namespace, what: str) -> Progress | None:
    """A bar where somebody watches, else None."""
    if not shows_progress(arguments):
        return None
    from lswap_core.progress import Bar

    return Bar(what)


def shows_progress(arguments: argparse.Namespace) -> bool:
    """Somebody watches."""
    return not arguments.quiet and _is_terminal(sys.stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # Python has None for a stream that is closed from the start
