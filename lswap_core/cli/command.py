"""What one command is run in: its errors become one line and an exit status, its signals an orderly end. Both command lines,
this package's and the evaluation's, run theirs here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any, NoReturn

from lswap_core.errors import LswapError
from lswap_core.text import one_line

_INTERRUPTED = 130


class _PrintVersion(argparse.Action):
    """Print the version and exit. It is looked up only then, because that takes longer than the rest of the parser."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        import lswap_core

        print(parser.prog, lswap_core.__version__)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations: a misspelt option is an error, today and after the next release."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_version(self) -> None:
        """Take `--version`."""
        self.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")


def run_command(program: str, arguments: argparse.Namespace, *, interrupted: str) -> int:
    """`arguments.run(arguments)`, the exit status. interrupted: what to say of an interruption that says nothing itself.

    Notes on an error are a part of its line. With `arguments.json` the error is printed as JSON too.
    """
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return int(arguments.run(arguments))
    except LswapError as error:
        return _fail(program, arguments, error, str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(program, arguments, error, f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(program, arguments, error, "interrupted" if _notes(error) else interrupted, _INTERRUPTED)
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # else this process is on its way out, undisturbed
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> NoReturn:
    """Once, so that a half-made output is cleared away; whoever is impatient must not interrupt the clearing."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _fail(program: str, arguments: argparse.Namespace, error: BaseException, message: str, status: int) -> int:
    message = "; ".join([message, *_notes(error)])
    print(f"{program}: error: {one_line(message)}", file=sys.stderr)
    if getattr(arguments, "json", False):
        issues = list(getattr(error, "issues", ()))
        told = {"error": {"type": type(error).__name__, "exit": status, "message": message, "issues": issues}}
        print(json.dumps(told, indent=1, ensure_ascii=False))
    return status


def _notes(error: BaseException) -> tuple[str, ...]:
    return tuple(getattr(error, "__notes__", ()))
