"""The protocols between the executor and the outside: sources, sinks, kernels, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from lswap_core.checkpoint.catalogue import Role, TensorRef
from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.backend import FileRange
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan, Step
from lswap_core.plan.runs import Run

Tally = Callable[[int], None]
"""Called with a number of bytes as they are done. It may raise, to stop the work between two pieces."""


class Source(Protocol):
    """Reads the bytes of the source tensors. Safe to use from several threads."""

    def arrange(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Return the runs, given in the output's order, in the order in which this source prefers to begin them."""

    def expect(self, order: Sequence[Run]) -> None:
        """Announce which runs will be read, in the order in which they will begin. Other reads stay allowed."""

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on; never returns short.

        Raises StalePlanError where the file is no longer what was planned, and OSError where it cannot be read.
        """

    def descriptor(self, role: Role, file: str) -> int | None:
        """Return a file descriptor that the kernel can copy from, or None where this source has none.

        It is valid for this thread until it requests another file of the same role. Raises as `read_into`.
        """

    def path_of(self, role: Role, file: str) -> str:
        """The path of the file, for messages and links."""

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        """Raises StalePlanError where a file of `refs`, which this thread has just read, is no longer what was planned."""


class Writer(Protocol):
    """What the executor writes to. Safe to use from several threads after `begin`, until it is published or closed."""

    @property
    def in_order(self) -> bool:
        """Whether runs must begin in the output's order, whatever order the source prefers."""

    @property
    def most_workers(self) -> int | None:
        """The number of threads that may do runs at the same time, None for any number."""

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """Create every output file, as far as that needs no moving of bytes, and resume an earlier run of the same plan.

        Returns the records of the steps that are already done, by name.
        """

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """Copy the tensors of a copied run byte for byte. Returns their records."""

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` within a computed run."""

    def finish(self, run: Run, records: list[StepRecord]) -> None:
        """Record that a run is done."""


class Output(Protocol):
    """Finished shards, to which the small files are added before publication."""

    @property
    def shard_sha256(self) -> Mapping[str, str]:
        """SHA-256 of whole shards by name, where one was taken."""

    def hash_shard(self, name: str) -> None:
        """Take the SHA-256 of a whole shard, unless it is known."""

    def put(self, name: str, data: bytes) -> None:
        """Add a small file. Raises RecipeError where another file of the output has that name."""

    def publish(self) -> None:
        """Make everything durable, then visible under the final name."""


class Sink(Writer, Output, Protocol):
    """An output of one process, which is either absent or complete."""

    def close(self) -> None:
        """Remove what is unpublished, unless a later run can resume from it."""

    @property
    def kept(self) -> bool:
        """Whether unpublished work stays, so that the same command can resume."""

    @property
    def partial(self) -> object:
        """Where unpublished work is: a path or a URL."""


class PartSink(Writer, Protocol):
    """One part of an output that several processes write."""

    @property
    def steps(self) -> Sequence[Step]:
        """The steps of this part, in the plan's order."""

    @property
    def is_done(self) -> bool:
        """Whether any process has done the part."""

    def seal(self, records: list[StepRecord]) -> None:
        """Make the part durable and record that it is done."""

    def close(self) -> None:
        """Close what is open."""


class FinishedParts(Output, Protocol):
    """All parts of an output, done and to be published."""

    @property
    def records(self) -> Sequence[StepRecord]:
        """Records of every step, in the plan's order."""

    @property
    def digest(self) -> str:
        """The kind of digests of the parts."""


class Kernels(Protocol):
    """The arithmetic. `lswap_core.kernels` implements it and documents each function."""

    def blend_stats(
        self, x: memoryview, y: memoryview, weight: float, *, dtype: DType, out: memoryview, before: DifferenceStats = ...
    ) -> DifferenceStats:
        """Blend one chunk into `out`. Returns `before` with the chunk's statistics added."""

    def stats(self, x: memoryview, y: memoryview, *, dtype: DType, before: DifferenceStats = ...) -> DifferenceStats:
        """Return `before` with the statistics of one chunk added."""

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
        """Read one chunk from the files. Returns `before`, one for each pair of ranges, with the chunk's statistics added."""

    def blend_many(self, inputs: Sequence[memoryview], weights: Sequence[float], *, dtype: DType, out: memoryview) -> None:
        """Write the weighted average of one chunk of each input to `out`."""

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
    """Receives the number of output bytes that are done."""

    def begin(self, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None: ...

    def end(self) -> None: ...


class Silence:
    """A Progress that shows nothing."""

    def begin(self, total_bytes: int) -> None:
        """See `Progress`."""

    def advance(self, done_bytes: int) -> None:
        """See `Progress`."""

    def end(self) -> None:
        """See `Progress`."""
