"""The command line with intervals so short that even a small merge commits and pushes pages out all the time."""

from __future__ import annotations

import sys

from lswap_core.cli import main
from lswap_core.sinks.disk import sink, writing

EAGER = (sys.executable, __file__)
"""In place of `python -m lswap_core`."""

if __name__ == "__main__":
    sink._COMMIT_SECONDS = 0.0
    writing.WINDOW_BYTES = 4096
    sys.exit(main.main())
