"""Executes a plan: plan + source + sink + evaluator -> step records. It knows neither paths nor devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial

from lswap_core.engine.evaluate import Evaluator
from lswap_core.io.digests import Digest
from lswap_core.io.ports import Progress, Source, Tally, Writer
from lswap_core.io.threads import run_all
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan, Step
from lswap_core.plan.runs import Run, runs
from lswap_core.recipe.expressions import Blend


def run(
    plan: Plan,
    source: Source,
    sink: Writer,
    evaluator: Evaluator,
    *,
    progress: Progress,
    workers: int,
    digests: bool = True,
    steps: Sequence[Step] | None = None,
) -> list[StepRecord]:
    """Execute `steps` of the plan (default: all) that the sink does not have already. Returns their records in the plan's
    order.

    The caller publishes. digests: take one of every computed tensor. Runs begin in the output's order or, where the source
    prefers another and the sink allows it, in the source's. The output does not depend on that order, on `workers`, or on the
    order in which runs end. Raises what source and sink raise.
    """
    done = dict(sink.begin(plan, source))
    wanted = plan.steps if steps is None else steps
    left = [step for step in wanted if step.name not in done]
    work = partial(perform, source=source, sink=sink, evaluator=evaluator, digests=digests)
    total_bytes = sum(step.size_bytes for step in left)
    in_order = list(runs(left))
    order = in_order if sink.in_order else source.arrange(in_order)
    source.expect(order)
    workers = min(workers, sink.most_workers or workers)
    for records in run_all(work, order, total_bytes=total_bytes, progress=progress, workers=workers):
        done |= {record.name: record for record in records}
    return [done[step.name] for step in wanted]


def perform(
    run: Run, tally: Tally, *, source: Source, sink: Writer, evaluator: Evaluator, digests: bool = True
) -> list[StepRecord]:
    """Do one run. The sink does a copied run, since it may avoid moving bytes; the evaluator computes other runs.

    A run counts as done only once its sources are confirmed unchanged. After an error for a changed source, the user may
    restore the source and resume.
    """
    records = sink.copy(run, source, tally) if run.copied else [_compute(run, tally, sink, evaluator, digests)]
    source.confirm(run.steps[0].made_of.refs)
    sink.finish(run, records)
    return records


def _compute(run: Run, tally: Tally, sink: Writer, evaluator: Evaluator, digests: bool) -> StepRecord:
    (step,) = run.steps
    digest = Digest()
    statistics = DifferenceStats()
    with closing(evaluator.chunks(step.made_of)) as chunks:
        for chunk in chunks:
            if digests:
                digest.update(chunk.data)
            sink.write(run, chunk.offset, chunk.data)
            tally(len(chunk.data))
            statistics = chunk.statistics
    blended = isinstance(step.made_of, Blend)
    return StepRecord(step.name, digest.text() if digests else None, statistics if blended else None)
