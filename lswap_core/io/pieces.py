"""A copied run on its way through memory: read piece by piece, and digested while a piece is in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lswap_core.io.digests import RunDigests
from lswap_core.io.ports import Source, Tally
from lswap_core.options import DigestKind
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.runs import Run

Memory = Callable[[int, int], memoryview]
"""Memory for a piece, by its offset in the run and its size in bytes."""


class Pieces:
    """The bytes of one run. Every byte is either read or skipped, from the first to the last."""

    def __init__(self, run: Run, source: Source, tally: Tally, digest: DigestKind) -> None:
        """tally: is called with the number of bytes that are done. digest: `none` takes no digests."""
        self._run, self._source, self._tally = run, source, tally
        self._digests = None if digest == "none" else RunDigests(run.steps)

    @property
    def digested(self) -> bool:
        """Whether digests are taken of the bytes that are read."""
        return self._digests is not None

    def read(self, begin: int, end: int, piece_bytes: int, memory: Memory) -> Iterator[tuple[int, memoryview]]:
        """Bytes [begin, end) of the run, as offsets and pieces of at most `piece_bytes`.

        A piece is valid until the next one is asked for, and counts as done then.
        """
        for offset in range(begin, end, piece_bytes):
            piece = memory(offset, min(piece_bytes, end - offset))
            self._source.read_into(self._run.source, offset, piece)
            if self._digests is not None:
                self._digests.feed(self._run.begin + offset, piece)
            yield offset, piece
            self._tally(len(piece))

    def skip(self, count: int) -> None:
        """Count bytes as done that did not pass through memory. Tensors that they belong to have no digest."""
        self._tally(count)

    def records(self) -> list[StepRecord]:
        """The records of the run's steps, once all bytes are done."""
        if self._digests is None:
            return [StepRecord(step.name, None) for step in self._run.steps]
        return self._digests.records()
