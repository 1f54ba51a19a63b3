"""The bytes of an expression, chunk by chunk, from a source and the kernels: what writing and verifying share."""

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
"""Bytes of one copied piece. Buffers that stay in the L2 cache win: a 2.5 GB copy took 1.9 s in pieces of 128 KiB, 2.0 s
in 512 KiB, 6.2 s in 8 MiB (2 cores, 512 KiB of L2 each)."""
OPERAND_BYTES = 1024 * 1024
"""Bytes of one operand of a blend or a cast: a power of two, so whole blocks of the kernels, and statistics do not depend
on where chunks end. Large enough that calling the kernels (20 us) does not show: of two 0.5 GB operands in the page
cache, read, blended, digested and written by one thread, 256 KiB took 0.65 s, 512 KiB 0.54 s, 1 MiB 0.44 s, 2 MiB 0.57 s
(AMD Milan, 2 cores, 512 KiB of L2 each; medians). Operands are read into buffers, not mapped: mapped and populated ones
took 0.38 s, but a file that is truncated between MADV_POPULATE_READ and the blend kills the process, and reading it only
raises."""
COMPARED_BYTES = 2 * 1024 * 1024
"""Bytes of one operand that are compared together where they come through a buffer of their own: a power of two, so whole
blocks of the kernels. With nothing to write, larger ones than a blend's pay: two operands of 2.5 GB in the page cache took 1.3 to
2.3 s of processor time in pieces of 128 KiB, 1.0 to 1.3 s in 512 KiB, 0.88 to 1.2 s in 1 MiB, 0.84 to 1.1 s in 2 MiB (AMD
Milan, 2 busy cores, 512 KiB of L2 each)."""
COMPARED_FILE_BYTES = 32 * 1024 * 1024
"""The same where the kernels read the files: between two calls, progress is told and an interruption noticed. A thread that comes
back from a call may wait 5 ms for another that is loading modules, so calls are long: analysing two experts of 2.5 GB took
0.78 s in pieces of 8 MiB, 0.73 in 32, 0.75 in 128 (AMD Milan, 2 cores; least of 9)."""
SCRATCH_BYTES = 128 * 1024
"""Bytes of one operand that the kernels read at a time. Two of 2.5 GB in the page cache took 0.94 s of processor time in pieces
of 32 KiB, 0.76 s in 64 KiB, 0.70 to 0.75 s from 128 KiB to 2 MiB (AMD Milan, 2 busy cores, 512 KiB of L2 each; least of 3)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a tensor: bytes from `offset` on, valid until the next one is asked for, and the statistics so far."""

    offset: int
    data: memoryview
    statistics: DifferenceStats


class Evaluator:
    """Evaluates expressions; may be used from several threads, each has buffers of its own that are reused."""

    def __init__(self, source: Source, kernels: Kernels) -> None:
        self._source = source
        self._kernels = kernels
        self._buffers = Buffers()
        self._factors_kept = local()

    def chunks(self, made_of: Expression) -> Generator[Chunk, None, None]:
        """The tensor's bytes from first to last."""
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
        """How pairs of operands, all of one dtype and shape, differ; each operand is read once.

        pairs: numbers of operands, x and y. tally: called with the bytes of one operand as they are done. seen: called with
        the number of the first element, and the elements of every operand, chunk by chunk.
        """
        dtype = operands[0].dtype
        found = [DifferenceStats()] * len(pairs)
        ranges = self._in_files(operands) if seen is None else None
        for first, count in element_ranges(operands[0], COMPARED_BYTES if ranges is None else COMPARED_FILE_BYTES):
            if ranges is None:
                data = [self.elements(str(number), operand, first, count) for number, operand in enumerate(operands)]
                found = [
                    self._kernels.stats(data[x], data[y], dtype=dtype, before=earlier)
                    for (x, y), earlier in zip(pairs, found, strict=True)
                ]
                if seen is not None:
                    seen(first, data)
            else:
                at = first * dtype.bits // 8
                chunk = [each._replace(begin=each.begin + at) for each in ranges]
                scratch = self._buffers.get("scratch", len(ranges) * SCRATCH_BYTES)
                found = self._kernels.stats_of_files(chunk, pairs, count, dtype=dtype, before=found, scratch=scratch)
            tally(count * dtype.bits // 8)
        return found

    def _in_files(self, operands: Sequence[Operand]) -> list[FileRange] | None:
        """Where the operands' bytes lie, if each is used as it is in a file that this thread can have open with the others."""
        refs = [operand.ref for operand in operands if isinstance(operand, Copy) and operand.cast is None]
        if len({ref.role for ref in refs}) < len(operands):
            return None
        found = []
        for ref in refs:
            descriptor = self._source.descriptor(ref.role, ref.file)
            if descriptor is None:
                return None
            found.append(FileRange(descriptor, ref.begin, self._source.path_of(ref.role, ref.file)))
        return found

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
            out = self._buffers.get("out", len(x), blend.x.ref.begin + first * dtype.bits // 8)  # where math has it
            statistics = self._kernels.blend_stats(x, y, blend.weight, dtype=dtype, out=out, before=statistics)
            yield Chunk(first * dtype.bits // 8, out, statistics)

    def _averaged(self, made_of: Average) -> Generator[Chunk, None, None]:
        dtype, first_operand = made_of.dtype, made_of.operands[0]
        # All operands of a piece together take what two of a blend do, for up to 32: then each still has 64 KiB.
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
        """What magnitude the largest changes of an expert reach; takes as many passes over both as the kernel asks for."""
        keep = int((made_of.density or 0) * math.prod(made_of.shape))
        largest = self._kernels.Largest(keep, made_of.dtype)
        for _ in range(largest.passes):
            for first, count in element_ranges(made_of.base, OPERAND_BYTES):
                base = self.elements("x", made_of.base, first, count)
                largest.see(base, self.elements("y", expert, first, count))
            largest.end_round()
        return largest.threshold

    def elements(self, side: str, operand: Operand, first: int, count: int) -> memoryview:
        """Elements [first, first + count) in the dtype that they are used in, valid until the next that are asked for on
        that side.
        """
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
        """Both factors of a low-rank change in fp32, as (rows, rank) and (rank, columns), each in the order of its rows; the last
        ones of a side are kept.
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
    """First element and number of elements of each piece of a tensor, of which none has more than `most_bytes`."""
    width = copy.ref.dtype.bits // 8
    total, most = copy.ref.size_bytes // width, most_bytes // width
    for first in range(0, total, most):
        yield first, min(most, total - first)
