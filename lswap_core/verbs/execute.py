"""Execute a plan: what is needed before the first byte, the run, and what completes an output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple, TypedDict

import lswap_core
from lswap_core import kernels
from lswap_core.checkpoint.catalogue import INDEX_FILE, Role, in_order, parse_role
from lswap_core.engine import executor
from lswap_core.engine.device_streaming import StreamingEvaluator
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import RecipeError
from lswap_core.io.ports import Output, Progress, Silence, Source
from lswap_core.io.threads import run_all, threads_for
from lswap_core.io.traffic import Traffic
from lswap_core.options import ROLES, WriteOptions
from lswap_core.plan.manifest import Manifest, StepRecord, compile_manifest
from lswap_core.plan.plan import CARD_FILE, MANIFEST_FILE, Plan
from lswap_core.report import card
from lswap_core.sinks.places import is_url, open_sink
from lswap_core.sources.places import Places, is_remote, local_places
from lswap_core.sources.planned import Reopened, reopen, source_of
from lswap_core.text import listed

DEVICES = ("auto", "cpu", "cuda")

StrPath = str | os.PathLike[str]


class Ready(NamedTuple):
    """What executing a plan needs beside a place: its sources, found and held to be what was planned, threads, arithmetic."""

    places: Places
    sources: dict[Role, Reopened]
    threads: int
    evaluator_of: Callable[[Source], Evaluator]


def prepare(
    plan: Plan,
    locations: Mapping[str, StrPath] | None,
    *,
    workers: int | None,
    device: str,
    remote: bool = False,
    sidecars: bool = False,
) -> Ready:
    """See `execute`, which raises the same. remote: the output is not on a local or mounted disk. sidecars: what lies beside the
    host's weights is wanted too.
    """
    threads_for(workers)
    evaluator_of = _evaluating(device)
    places = Places()
    sources = _reopen_all(places, plan, _given(locations or {}, {source.role for source in plan.sources}), sidecars)
    threads = threads_for(workers, remote=remote or any(source.there for source in sources.values()), writing=True)
    return Ready(places, sources, threads, evaluator_of)


def host_sidecars(plan: Plan, locations: Mapping[str, StrPath] | None) -> Mapping[str, bytes]:
    """What is copied beside the shards, by name. Of the sources only the host is opened; StalePlanError where it changed, its
    tensors excepted where they are remote.
    """
    moved = _given(locations or {}, {source.role for source in plan.sources})
    return reopen(Places(), plan, plan.host, moved.get(plan.host), tensors=False, sidecars=True).sidecars


def complete(
    plan: Plan,
    done: Sequence[StepRecord],
    sink: Output,
    sidecars: Mapping[str, bytes],
    *,
    digest: str,
    workers: int | None,
) -> Manifest:
    """Put what belongs beside the shards, all steps of which are done, into an output, and publish it. sidecars: by name."""
    threads = threads_for(workers)
    if digest == "sha256":
        run_all(lambda file, _: sink.hash_shard(file.name), plan.files, total_bytes=0, progress=Silence(), workers=threads)
    manifest = compile_manifest(plan, done, tool=f"lswap_core {lswap_core.__version__}", shard_sha256=sink.shard_sha256)
    for name, data in sidecars.items():
        sink.put(name, data)
    if plan.index is not None:
        sink.put(INDEX_FILE, plan.index.encode())
    sink.put(CARD_FILE, card.model_card(plan, manifest).encode())
    sink.put(MANIFEST_FILE, manifest.to_json().encode())
    sink.publish()
    return manifest


def near(place: StrPath, locations: Iterable[str]) -> list[str]:
    """Of the places that sources lie in, those of the kind of `place`: URLs, or local paths."""
    if is_url(place):
        return [location for location in locations if is_url(location)]
    return [local for location in locations for local in local_places(location)]


def _given(locations: Mapping[str, StrPath], used: set[Role]) -> dict[Role, str]:
    """Locations by role; a RecipeError for a role that has no part in what was made."""
    given = {parse_role(role): os.fspath(path) for role, path in locations.items()}
    if idle := sorted(given.keys() - used):
        what = f"{option_of(idle[0])} is given, but nothing was made from {idle[0]}"
        raise RecipeError(f"{what}; the sources are {listed(in_order(sorted(used)))}")
    return given


def option_of(role: Role) -> str:
    """The option of the command line that says where a source is."""
    return f"--{role}" if role in ROLES else f"--source {role}=PATH"


def _evaluating(device: str) -> Callable[[Source], Evaluator]:
    """What evaluates expressions of a source on a device. Raises RecipeError where there is no such device."""
    if device not in DEVICES:
        raise RecipeError(f"--device is {device!r}; expected one of {', '.join(DEVICES)}")
    if device != "cuda":  # nothing was measured in which a GPU is faster for tensors on a disk, so `auto` takes none
        return lambda source: Evaluator(source, kernels)
    try:
        from lswap_core.kernels.gpu.slots import open_slots
    except ImportError as error:
        raise RecipeError(f"--device cuda: {error.name} is not installed; `pip install lswap-core[gpu]` brings it") from error
    slots = open_slots()
    return lambda source: StreamingEvaluator(source, kernels, slots)


def _reopen_all(places: Places, plan: Plan, moved: Mapping[Role, str], sidecars: bool) -> dict[Role, Reopened]:
    """Every source, reopened; remote ones all at once, since that is mostly waiting."""
    remote = any(is_remote(moved.get(source.role, source.location)) for source in plan.sources)
    roles = [source.role for source in plan.sources]
    opened = run_all(
        lambda role, _: reopen(places, plan, role, moved.get(role), sidecars=sidecars and role == plan.host),
        roles,
        total_bytes=0,
        progress=Silence(),
        workers=len(roles) if remote else 1,
    )
    return dict(zip(roles, opened, strict=True))


class Execution(TypedDict, total=False):
    """What `execute` takes beside a plan and a place; see there."""

    progress: Progress | None
    workers: int | None
    device: str
    options: WriteOptions
    restart: bool
    traffic: Traffic | None


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
