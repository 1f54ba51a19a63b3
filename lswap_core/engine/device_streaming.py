"""Streams blends through a device: while one piece is blended, the next is uploaded and the one before downloaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from queue import Empty, LifoQueue
from typing import Protocol

from lswap_core.checkpoint.dtypes import DType
from lswap_core.engine.evaluate import OPERAND_BYTES, Chunk, Evaluator, element_ranges
from lswap_core.io.ports import Kernels, Source
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.recipe.expressions import Blend, Copy, Operand


class Slot(Protocol):
    """Memory for one piece, in the host and on the device. The three buffers have one size, a multiple of 1,024 elements."""

    @property
    def x(self) -> memoryview: ...

    @property
    def y(self) -> memoryview: ...

    @property
    def out(self) -> memoryview: ...

    def submit(self, size_bytes: int, weight: float, dtype: DType, before: object | None) -> object:
        """Begin to blend the first `size_bytes` of x and y into out, without waiting.

        before: the result of the call for the tensor's previous piece, in whichever slot; None for the first piece. This
        piece adds to its statistics.
        """

    def wait(self) -> DifferenceStats:
        """Wait until out is complete. Returns the statistics up to and including this piece."""


@dataclass(frozen=True, slots=True)
class _Piece:
    slot: Slot
    offset: int
    size_bytes: int


class StreamingEvaluator(Evaluator):
    """Evaluates blends of two operands in slots, which all threads share, and everything else on the CPU.

    A thread waits for a slot only while it holds none, so any number of threads can share any number of slots.
    """

    def __init__(self, source: Source, kernels: Kernels, slots: Sequence[Slot]) -> None:
        super().__init__(source, kernels)
        self._piece_bytes = len(slots[0].x)
        self._free: LifoQueue[Slot] = LifoQueue()
        for slot in slots:
            self._free.put(slot)

    def _blended(self, blend: Blend) -> Generator[Chunk, None, None]:
        dtype = blend.dtype
        width = dtype.bits // 8
        under_way: deque[_Piece] = deque()
        before: object | None = None
        try:
            for first, count in element_ranges(blend.x, self._piece_bytes * blend.x.ref.dtype.bits // dtype.bits):
                while (slot := self._free_slot(wait=not under_way)) is None:
                    yield from self._finished(under_way)
                size = count * width
                under_way.append(_Piece(slot, first * width, size))
                self._fill("x", blend.x, first, count, slot.x[:size])
                self._fill("y", blend.y, first, count, slot.y[:size])
                before = slot.submit(size, blend.weight, dtype, before)
            while under_way:
                yield from self._finished(under_way)
        finally:
            for piece in under_way:
                piece.slot.wait()
                self._free.put(piece.slot)

    def _free_slot(self, *, wait: bool) -> Slot | None:
        try:
            return self._free.get(block=wait)
        except Empty:
            return None

    def _finished(self, under_way: deque[_Piece]) -> Generator[Chunk, None, None]:
        piece = under_way[0]
        statistics = piece.slot.wait()
        yield Chunk(piece.offset, piece.slot.out[: piece.size_bytes], statistics)
        under_way.popleft()
        self._free.put(piece.slot)

    def _fill(self, side: str, copy: Operand, first: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements [first, first + count), in the dtype in which they are used."""
        if isinstance(copy, Copy) and copy.cast is None:
            self._source.read_into(copy.ref, first * copy.ref.dtype.bits // 8, into)
            return
        width, most = copy.dtype.bits // 8, OPERAND_BYTES * 8 // copy.ref.dtype.bits
        for begin in range(0, count, most):
            piece = self.elements(side, copy, first + begin, min(most, count - begin))
            into[begin * width : begin * width + len(piece)] = piece
