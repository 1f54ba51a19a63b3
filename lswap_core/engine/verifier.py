"""Verifies an output against its manifest and, where available, against the sources; and compares two checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lswap_core.checkpoint.catalogue import Checkpoint, TensorRef
from lswap_core.engine.evaluate import CHUNK_BYTES, OPERAND_BYTES, Evaluator, element_ranges
from lswap_core.io.digests import Digest
from lswap_core.io.per_thread import Buffers
from lswap_core.io.ports import Kernels, Progress, Source, Tally
from lswap_core.io.threads import run_all
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import Manifest, TensorRecord
from lswap_core.recipe.draft import operand_of
from lswap_core.recipe.expressions import Copy, Operand


def differing_tensors(
    manifest: Manifest,
    output: Source,
    sources: Source | None,
    kernels: Kernels,
    *,
    files: frozenset[str],
    progress: Progress,
    workers: int,
) -> list[str]:
    """Return one sentence for every tensor of `files` that differs from the manifest or from what `sources` give.

    With sources, copied tensors are compared byte for byte; blended ones, and their statistics, are computed again. A tensor
    without a digest (it shares its source's extents) is read only with sources.
    """
    expected, buffers = Evaluator(sources or output, kernels), Buffers()

    def check(item: tuple[str, TensorRecord], tally: Tally) -> str | None:
        name, record = item
        written = TensorRef("math", record.file, record.dtype, record.shape, record.begin, record.end)
        digest, statistics, unlike = Digest(), DifferenceStats(), None
        for chunk in expected.chunks(record.made_of if sources else Copy(written)):
            data = chunk.data
            if sources:
                data = buffers.get("written", len(chunk.data), record.begin + chunk.offset)
                output.read_into(written, chunk.offset, data)
                if unlike is None and data != chunk.data:
                    unlike = chunk.offset + next(n for n, (x, y) in enumerate(zip(data, chunk.data, strict=True)) if x != y)
            digest.update(data)
            tally(len(data))
            statistics = chunk.statistics
        where = f"tensor {name!r} in {record.file}"
        if record.digest is not None and digest.text() != record.digest:
            return f"{where} has digest {digest.text()}, the manifest says {record.digest}"
        if unlike is not None:
            return f"{where} is not what its sources give from byte {unlike} of it on"
        if sources and record.statistics is not None and record.statistics.to_json() != statistics.to_json():
            return f"{where} has other statistics than the manifest says"
        return None

    tensors = [
        (name, record)
        for name, record in manifest.tensors.items()
        if record.file in files and (sources is not None or record.digest is not None)
    ]
    total_bytes = sum(record.end - record.begin for _, record in tensors)
    issues = run_all(check, tensors, total_bytes=total_bytes, progress=progress, workers=workers)
    return [issue for issue in issues if issue]


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
        """Number of tensors that differ in any way."""
        return sum(map(len, (self.only_in_a, self.only_in_b, self.shapes, self.dtypes, self.bytes)))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return asdict(self)


def tensor_diff(a: Checkpoint, b: Checkpoint, source: Source, kernels: Kernels, *, progress: Progress, workers: int) -> Diff:
    """Compare two checkpoints, adapters applied: first the catalogues, then the bytes of tensors that may be equal. `source`
    reads both.
    """
    import numpy as np  # imported here: a merge loads this module but does not need it

    both = {name: (operand_of(a, name), operand_of(b, name)) for name in a.tensors if name in b.tensors}
    evaluator = Evaluator(source, kernels)
    shapes = tuple(name for name, (x, y) in both.items() if x.shape != y.shape)
    dtypes = tuple(name for name, (x, y) in both.items() if x.shape == y.shape and x.dtype != y.dtype)
    comparable = {name: pair for name, pair in both.items() if name not in {*shapes, *dtypes}}

    def equal(pair: tuple[Operand, Operand], tally: Tally) -> bool:
        if all(isinstance(side, Copy) and side.cast is None for side in pair):
            return equal_bytes((pair[0].ref, pair[1].ref), tally)
        same = True
        for first, count in element_ranges(pair[0], OPERAND_BYTES):
            if same:
                same = evaluator.elements("x", pair[0], first, count) == evaluator.elements("y", pair[1], first, count)
            tally(count * pair[0].dtype.bits // 8)
        return same

    def equal_bytes(pair: tuple[TensorRef, TensorRef], tally: Tally) -> bool:
        buffers = np.empty((2, min(CHUNK_BYTES, pair[0].size_bytes)), np.uint8)
        same = True
        for done in range(0, pair[0].size_bytes, CHUNK_BYTES):
            x, y = buffers[:, : pair[0].size_bytes - done]
            if same:
                source.read_into(pair[0], done, x.data)
                source.read_into(pair[1], done, y.data)
                same = np.array_equal(x, y)
            tally(len(x))
        return same

    total_bytes = sum(x.ref.size_bytes * x.dtype.bits // x.ref.dtype.bits for x, _ in comparable.values())
    results = run_all(equal, list(comparable.values()), total_bytes=total_bytes, progress=progress, workers=workers)
    same_by_name = dict(zip(comparable, results, strict=True))
    return Diff(
        tuple(name for name in a.tensors if name not in both),
        tuple(name for name in b.tensors if name not in both),
        shapes,
        dtypes,
        tuple(name for name, same in same_by_name.items() if not same),
        tuple(name for name, same in same_by_name.items() if same),
    )
