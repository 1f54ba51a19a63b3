"""A fuzz target: any bytes as a safetensors file, an index, a plan, a manifest or a journal. Nothing but FormatError may come.

    python -m tests.faults.fuzz_header -max_total_time=60 [CORPUS]      # libFuzzer's options; needs atheris

`read` is the target by itself; the tests beside it call it too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

KINDS = ("file", "index", "plan", "manifest", "journal")


def read(kind: str, data: bytes, folder: Path) -> bool:
    """Read `data` as one of KINDS; False where it is refused. An index stands beside two empty shards, `a` and `b`."""
    from lswap_core import FormatError, open_checkpoint
    from lswap_core.checkpoint.catalogue import INDEX_FILE, SINGLE_FILE
    from lswap_core.plan.manifest import Manifest
    from lswap_core.plan.plan import Plan
    from lswap_core.sinks.disk.journal import read_journal

    try:
        if kind == "file":
            (folder / SINGLE_FILE).write_bytes(data)
            open_checkpoint(folder / SINGLE_FILE, role="math")
        elif kind == "index":
            for name in ("a.safetensors", "b.safetensors"):
                (folder / name).write_bytes((2).to_bytes(8, "little") + b"{}")
            (folder / SINGLE_FILE).unlink(missing_ok=True)
            (folder / INDEX_FILE).write_bytes(data)
            open_checkpoint(folder, role="math")
        elif kind == "plan":
            Plan.from_json(data, path="plan.json")
        elif kind == "manifest":
            Manifest.from_json(data, path="manifest.json")
        else:
            (folder / "journal").write_bytes(data)
            return read_journal(folder / "journal") is not None
    except FormatError:
        return False
    return True


def main() -> None:
    import atheris

    with TemporaryDirectory() as folder:

        def target(data: bytes) -> None:
            if data:
                read(KINDS[data[0] % len(KINDS)], data[1:], Path(folder))

        atheris.instrument_all()
        atheris.Setup(sys.argv, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
