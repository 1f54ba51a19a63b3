"""The library's verbs, put together: open checkpoints, lay out, execute, verify, merge, compare."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from lswap_core import kernels
from lswap_core.checkpoint.catalogue import Checkpoint, Shard
from lswap_core.engine import executor
from lswap_core.engine.verifier import Diff, differing_tensors, tensor_diff
from lswap_core.errors import FormatError, RecipeError, VerificationError
from lswap_core.execution import StrPath, complete, merged_sources, near, prepare
from lswap_core.hub_upload import Upload, check_repository, upload
from lswap_core.io.ports import Progress, Silence
from lswap_core.io.threads import are_remote, threads_for
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.layout import lay_out
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import Plan
from lswap_core.recipe.baselines import TaskSum
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.sinks.disk.partial_directory import check_destination
from lswap_core.sinks.places import check_place, is_url, open_sink
from lswap_core.sources.outputs import intact_shard, manifest_of, open_output, read_manifest, shard_issues, sidecar_issues
from lswap_core.sources.places import Places, Travel, open_checkpoint
from lswap_core.sources.planned import source_of
from lswap_core.survey import analyze

if TYPE_CHECKING:
    from lswap_core.analysis.changes import ChangeMaps

__all__ = [
    "analyze", "check_output", "check_repository", "diff", "draft_merge", "execute", "lay_out", "merge", "open_checkpoint",
    "push", "read_manifest", "read_plan", "travel", "verify", "write_plan",
]  # fmt: skip


class Execution(TypedDict, total=False):
    """What `execute` takes beside a plan and a place; see there."""

    progress: Progress | None
    workers: int | None
    device: str
    options: WriteOptions
    restart: bool
    traffic: Traffic | None


def read_plan(path: StrPath) -> Plan:
    """The plan in a JSON file, as `Plan.to_json` wrote it. FormatError for anything else."""
    plan = Plan.from_json(Path(path).read_bytes(), path=os.fspath(path))
    if plan.swap is not None:
        try:
            shares = plan.swap.shares
            if "method" in plan.swap.options:
                TaskSum.from_json(plan.swap.options)
                agree = not shares
            else:
                agree = LayerSwap.from_json(plan.swap.options).zones(len(shares), dict(enumerate(shares))).shares == shares
        except RecipeError as error:
            raise FormatError(f"swap.options: {error}", path=os.fspath(path)) from None
        if not agree:
            raise FormatError("swap.shares: not what swap.options give", path=os.fspath(path))
    return plan


def write_plan(plan: Plan, path: StrPath) -> None:
    """Write a plan as JSON. RecipeError where the file exists or lies in a source."""
    place = check_destination(path, near(path, (source.location for source in plan.sources)))
    with open(place, "x", encoding="utf-8") as file:
        file.write(plan.to_json())


def check_output(plan: Plan, into: StrPath) -> None:
    """Raise what `execute` would where `into` is an impossible place."""
    check_place(into, near(into, (source.location for source in plan.sources)))


def travel(plan: Plan) -> Travel | None:
    """How many bytes come over the network if `plan` is executed; None where no source is remote."""
    return Places().travel(plan)


def execute(
    plan: Plan,
    *,
    into: StrPath,
    locations: Mapping[str, StrPath] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    device: str = "auto",
    options: WriteOptions = WriteOptions(),
    restart: bool = False,
    traffic: Traffic | None = None,
) -> Manifest:
    """Make the output at `into`, which must not exist; it appears there whole or not at all.

    A run that fails or is killed leaves what it finished beside `into`, and the same call goes on from there, unless
    `restart` says to begin anew. locations: where a source lies now, by role, if not where it was planned. device: `cpu`,
    `cuda`, or `auto`, which takes the CPU; the bytes are the same. traffic: told how many bytes came in which way. Raises
    StalePlanError where a source is not what was planned, RecipeError for an impossible destination or device, OSError
    for what the disk refuses.
    """
    ready = prepare(plan, locations, workers=workers, device=device, remote=is_url(into), sidecars=True)
    places, sources, threads, evaluator_of = ready
    beside = near(into, (source.location for source in sources.values()))
    with closing(open_sink(into, sources=beside, options=options, traffic=traffic, restart=restart)) as sink:
        try:
            with source_of(sources, places.count) as source:
                run = partial(executor.run, progress=progress or Silence(), workers=threads, digests=options.digest != "none")
                done = run(plan, source, sink, evaluator_of(source))
                source.check()
            manifest = complete(plan, done, sink, sources[plan.host].sidecars, digest=options.digest, workers=threads)
        except BaseException as error:
            (traffic or Traffic()).add("fetch", places.fetched_bytes)
            if sink.kept:
                error.add_note(f"what is done is kept in {sink.partial}; the same command goes on from there (--restart: anew)")
            raise
    (traffic or Traffic()).add("fetch", places.fetched_bytes)
    return manifest


def merge(
    recipe: LayerSwap | TaskSum,
    *,
    math: StrPath,
    lang: StrPath,
    into: StrPath,
    base: StrPath | None = None,
    shard_size: int | None = None,
    **how: Unpack[Execution],
) -> Manifest:
    """Plan and execute in one call; `how` is what `execute` takes beside the plan. base: for what needs it."""
    opened = open_checkpoint(math, role="math"), open_checkpoint(lang, role="lang")
    origin = None if base is None else open_checkpoint(base, role="base")
    draft = draft_merge(recipe, math=opened[0], lang=opened[1], base=origin, workers=how.get("workers"))
    return execute(lay_out(draft, shard_size), into=into, **how)


def verify(
    output: StrPath,
    *,
    locations: Mapping[str, StrPath] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Manifest:
    """Hold the output against its manifest; with `locations` of its sources, by role, derive every byte of it again.

    Returns the manifest. VerificationError lists every difference, of the sources before anything else.
    """
    places = Places()
    found = open_output(output, places)
    manifest = manifest_of(found)
    sources = merged_sources(places, manifest, locations) if locations else {}
    issues = list(sidecar_issues(found, manifest, sources.get(manifest.host)))
    shards: list[Shard] = []
    for record in manifest.shards:
        try:
            shards.append(intact_shard(found, record, manifest))
        except (FormatError, OSError) as error:
            issues.append(f"shard {record.name}: {error}")
    written = Checkpoint("math", found.root, found.root, Path(found.root).name, tuple(shards))
    threads = threads_for(workers, remote=are_remote(written, *sources.values()))
    with places.source({"math": written}) as out, places.source(sources) as inputs:
        issues += differing_tensors(
            manifest,
            out,
            inputs if sources else None,
            kernels,
            files=frozenset(shard.name for shard in shards),
            progress=progress or Silence(),
            workers=threads,
        )
    issues += shard_issues(found, manifest, frozenset(shard.name for shard in shards), workers=threads_for(workers))
    if issues:
        raise VerificationError(f"{found.root} is not what its manifest says", issues)
    return manifest


def push(output: StrPath, repository: str, *, public: bool = False, bars: bool = False) -> Upload:
    """Put an output on the hub; see `lswap_core.hub_upload.upload`."""
    return upload(output, repository, public=public, bars=bars)


def diff(a: StrPath, b: StrPath, *, progress: Progress | None = None, workers: int | None = None) -> Diff:
    """How two checkpoints differ: names, shapes, dtypes, and whether the bytes are equal; of a checkpoint with an adapter, the
    bytes that a merge would take.
    """
    places = Places()
    first, second = places.open(os.fspath(a), "math"), places.open(os.fspath(b), "lang")
    threads = threads_for(workers, remote=are_remote(first, second))
    with places.source({"math": first, "lang": second}) as source:
        return tensor_diff(first, second, source, kernels, progress=progress or Silence(), workers=threads)


def draft_merge(
    recipe: LayerSwap | TaskSum,
    *,
    math: Checkpoint,
    lang: Checkpoint,
    base: Checkpoint | None = None,
    changes: ChangeMaps | None = None,
    auto: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Draft:
    """The draft of a merge. Where its layers (`auto`) or shares (`ramp="mav"`) follow from what changed, they come from
    `changes`, or are measured against `base`; for shares alone, only the blended layers are read. RecipeError where `base` or
    `changes` is given and serves nothing.
    """
    if isinstance(recipe, TaskSum):
        return recipe.draft(math=math, lang=lang, base=base)
    if not auto and recipe.ramp != "mav":
        if changes or (base and not recipe.revert_layers):
            raise RecipeError(
                f"nothing here needs {'--changes' if changes else '--base'}; leave it out, or ask for --auto or --ramp mav"
            )
        return recipe.draft(math=math, lang=lang, base=base)
    from lswap_core.automatic import draft_measured

    return draft_measured(
        recipe, math, lang,
        base=base, changes=changes, auto=auto, progress=progress or Silence(),
        workers=threads_for(workers, remote=are_remote(math, lang, base)),
    )  # fmt: skip
