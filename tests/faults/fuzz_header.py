"""What every file header and every index must satisfy, whatever is in it; and a target for atheris, which looks for one
that does not:

    python tests/faults/fuzz_header.py -runs=100000 -max_len=4096
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import safetensors

from lswap_core import FormatError, open_checkpoint
from lswap_core.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"


def open_bytes(data: bytes, place: Path) -> Checkpoint | None:
    """The checkpoint that these bytes are, written to `place`; None where they are refused."""
    place.write_bytes(data)
    try:
        return open_checkpoint(place, role="math")
    except FormatError as error:
        refusal = error
    assert refusal.path == str(place)
    return None


def check_header(data: bytes, place: Path) -> bool:
    """Refused, or accepted with the meaning that it has to the reference implementation; returns whether accepted."""
    found = open_bytes(data, place)
    if found is None:
        return False
    theirs = {name: (view["dtype"], list(view["shape"]), bytes(view["data"])) for name, view in safetensors.deserialize(data)}
    assert theirs == {name: (r.dtype.name, list(r.shape), data[r.begin : r.end]) for name, r in found.tensors.items()}
    return True


def check_index(raw: bytes, root: Path) -> bool:
    """Refused, or accepted with the meaning that any reader of JSON gives it; returns whether accepted."""
    (root / INDEX).write_bytes(raw)
    try:
        found = open_checkpoint(root, role="math")
    except FormatError as error:
        refusal, found = error, None
    if found is None:
        assert Path(refusal.path).is_relative_to(root)
        return False
    document: dict[str, Any] = json.loads(raw)
    assert document["weight_map"] == {name: ref.file for name, ref in found.tensors.items()}
    assert all(Path(root, shard.name).resolve().parent == root.resolve() for shard in found.shards)
    return True


def main() -> None:
    """Fuzz with atheris."""
    import atheris

    # Only a length that fits gets any further.
    with tempfile.TemporaryDirectory() as folder, atheris.instrument_imports():
        place = Path(folder, "fuzzed.safetensors")

        def target(data: bytes) -> None:
            check_header(data, place)
            if len(data) > 1:
                size = len(data) - data[0] % len(data)
                check_header(size.to_bytes(8, "little") + data, place)

        atheris.Setup(sys.argv, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
