"""One output by many workers that share a filesystem and nothing else: each does a part of the plan, one publishes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from lswap_core import executor
from lswap_core.errors import RecipeError
from lswap_core.execution import StrPath, complete, host_sidecars, prepare
from lswap_core.manifest import Manifest
from lswap_core.options import WriteOptions
from lswap_core.plan import Plan
from lswap_core.ports import Progress, Silence
from lswap_core.shares import Part
from lswap_core.sinks.building import Build, Terms
from lswap_core.sinks.partial import check_destination
from lswap_core.sinks.shared import Gathering, SharedSink
from lswap_core.sources.places import local_places
from lswap_core.sources.reopening import source_of
from lswap_core.traffic import Traffic


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
    kind of digests. When all are done, `publish` makes the output.

    A part that has been done is not done again, unless `restart` says so; one that was cut off is done from its beginning.
    Raises as `execute`; RecipeError also where `into` is being built from another plan, in another number of parts or with
    other digests.
    """
    _check_shared(into)
    places, sources, threads, evaluator_of = prepare(plan, locations, workers=workers, device=device)
    local = [place for source in sources.values() for place in local_places(source.location)]
    with closing(SharedSink(into, plan, part, sources=local, options=options, traffic=traffic, restart=restart)) as sink:
        steps = sink.steps
        anew = not sink.is_done
        if anew:
            try:
                with source_of(sources, places.count) as source:
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
    _check_shared(into)
    build = Build(check_destination(into, _local(plan)))
    found = build.terms()
    if found is not None:
        build.check(Terms(plan.digest, parts or found.parts, options.digest))
    return None if found is None else found.parts


def publish(plan: Plan, *, into: StrPath, locations: Mapping[str, StrPath] | None = None, workers: int | None = None) -> Manifest:
    """Give what `apply_part` made its final name, with everything that `execute` puts beside the shards: where no extents are
    shared the same bytes as `execute` makes, manifest and card included.

    Of the sources only the host is looked at, for what lies beside its shards. RecipeError where a part is missing or of
    another plan, or where `into` exists; StalePlanError where the host is not what was planned.
    """
    _check_shared(into)
    gathering = Gathering(into, plan, sources=_local(plan))
    sidecars = host_sidecars(plan, locations)
    return complete(plan, gathering.records, gathering, sidecars, digest=gathering.digest, workers=workers)


def _local(plan: Plan) -> list[str]:
    """Local paths that sources were planned at."""
    return [place for source in plan.sources for place in local_places(source.location)]


def _check_shared(into: StrPath) -> None:
    if "://" in os.fspath(into):
        raise RecipeError(
            f"{os.fspath(into)}: parts are built in a directory that all workers share; give a path on such a filesystem"
        )
