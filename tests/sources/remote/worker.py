"""Runs command lines of `lswap_core` one after another in a process whose environment names the server. Commands come as lines
of JSON on stdin, results go as such lines to stdout.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout


def main() -> None:
    from lswap_core.cli import main
    from lswap_core.io import retries

    retries.FIRST_WAIT_SECONDS = 0.01
    results = sys.stdout
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ.update(asked["environment"])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main.main(asked["argv"])
        for name in asked["environment"]:
            del os.environ[name]
        results.write(json.dumps({"status": status, "out": out.getvalue(), "err": err.getvalue()}) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
