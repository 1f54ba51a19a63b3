"""The command line: argv -> work -> text. Prints and exits, as `lswap_core.cli` does.

Results go to stdout, progress and errors to stderr. Exit status: 0 done; 1 the operating system refused; 2 usage; 3 to 7
as in `lswap_core.errors`; 130 interrupted, 129 hung up, 143 terminated.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

from lswap_core.display import one_line
from lswap_core.errors import LswapError

_INTERRUPTED = 130
_COMMANDS = ("lswap_eval.running_cli", "lswap_eval.scoring_cli")
"""Modules with `add_commands(subparsers)`, cheap to import; those that are there are asked for their commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in signals}
    try:
        return int(arguments.run(arguments))
    except LswapError as error:
        return _fail(arguments, error, str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(arguments, error, f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(arguments, error, "interrupted; what the log holds is kept", _INTERRUPTED)
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # else this process is on its way out, undisturbed
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> NoReturn:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _fail(arguments: argparse.Namespace, error: BaseException, message: str, status: int) -> int:
    print(f"lswap_eval: error: {one_line(message)}", file=sys.stderr)
    if getattr(arguments, "json", False):
        issues = list(getattr(error, "issues", ()))
        print(
            json.dumps({"error": {"type": type(error).__name__, "exit": status, "message": message, "issues": issues}}, indent=1)
        )
    return status


class _Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations: a misspelt option is an error, today and after the next release."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lswap_eval", description="MGSM on the result of a layer swap: run, score, compare, ablate.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in _COMMANDS:
        if find_spec(module) is not None:
            import_module(module).add_commands(commands)
    return parser
