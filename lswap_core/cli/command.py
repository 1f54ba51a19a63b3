"""Runs one command: its errors become one line and an exit status, and signals end it in order. The command lines of this
package and of the evaluation both use it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any, NoReturn

from lswap_core.errors import LswapError
from lswap_core.text.plain import one_line

_INTERRUPTED = 130


class _PrintVersion(argparse.Action):
    """Prints the version and exits. The version is looked up only here, because that takes longer than the rest of the
    parser.
    """

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        import lswap_core

        print(parser.prog, lswap_core.__version__)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations: a misspelt option is an error now, and stays one after the next release."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_version(self) -> None:
        """Add the option `--version`."""
        self.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")


def run_command(program: str, arguments: argparse.Namespace, *, interrupted: str) -> int:
    """Call `arguments.run(arguments)` and return the exit status. interrupted: the message for an interruption without one.

    Notes on an error are part of its line. With `arguments.json` the error is printed as JSON too.
    """
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return int(arguments.run(arguments))
    except LswapError as error:
        return _fail(program, arguments, error, str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(program, arguments, error, f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(program, arguments, error, "interrupted" if _notes(error) else interrupted, _INTERRUPTED)
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # else this process is exiting undisturbed
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> NoReturn:
    """Raise KeyboardInterrupt once, so that an unfinished output is removed. A second signal must not interrupt the removal."""
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
