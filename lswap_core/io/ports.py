"""The small protocols between the executor and the world: where bytes come from, where they go, who computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from lswap_core.checkpoint.catalogue import Role, TensorRef
from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import FileRange
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import Run

Tally = Callable[[int], None]
"""Called with a number of bytes as they are done. It may raise to stop the work between two pieces."""


class Source(Protocol):
    """Bytes of the source tensors. Safe to use from several threads."""

    def arrange(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Runs, given in the output's order, in the order in which they are best begun."""

    def expect(self, order: Sequence[Run]) -> None:
        """Told what will be read, in the order in which it will be begun. Nothing that was not told of is refused."""

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the file's bytes from `offset` after the tensor's first on. Raises StalePlanError where the
        file is no longer what was planned, OSError where it cannot be read; never returns short.
        """

    def descriptor(self, role: Role, file: str) -> int | None:
        """A file descriptor that the kernel can copy from, valid for this thread until it asks for another file of that
        role; None where there is no such thing. Raises as `read_into`.
        """

    def path_of(self, role: Role, file: str) -> str:
        """Where the file is, for messages and links."""

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        """Raise StalePlanError where a file that this thread has just read, of one of `refs`, is no longer what was planned."""


class Writer(Protocol):
    """What is written to. Safe to use from several threads between `begin` and what ends it."""

    @property
    def in_order(self) -> bool:
        """Runs are wanted in the output's order, whatever the source would like."""

    @property
    def most_workers(self) -> int | None:
        """How many threads may do runs at a time; None for any number."""

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """Make every output file, as far as that goes without moving bytes, and go on from what an earlier run of the same
        plan has finished; returns the records of the steps that are done.
        """

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """Bring the tensors of a copied run over byte for byte."""

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` within a computed run."""

    def finish(self, run: Run, records: list[StepRecord]) -> None:
        """Take note that a run is done."""


class Sink(Writer, Protocol):
    """An output that is absent or complete."""

    def put(self, name: str, data: bytes) -> None:
        """Add a small file."""

    def publish(self) -> None:
        """Make everything durable, then visible under the final name."""

    def close(self) -> None:
        """Remove what is unpublished, unless it is worth going on from."""


class Output(Protocol):
    """Shards that are done, to which the rest is added."""

    @property
    def shard_sha256(self) -> Mapping[str, str]:
        """Of whole shards, by name, as far as they were taken."""

    def hash_shard(self, name: str) -> None:
        """Take the SHA-256 of a whole shard, unless that was done."""

    def put(self, name: str, data: bytes) -> None:
        """Add a small file."""

    def publish(self) -> None:
        """Make everything durable, then visible under the final name."""


class Kernels(Protocol):
    """The arithmetic; `lswap_core.kernels` is one, and says what each does."""

    def blend_stats(
        self, x: memoryview, y: memoryview, weight: float, *, dtype: DType, out: memoryview, before: DifferenceStats = ...
    ) -> DifferenceStats:
        """Blend one chunk into `out`; returns `before` with the chunk's statistics added."""

    def stats(self, x: memoryview, y: memoryview, *, dtype: DType, before: DifferenceStats = ...) -> DifferenceStats:
        """`before` with the statistics of one chunk added."""

    def stats_of_files(
        self,
        ranges: Sequence[FileRange],
        pairs: Sequence[tuple[int, int]],
        count: int,
        *,
        dtype: DType,
        before: Sequence[DifferenceStats],
        scratch: memoryview,
    ) -> list[DifferenceStats]:
        """`before`, one for each pair of ranges, with the statistics of one chunk added; the files are read for it."""

    def blend_many(self, inputs: Sequence[memoryview], weights: Sequence[float], *, dtype: DType, out: memoryview) -> None:
        """The weighted average of one chunk of each input, into `out`."""

    def cast(self, x: memoryview, *, dtype: DType, out: memoryview, to: DType) -> None:
        """Round one chunk from `dtype` to `to`."""

    def add_task_vectors(
        self, base: memoryview, experts: Sequence[memoryview], scales: Sequence[float], *, dtype: DType, out: memoryview
    ) -> None: ...

    def Largest(self, keep: int, dtype: DType) -> Threshold: ...  # noqa: N802 - a class where it is implemented

    def merge_ties(
        self,
        base: memoryview,
        experts: Sequence[memoryview],
        thresholds: Sequence[int],
        scales: Sequence[float],
        strength: float,
        *,
        dtype: DType,
        out: memoryview,
    ) -> None: ...

    def to_fp32(self, data: memoryview, dtype: DType) -> Any: ...

    def add_low_rank(
        self, x: memoryview, left: Any, right: Any, scale: float, *, first: int, dtype: DType, out: memoryview, to: DType
    ) -> None: ...


class Threshold(Protocol):
    """See `lswap_core.kernels.task_vectors.Largest`."""

    passes: int

    @property
    def threshold(self) -> int: ...

    def see(self, base: memoryview, expert: memoryview) -> None: ...

    def end_round(self) -> None: ...


class Progress(Protocol):
    """Told how many bytes of the output are done."""

    def begin(self, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None: ...

    def end(self) -> None: ...


class Silence:
    """Progress that nobody watches."""

    def begin(self, total_bytes: int) -> None:
        """See `Progress`."""

    def advance(self, done_bytes: int) -> None:
        """See `Progress`."""

    def end(self) -> None:
        """See `Progress`."""
