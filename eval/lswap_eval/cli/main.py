"""The command line: parses arguments, runs a command, prints the result and exits, as `lswap_core.cli.main` does.

Results go to stdout, progress and errors to stderr. Exit status: 0 done; 1 the operating system refused; 2 usage; 3 to 7 as
in `lswap_core.errors`; 130 interrupted, 129 hung up, 143 terminated.
"""

from __future__ import annotations

from collections.abc import Sequence

from lswap_core.cli.command import Parser, run_command
from lswap_eval.cli import generating, scoring


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    return run_command("lswap-eval", _parser().parse_args(argv), interrupted="interrupted; what the log holds is kept")


def _parser() -> Parser:
    parser = Parser(prog="lswap-eval", description="MGSM on the result of a layer swap: run, score, compare, ablate.")
    parser.add_version()
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (generating, scoring):
        module.add_commands(commands)
    return parser
