"""Makes one output with many workers that share only a filesystem or a store: each does a part of the plan, and one
publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Unpack

from lswap_core.io.locations import is_url
from lswap_core.options import WriteOptions
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import Plan
from lswap_core.sinks.places import find_parts, open_part, open_parts
from lswap_core.sources.planned import source_of
from lswap_core.verbs.execute import Execution, RunOptions, StrPath, complete, near, prepare, primary_sidecars


@dataclass(frozen=True, slots=True)
class PartDone:
    """The result of one part. `anew`: this call did it; else it was done before."""

    part: Part
    tensors: int
    size_bytes: int
    anew: bool


def apply_part(
    plan: Plan, part: Part, *, into: StrPath, locations: Mapping[str, StrPath] | None = None, **how: Unpack[Execution]
) -> PartDone:
    """Do one part of what `execute` does, beside other workers. Each is given the same plan, number of parts and kind of digests,
    and writes to a filesystem that all share or to `s3://bucket/prefix`; there the copy method must be the same, too. When all
    are done, `publish` makes the output.

    A part that is done is not done again, unless `restart` says so. One that was cut off is done from its beginning.
    how: see `RunOptions`. Raises as `execute`; RecipeError also where `into` is being built from another plan, in another number
    of parts, with other digests or, in a store, by another copy method, and for a store that takes no parts; SourceError where
    the store has lost an upload, in place of which another is begun.
    """
    run = RunOptions(**how)
    ready = prepare(plan, locations, run, remote=is_url(into))
    beside = near(into, (source.location for source in ready.sources.values()))
    opened = partial(open_part, into, plan, part, sources=beside, options=run.options, traffic=run.traffic, restart=run.restart)
    with source_of(ready.sources, ready.places.count) as source, closing(opened(source)) as sink:
        steps = sink.steps
        anew = not sink.is_done
        if anew:
            try:
                sink.seal(run.run(plan, source, sink, ready, steps))
            except BaseException as error:  # Ctrl-C, too: the note says how to go on
                error.add_note(f"other parts are not touched by that; the same command does part {part} again")
                raise
            finally:
                run.count_fetched(ready)
    return PartDone(part, len(steps), sum(step.size_bytes for step in steps), anew)


def check_parts(plan: Plan, into: StrPath, parts: int | None, options: WriteOptions) -> int | None:
    """The number of parts of a build at `into`, None where there is no build. parts: None for any number.

    Raises what `apply_part` would raise for an impossible place, and for a build on other terms.
    """
    return find_parts(into, plan, parts, sources=near(into, _locations(plan)), options=options)


def publish(plan: Plan, *, into: StrPath, locations: Mapping[str, StrPath] | None = None, workers: int | None = None) -> Manifest:
    """Publish the parts of `apply_part` under the final name, with all files that `execute` puts beside the shards. Where no
    extents are shared, the bytes are those of `execute`, including manifest and card.

    Opens only the primary source, for the files beside its shards. Raises RecipeError where a part is missing or of another plan,
    where a store no longer has what a part sent, or where `into` exists, and StalePlanError where the primary source is not what
    was planned.
    """
    gathering = open_parts(into, plan, sources=near(into, _locations(plan)))
    sidecars = primary_sidecars(plan, locations)
    return complete(plan, gathering.records, gathering, sidecars, digest=gathering.digest, workers=workers)


def _locations(plan: Plan) -> list[str]:
    """The locations where the sources were planned."""
    return [source.location for source in plan.sources]
