"""Evaluates an expression to bytes, chunk by chunk, with a source and the kernels. Writing and verifying both use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from threading import local
from typing import Any

from lswap_core.checkpoint.catalogue import TensorRef
from lswap_core.io.per_thread import Buffers
from lswap_core.io.ports import Kernels, Source, Tally
from lswap_core.kernels.backend import FileRange
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.recipe.expressions import Adapted, Average, Blend, Copy, Expression, Operand, TaskVectors

CHUNK_BYTES = 256 * 1024
"""Bytes of one copied piece. Buffers that stay in the L2 cache are fastest: a 2.5 GB copy took 1.9 s in pieces of 128 KiB,
2.0 s in 512 KiB, 6.2 s in 8 MiB (2 cores, 512 KiB of L2 each)."""
OPERAND_BYTES = 1024 * 1024
"""Bytes of one operand of a blend or a cast. A power of two is a whole number of the kernels' blocks, so statistics do not
depend on where chunks end. It is large enough that calling the kernels (20 us) does not matter. One thread
read, blended, digested and wrote two 0.5 GB operands from the page cache: in 0.65 s with 256 KiB, 0.54 s with 512 KiB, 0.44 s
with 1 MiB, 0.57 s with 2 MiB (AMD Milan, 2 cores, 512 KiB of L2 each; medians). Operands are read into buffers, not mapped.
Mapped and populated ones took 0.38 s, but if a file is truncated between MADV_POPULATE_READ and the blend, a signal kills the
process, where a read raises an error."""
COMPARED_BYTES = 2 * 1024 * 1024
"""Bytes of one operand that are compared at once where the operand passes through a buffer: a power of two, so a whole number
of the kernels' blocks. Nothing is written, so larger pieces than a blend's are faster. Two operands of 2.5 GB in the page
cache took 1.3 to 2.3 s of processor time in pieces of 128 KiB; 1.0 to 1.3 s in 512 KiB; 0.88 to 1.2 s in 1 MiB; 0.84 to 1.1 s
in 2 MiB (AMD Milan, 2 busy cores, 512 KiB of L2 each)."""
COMPARED_FILE_BYTES = 32 * 1024 * 1024
"""The same where the kernels read the files. Progress and interruptions are handled between two calls. A thread that returns
from a call may wait 5 ms for another that is loading modules, so calls are long: analysing two experts of 2.5 GB took 0.78 s
in pieces of 8 MiB, 0.73 in 32, 0.75 in 128 (AMD Milan, 2 cores; least of 9)."""
SCRATCH_BYTES = 128 * 1024
"""Bytes of one operand that the kernels read at once. Two of 2.5 GB in the page cache took 0.94 s of processor time in pieces
of 32 KiB; 0.76 s in 64 KiB; 0.70 to 0.75 s from 128 KiB to 2 MiB (AMD Milan, 2 busy cores, 512 KiB of L2 each; least of 3)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a tensor: its bytes from `offset` on, and the statistics so far. Valid until the next piece is requested."""

    offset: int
    data: memoryview
    statistics: DifferenceStats


class Evaluator:
    """Evaluates expressions. Safe to use from several threads: each has its own buffers, which it reuses."""

    def __init__(self, source: Source, kernels: Kernels) -> None:
        self._source = source
        self._kernels = kernels
        self._buffers = Buffers()
        self._factors_kept = local()

    def chunks(self, made_of: Expression) -> Generator[Chunk, None, None]:
        """Yield the tensor's bytes from first to last."""
        if isinstance(made_of, Blend):
            return self._blended(made_of)
        if isinstance(made_of, Average):
            return self._averaged(made_of)
        if isinstance(made_of, TaskVectors):
            return self._added(made_of)
        return self._plain(made_of) if isinstance(made_of, Copy) and made_of.cast is None else self._operands(made_of)

    def compare(
        self,
        operands: Sequence[Operand],
        pairs: Sequence[tuple[int, int]],
        tally: Tally,
        *,
        seen: Callable[[int, Sequence[memoryview]], None] | None = None,
    ) -> list[DifferenceStats]:
        """Compare pairs of operands, all of one dtype and shape. Returns one DifferenceStats per pair. Reads each operand
        once.

        pairs: indices into `operands`, of x and y. tally: called with the number of bytes of one operand that are done. seen:
        called for each chunk with the index of its first element and the elements of every operand.
        """
        dtype = operands[0].dtype
        statistics = [DifferenceStats()] * len(pairs)
        ranges = self._in_files(operands) if seen is None else None
        for first, count in element_ranges(operands[0], COMPARED_BYTES if ranges is None else COMPARED_FILE_BYTES):
            if ranges is None:
                data = [self.elements(str(number), operand, first, count) for number, operand in enumerate(operands)]
                statistics = [
                    self._kernels.stats(data[x], data[y], dtype=dtype, before=earlier)
                    for (x, y), earlier in zip(pairs, statistics, strict=True)
                ]
                if seen is not None:
                    seen(first, data)
            else:
                at = first * dtype.bits // 8
                chunk = [each._replace(begin=each.begin + at) for each in ranges]
                scratch = self._buffers.get("scratch", len(ranges) * SCRATCH_BYTES)
                statistics = self._kernels.stats_of_files(chunk, pairs, count, dtype=dtype, before=statistics, scratch=scratch)
            tally(count * dtype.bits // 8)
        return statistics

    def _in_files(self, operands: Sequence[Operand]) -> list[FileRange] | None:
        """The operands as ranges of open files. None where one is cast or adapted, or this thread cannot have all files open
        at once.
        """
        refs = [operand.ref for operand in operands if isinstance(operand, Copy) and operand.cast is None]
        if len({ref.role for ref in refs}) < len(operands):
            return None
        ranges = []
        for ref in refs:
            descriptor = self._source.descriptor(ref.role, ref.file)
            if descriptor is None:
                return None
            ranges.append(FileRange(descriptor, ref.begin, self._source.path_of(ref.role, ref.file)))
        return ranges

    def _plain(self, copy: Copy) -> Generator[Chunk, None, None]:
        for begin in range(0, copy.ref.size_bytes, CHUNK_BYTES):
            data = self._buffers.get("out", min(CHUNK_BYTES, copy.ref.size_bytes - begin), copy.ref.begin + begin)
            self._source.read_into(copy.ref, begin, data)
            yield Chunk(begin, data, DifferenceStats())

    def _operands(self, operand: Operand) -> Generator[Chunk, None, None]:
        for first, count in element_ranges(operand, OPERAND_BYTES):
            data = self.elements("x", operand, first, count)
            yield Chunk(first * operand.dtype.bits // 8, data, DifferenceStats())

    def _blended(self, blend: Blend) -> Generator[Chunk, None, None]:
        dtype = blend.dtype
        statistics = DifferenceStats()
        for first, count in element_ranges(blend.x, OPERAND_BYTES):
            x = self.elements("x", blend.x, first, count)
            y = self.elements("y", blend.y, first, count)
            out = self._buffers.get("out", len(x), blend.x.ref.begin + first * dtype.bits // 8)  # offset in math's file
            statistics = self._kernels.blend_stats(x, y, blend.weight, dtype=dtype, out=out, before=statistics)
            yield Chunk(first * dtype.bits // 8, out, statistics)

    def _averaged(self, made_of: Average) -> Generator[Chunk, None, None]:
        dtype, first_operand = made_of.dtype, made_of.operands[0]
        # For up to 32 operands, the pieces of all operands together have the size of a blend's two; each has at least 64
        # KiB.
        piece_bytes = max(OPERAND_BYTES // 16, OPERAND_BYTES * 2 // (1 << (len(made_of.operands) - 1).bit_length()))
        for first, count in element_ranges(first_operand, piece_bytes):
            sides = [self.elements(f"expert {k}", operand, first, count) for k, operand in enumerate(made_of.operands)]
            out = self._buffers.get("out", len(sides[0]), first_operand.ref.begin + first * dtype.bits // 8)
            self._kernels.blend_many(sides, made_of.weights, dtype=dtype, out=out)
            yield Chunk(first * dtype.bits // 8, out, DifferenceStats())

    def _added(self, made_of: TaskVectors) -> Generator[Chunk, None, None]:
        dtype = made_of.dtype
        thresholds = [self._threshold(made_of, expert) for expert in made_of.experts] if made_of.density is not None else None
        for first, count in element_ranges(made_of.base, OPERAND_BYTES):
            base = self.elements("x", made_of.base, first, count)
            experts = [self.elements(f"expert {k}", expert, first, count) for k, expert in enumerate(made_of.experts)]
            out = self._buffers.get("out", len(base), made_of.base.ref.begin + first * dtype.bits // 8)
            if thresholds is None:
                self._kernels.add_task_vectors(base, experts, made_of.scales, dtype=dtype, out=out)
            else:
                self._kernels.merge_ties(base, experts, thresholds, made_of.scales, made_of.strength, dtype=dtype, out=out)
            yield Chunk(first * dtype.bits // 8, out, DifferenceStats())

    def _threshold(self, made_of: TaskVectors, expert: Operand) -> int:
        """The magnitude, as bits, that the largest changes of an expert reach. Reads base and expert once for each of the
        kernel's passes.
        """
        keep = int((made_of.density or 0) * math.prod(made_of.shape))
        largest = self._kernels.Largest(keep, made_of.dtype)
        for _ in range(largest.passes):
            for first, count in element_ranges(made_of.base, OPERAND_BYTES):
                base = self.elements("x", made_of.base, first, count)
                largest.see(base, self.elements("y", expert, first, count))
            largest.end_round()
        return largest.threshold

    def elements(self, side: str, operand: Operand, first: int, count: int) -> memoryview:
        """Elements [first, first + count) in the dtype in which they are used. Valid until the next call for the same `side`."""
        kept = operand.ref.dtype
        at = first * kept.bits // 8
        data = self._buffers.get(f"{side} read", count * kept.bits // 8, operand.ref.begin + at)
        self._source.read_into(operand.ref, at, data)
        if isinstance(operand, Copy) and operand.cast is None:
            return data
        rounded = self._buffers.get(f"{side} rounded", count * operand.dtype.bits // 8)
        if isinstance(operand, Adapted):
            left, right = self._factors(side, operand)
            to = operand.dtype
            self._kernels.add_low_rank(data, left, right, operand.scale, first=first, dtype=kept, out=rounded, to=to)
        else:
            self._kernels.cast(data, dtype=kept, out=rounded, to=operand.dtype)
        return rounded

    def _factors(self, side: str, operand: Adapted) -> tuple[Any, Any]:
        """Both factors of a low-rank change in fp32, (rows, rank) and (rank, columns), row-major. The last factors of each
        side are cached.
        """
        kept: tuple[Adapted, tuple[Any, Any]] | None = self._factors_kept.__dict__.get(side)
        if kept is None or kept[0] != operand:
            a, b = (self._matrix(ref) for ref in (operand.a, operand.b))
            kept = self._factors_kept.__dict__[side] = (operand, (a.T.copy(), b.T.copy()) if operand.transposed else (b, a))
        return kept[1]

    def _matrix(self, ref: TensorRef) -> Any:
        data = memoryview(bytearray(ref.size_bytes))
        self._source.read_into(ref, 0, data)
        return self._kernels.to_fp32(data, ref.dtype).reshape(ref.shape)


def element_ranges(copy: Operand, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the first element and the number of elements of each piece of a tensor. No piece has more than `most_bytes`."""
    width = copy.ref.dtype.bits // 8
    total, most = copy.ref.size_bytes // width, most_bytes // width
    for first in range(0, total, most):
        yield first, min(most, total - first)
