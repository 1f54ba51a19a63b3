"""Plan + Source + Sink + Evaluator -> the records of what was done. Knows no paths, and no devices."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from threading import Event

from lswap_core.difference import DifferenceStats
from lswap_core.digests import Digest
from lswap_core.draft import Blend, Copy
from lswap_core.evaluate import Evaluator
from lswap_core.manifest import StepRecord
from lswap_core.plan import Plan, Step
from lswap_core.ports import Progress, Sink, Source, Tally


class _StoppedError(Exception):
    """Raised in workers once another has failed, or the user has had enough; never leaves this module."""


def run(plan: Plan, source: Source, sink: Sink, evaluator: Evaluator, *, progress: Progress, workers: int) -> list[StepRecord]:
    """Execute every step and return the records in the plan's order. Publishing is the caller's.

    The bytes depend neither on `workers` nor on the order in which steps end. After an error or Ctrl-C no further step
    begins, and those in flight end at their next chunk.
    """
    stop = Event()

    def tally(done_bytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        progress.advance(done_bytes)

    def work(step: Step) -> StepRecord:
        return perform(step, source, sink, evaluator, tally)

    sink.create(plan.files)
    progress.begin(sum(step.size_bytes for step in plan.steps))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lswap")
    try:
        futures = [pool.submit(work, step) for step in plan.steps]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        progress.end()


def perform(step: Step, source: Source, sink: Sink, evaluator: Evaluator, tally: Tally) -> StepRecord:
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
