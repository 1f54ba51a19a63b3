"""The small protocols between the executor and the world: where bytes come from, where they go, who computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lswap_core.checkpoint import TensorRef
from lswap_core.difference import DifferenceStats
from lswap_core.dtypes import DType
from lswap_core.plan import OutputFile, Step

Tally = Callable[[int], None]
"""Called with a number of bytes as they are done. It may raise to stop the work between two pieces."""


class Source(Protocol):
    """Bytes of the source tensors. Safe to use from several threads."""

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on. Raises StalePlanError where the file is no longer
        what was planned, OSError where it cannot be read; never returns short.
        """


class Sink(Protocol):
    """An output that is absent or complete. Safe to use from several threads between `create` and `publish`."""

    def create(self, files: tuple[OutputFile, ...]) -> None:
        """Make room for every file and write its header."""

    def copy(self, step: Step, source: Source, tally: Tally) -> str:
        """Bring a tensor over byte for byte; returns the digest of its bytes."""

    def write(self, step: Step, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` within the tensor."""

    def put(self, name: str, data: bytes) -> None:
        """Add a small file."""

    def publish(self) -> None:
        """Make everything durable, then visible under the final name."""

    def close(self) -> None:
        """Remove what is unpublished."""


class Kernels(Protocol):
    """The arithmetic; `lswap_core.kernels` is one."""

    def blend_stats(
        self, x: memoryview, y: memoryview, weight: float, *, dtype: DType, out: memoryview, before: DifferenceStats = ...
    ) -> DifferenceStats:
        """Blend one chunk into `out`; returns `before` with the chunk's statistics added."""

    def cast(self, x: memoryview, *, dtype: DType, out: memoryview, to: DType) -> None:
        """Round one chunk from `dtype` to `to`."""


class Progress(Protocol):
    """Told how many bytes of the output are done."""

    def begin(self, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None: ...

    def end(self) -> None: ...
