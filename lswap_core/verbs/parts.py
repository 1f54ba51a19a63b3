"""One output by many workers that share a filesystem or a store and nothing else: each does a part of the plan, one publishes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from lswap_core.engine import executor
from lswap_core.io.locations import is_url
from lswap_core.io.ports import Progress, Silence
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import Plan
from lswap_core.sinks.places import find_parts, open_part, open_parts
from lswap_core.sources.planned import source_of
from lswap_core.verbs.execute import StrPath, complete, host_sidecars, near, prepare


@dataclass(frozen=True, slots=True)
class PartDone:
    """What one part of an output is. anew: this call did it; else it had been done before."""

    part: Part
    tensors: int
    size_bytes: int
    anew: bool


def apply_part(
    plan: Plan,
    part: Part,
    *,
    into: StrPath,
    locations: Mapping[str, StrPath] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    device: str = "auto",
    options: WriteOptions = WriteOptions(),
    restart: bool = False,
    traffic: Traffic | None = None,
) -> PartDone:
    """Do one part of what `execute` does, beside other workers, each of which is given the same plan, number of parts and
    kind of digests, towards a filesystem that all share or a place `s3://bucket/prefix`; there the method of copying must be
    the same, too. When all are done, `publish` makes the output.

    A part that has been done is not done again, unless `restart` says so; one that was cut off is done from its beginning.
    Raises as `execute`; RecipeError also where `into` is being built from another plan, in another number of parts, with other
    digests or, in a store, by another method of copying, and for a store that takes no parts; SourceError where the store
    has lost an upload, in place of which another is begun.
    """
    ready = prepare(plan, locations, workers=workers, device=device, remote=is_url(into))
    places, sources, threads, evaluator_of = ready
    beside = near(into, (source.location for source in sources.values()))
    opened = partial(open_part, into, plan, part, sources=beside, options=options, traffic=traffic, restart=restart)
    with source_of(sources, places.count) as source, closing(opened(source)) as sink:
        steps = sink.steps
        anew = not sink.is_done
        if anew:
            try:
                run = partial(executor.run, progress=progress or Silence(), workers=threads, digests=options.digest != "none")
                done = run(plan, source, sink, evaluator_of(source), steps=steps)
                source.check()
                sink.seal(done)
            except BaseException as error:
                error.add_note(f"other parts are not touched by that; the same command does part {part} anew")
                raise
            finally:
                (traffic or Traffic()).add("fetch", places.fetched_bytes)
    return PartDone(part, len(steps), sum(step.size_bytes for step in steps), anew)


def check_parts(plan: Plan, into: StrPath, parts: int | None, options: WriteOptions) -> int | None:
    """The number of parts in which an output is being built already, None where it is not. Raises what `apply_part` would where
    `into` is an impossible place, or is being built otherwise than is asked for here; parts: None for any number.
    """
    return find_parts(into, plan, parts, sources=near(into, _locations(plan)), options=options)


def publish(plan: Plan, *, into: StrPath, locations: Mapping[str, StrPath] | None = None, workers: int | None = None) -> Manifest:
    """Give what `apply_part` made its final name, with everything that `execute` puts beside the shards: where no extents are
    shared the same bytes as `execute` makes, manifest and card included.

    Of the sources only the host is looked at, for what lies beside its shards. RecipeError where a part is missing or of
    another plan, where a store no longer has what a part sent, or where `into` exists; StalePlanError where the host is not
    what was planned.
    """
    gathering = open_parts(into, plan, sources=near(into, _locations(plan)))
    sidecars = host_sidecars(plan, locations)
    return complete(plan, gathering.records, gathering, sidecars, digest=gathering.digest, workers=workers)


def _locations(plan: Plan) -> list[str]:
    """Where sources were planned."""
    return [source.location for source in plan.sources]
