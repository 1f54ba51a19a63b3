"""Plan + Source + Sink + Evaluator -> the records of what was done. Knows no paths, and no devices."""

from __future__ import annotations

from contextlib import closing
from functools import partial

from lswap_core.difference import DifferenceStats
from lswap_core.digests import Digest
from lswap_core.draft import Blend, Copy
from lswap_core.evaluate import Evaluator
from lswap_core.manifest import StepRecord
from lswap_core.parallel import run_all
from lswap_core.plan import Plan, Step
from lswap_core.ports import Progress, Sink, Source, Tally


def run(plan: Plan, source: Source, sink: Sink, evaluator: Evaluator, *, progress: Progress, workers: int) -> list[StepRecord]:
    """Execute every step and return the records in the plan's order. Publishing is the caller's.

    The bytes depend neither on `workers` nor on the order in which steps end. Raises what source and sink raise.
    """
    sink.create(plan.files)
    work = partial(perform, source=source, sink=sink, evaluator=evaluator)
    total_bytes = sum(step.size_bytes for step in plan.steps)
    return run_all(work, plan.steps, total_bytes=total_bytes, progress=progress, workers=workers)


def perform(step: Step, tally: Tally, *, source: Source, sink: Sink, evaluator: Evaluator) -> StepRecord:
    """One step: a plain copy is the sink's, which may know how not to move bytes; the rest is computed."""
    if isinstance(step.made_of, Copy) and step.made_of.cast is None:
        return StepRecord(step.name, sink.copy(step, source, tally))
    digest = Digest()
    statistics = DifferenceStats()
    with closing(evaluator.chunks(step.made_of)) as chunks:
        for chunk in chunks:
            digest.update(chunk.data)
            sink.write(step, chunk.offset, chunk.data)
            tally(len(chunk.data))
            statistics = chunk.statistics
    return StepRecord(step.name, digest.text(), statistics if isinstance(step.made_of, Blend) else None)
