"""The bytes of an expression, chunk by chunk, from a source and the kernels: what writing and verifying share."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from threading import local

from lswap_core.difference import DifferenceStats
from lswap_core.draft import Blend, Copy, Expression
from lswap_core.dtypes import DType
from lswap_core.ports import Kernels, Source

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
        self._buffers = local()

    def chunks(self, made_of: Expression) -> Generator[Chunk, None, None]:
        """The tensor's bytes from first to last."""
        if isinstance(made_of, Blend):
            return self._blended(made_of)
        return self._plain(made_of) if made_of.cast is None else self._rounded(made_of, made_of.cast)

    def _plain(self, copy: Copy) -> Generator[Chunk, None, None]:
        for begin in range(0, copy.ref.size_bytes, CHUNK_BYTES):
            data = self._buffer("out", min(CHUNK_BYTES, copy.ref.size_bytes - begin))
            self._source.read_into(copy.ref, begin, data)
            yield Chunk(begin, data, DifferenceStats())

    def _rounded(self, copy: Copy, dtype: DType) -> Generator[Chunk, None, None]:
        for first, count in element_ranges(copy, OPERAND_BYTES):
            yield Chunk(first * dtype.bits // 8, self._operand("x", copy, first, count), DifferenceStats())

    def _blended(self, blend: Blend) -> Generator[Chunk, None, None]:
        dtype = blend.dtype
        statistics = DifferenceStats()
        for first, count in element_ranges(blend.x, OPERAND_BYTES):
            x = self._operand("x", blend.x, first, count)
            y = self._operand("y", blend.y, first, count)
            out = self._buffer("out", len(x))
            statistics = self._kernels.blend_stats(x, y, blend.weight, dtype=dtype, out=out, before=statistics)
            yield Chunk(first * dtype.bits // 8, out, statistics)

    def _operand(self, side: str, copy: Copy, first: int, count: int) -> memoryview:
        """Elements [first, first + count) in the dtype that they are used in."""
        width = copy.ref.dtype.bits // 8
        data = self._buffer(f"{side} read", count * width)
        self._source.read_into(copy.ref, first * width, data)
        if copy.cast is None:
            return data
        rounded = self._buffer(f"{side} rounded", count * copy.cast.bits // 8)
        self._kernels.cast(data, dtype=copy.ref.dtype, out=rounded, to=copy.cast)
        return rounded

    def _buffer(self, use: str, size: int) -> memoryview:
        kept: bytearray = self._buffers.__dict__.setdefault(use, bytearray())
        if len(kept) < size:
            kept = self._buffers.__dict__[use] = bytearray(size)
        return memoryview(kept)[:size]


def element_ranges(copy: Copy, most_bytes: int) -> Iterator[tuple[int, int]]:
    """First element and number of elements of each piece of a tensor, of which none has more than `most_bytes`."""
    width = copy.ref.dtype.bits // 8
    total, most = copy.ref.size_bytes // width, most_bytes // width
    for first in range(0, total, most):
        yield first, min(most, total - first)
