"""Opening and reading for the laws, and what is read of the original on the disk."""

from __future__ import annotations

from pathlib import Path

from lswap_core.checkpoint.catalogue import Checkpoint, TensorRef
from lswap_core.sources.places import AnySource, Places

Range = tuple[TensorRef, int, int]
"""A tensor, an offset from its first byte, and a number of bytes."""
_MARGIN = b"\xee" * 16


def opened(location: str) -> tuple[Checkpoint, AnySource]:
    """The checkpoint there as `math`, and the source of its bytes."""
    places = Places()
    checkpoint = places.open(location, "math")
    return checkpoint, places.source({"math": checkpoint})


def read(source: AnySource, what: Range) -> bytes:
    """The range. Fails where the source touches a byte beside the buffer."""
    ref, offset, count = what
    memory = bytearray(_MARGIN + b"\xee" * count + _MARGIN)
    source.read_into(ref, offset, memoryview(memory)[16 : 16 + count])
    assert memory[:16] == memory[16 + count :] == _MARGIN
    return bytes(memory[16 : 16 + count])


def in_file(root: Path, what: Range) -> bytes:
    """The range of the original."""
    ref, offset, count = what
    with (root / ref.file).open("rb") as file:
        file.seek(ref.begin + offset)
        return file.read(count)


def largest(checkpoint: Checkpoint) -> TensorRef:
    """The tensor with most bytes."""
    return max(checkpoint.tensors.values(), key=lambda ref: ref.size_bytes)


def check_line(error: BaseException, path: str) -> None:
    """The message is one line. It begins with the file's path, or it is an OSError's, which names the file."""
    said = str(error)
    assert "\n" not in said
    assert said.startswith(path) or (isinstance(error, OSError) and error.filename == path), said
