"""An output held against its manifest and, where they are at hand, against the sources."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lswap_core.checkpoint import Checkpoint, TensorRef
from lswap_core.digests import Digest
from lswap_core.draft import Copy, Expression
from lswap_core.evaluate import CHUNK_BYTES, Evaluator
from lswap_core.manifest import Manifest, TensorRecord
from lswap_core.ports import Kernels, Progress, Source


def differing_tensors(
    manifest: Manifest,
    output: Source,
    sources: Source | None,
    kernels: Kernels,
    *,
    files: frozenset[str],
    progress: Progress,
    workers: int,
) -> Iterator[str]:
    """One sentence for every tensor of `files` that is not what the manifest says or, given `sources`, not what they
    give: copied tensors are compared byte for byte, blended ones are computed again.
    """
    written = Evaluator(output, kernels)
    rederived = Evaluator(sources, kernels) if sources else None
    tensors = {name: record for name, record in manifest.tensors.items() if record.file in files}

    def check(record: TensorRecord) -> str | None:
        as_written = Copy(TensorRef("math", record.file, record.dtype, record.shape, record.begin, record.end))
        digest = _digest(written, as_written, progress)
        if digest != record.digest:
            return f"has digest {digest}, the manifest says {record.digest}"
        return _first_difference(output, as_written.ref, rederived, record.made_of) if rederived else None

    progress.begin(sum(record.end - record.begin for record in tensors.values()))
    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="lswap") as pool:
            for name, found in zip(tensors, pool.map(check, tensors.values()), strict=True):
                if found:
                    yield f"tensor {name!r} in {tensors[name].file} {found}"
    finally:
        progress.end()


def _digest(written: Evaluator, tensor: Copy, progress: Progress) -> str:
    digest = Digest()
    for chunk in written.chunks(tensor):
        digest.update(chunk.data)
        progress.advance(len(chunk.data))
    return digest.text()


def _first_difference(output: Source, ref: TensorRef, rederived: Evaluator, made_of: Expression) -> str | None:
    for chunk in rederived.chunks(made_of):
        found = bytearray(len(chunk.data))
        output.read_into(ref, chunk.offset, memoryview(found))
        differing = np.frombuffer(found, np.uint8) != np.frombuffer(chunk.data, np.uint8)
        if differing.any():
            return f"is not what its sources give from byte {chunk.offset + int(differing.argmax())} of it on"
    return None


@dataclass(frozen=True, slots=True)
class Diff:
    """How checkpoint b differs from a. Every name is in exactly one of the tuples."""

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    shapes: tuple[str, ...]
    dtypes: tuple[str, ...]
    bytes: tuple[str, ...]
    equal: tuple[str, ...]

    @property
    def differing(self) -> int:
        """How many tensors differ in any way."""
        return sum(map(len, (self.only_in_a, self.only_in_b, self.shapes, self.dtypes, self.bytes)))

    def to_json(self) -> dict[str, Any]:
        """Field by field."""
        return asdict(self)


def tensor_diff(a: Checkpoint, b: Checkpoint, source: Source, *, progress: Progress, workers: int) -> Diff:
    """Compare catalogues, then the bytes of what could be equal. `source` reads both."""
    both = {name: (x, b.tensors[name]) for name, x in a.tensors.items() if name in b.tensors}
    shapes = tuple(name for name, (x, y) in both.items() if x.shape != y.shape)
    dtypes = tuple(name for name, (x, y) in both.items() if x.shape == y.shape and x.dtype != y.dtype)
    comparable = {name: pair for name, pair in both.items() if name not in {*shapes, *dtypes}}

    def equal(pair: tuple[TensorRef, TensorRef]) -> bool:
        done = 0
        buffers = np.empty((2, min(CHUNK_BYTES, pair[0].size_bytes)), np.uint8)
        while done < pair[0].size_bytes:
            x, y = buffers[:, : pair[0].size_bytes - done]
            source.read_into(pair[0], done, x.data)
            source.read_into(pair[1], done, y.data)
            progress.advance(len(x))
            done += len(x)
            if not np.array_equal(x, y):
                progress.advance(pair[0].size_bytes - done)
                return False
        return True

    progress.begin(sum(x.size_bytes for x, _ in comparable.values()))
    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="lswap") as pool:
            found = dict(zip(comparable, pool.map(equal, comparable.values()), strict=True))
    finally:
        progress.end()
    return Diff(
        tuple(name for name in a.tensors if name not in both),
        tuple(name for name in b.tensors if name not in both),
        shapes,
        dtypes,
        tuple(name for name, same in found.items() if not same),
        tuple(name for name, same in found.items() if same),
    )
