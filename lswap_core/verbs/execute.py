"""Executes a plan: prepares everything before the first byte, runs it, and completes the output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict, Unpack

import lswap_core
from lswap_core import kernels
from lswap_core.checkpoint.catalogue import INDEX_FILE, Role, in_order, parse_role
from lswap_core.engine import executor
from lswap_core.engine.device_streaming import StreamingEvaluator
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import RecipeError
from lswap_core.io.locations import is_remote, is_url
from lswap_core.io.ports import Output, Progress, Silence, Source, Writer
from lswap_core.io.threads import run_all, threads_for
from lswap_core.io.traffic import Traffic
from lswap_core.options import ROLES, WriteOptions
from lswap_core.plan.manifest import Manifest, StepRecord, compile_manifest
from lswap_core.plan.plan import CARD_FILE, MANIFEST_FILE, Plan, Step
from lswap_core.report import card
from lswap_core.sinks.places import open_sink
from lswap_core.sources.places import AnySource, Places, local_places
from lswap_core.sources.planned import Reopened, reopen, source_of
from lswap_core.text.plain import listed

DEVICES = ("auto", "cpu", "cuda")

StrPath = str | os.PathLike[str]


class Execution(TypedDict, total=False):
    """The keyword arguments of everything that executes a plan; `RunOptions` says what they mean."""

    progress: Progress | None
    workers: int | None
    device: str
    options: WriteOptions
    restart: bool
    traffic: Traffic | None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a plan is executed. Verbs make it once from their keyword arguments and pass it on whole.

    progress: is told about the bytes that are done. workers: threads; by default as many as `threads_for` says. device: `cpu`,
    `cuda`, or `auto`, which takes the CPU; the bytes are the same. options: how the output is written. restart: discard what an
    unfinished run left. traffic: counts the bytes by the way they came.
    """

    progress: Progress | None = None
    workers: int | None = None
    device: str = "auto"
    options: WriteOptions = field(default_factory=WriteOptions)
    restart: bool = False
    traffic: Traffic | None = None

    def run(
        self, plan: Plan, source: AnySource, sink: Writer, ready: Ready, steps: Sequence[Step] | None = None
    ) -> list[StepRecord]:
        """Do the steps of a plan, by default all that the sink does not have, and check the sources once more."""
        done = executor.run(
            plan, source, sink, ready.evaluator_of(source),
            progress=self.progress or Silence(), workers=ready.threads, digests=self.options.digest != "none", steps=steps,
        )  # fmt: skip
        source.check()
        return done

    def count_fetched(self, ready: Ready) -> None:
        """Count the bytes that came over the network."""
        if self.traffic is not None:
            self.traffic.add("fetch", ready.places.fetched_bytes)


class Ready(NamedTuple):
    """What a run needs beside its output: sources that are still what was planned, the number of threads, the arithmetic."""

    places: Places
    sources: dict[Role, Reopened]
    threads: int
    evaluator_of: Callable[[Source], Evaluator]


def prepare(
    plan: Plan,
    locations: Mapping[str, StrPath] | None,
    run: RunOptions,
    *,
    remote: bool = False,
    sidecars: bool = False,
) -> Ready:
    """Prepare the execution of a plan. Raises as `execute`. remote: the output is not on a local or mounted disk. sidecars:
    also read the files beside the primary source's weights.
    """
    threads_for(run.workers)
    evaluator_of = _evaluating(run.device)
    places = Places()
    sources = _reopen_all(places, plan, _given(locations or {}, {source.role for source in plan.sources}), sidecars)
    threads = threads_for(run.workers, remote=remote or any(source.there for source in sources.values()), writing=True)
    return Ready(places, sources, threads, evaluator_of)


def primary_sidecars(plan: Plan, locations: Mapping[str, StrPath] | None) -> Mapping[str, bytes]:
    """The content of the files to copy beside the shards, by name. Opens only the primary source.

    Raises StalePlanError where the primary source has changed; tensors of a remote one are not checked.
    """
    moved = _given(locations or {}, {source.role for source in plan.sources})
    return reopen(Places(), plan, plan.primary, moved.get(plan.primary), tensors=False, sidecars=True).sidecars


def complete(
    plan: Plan,
    done: Sequence[StepRecord],
    sink: Output,
    sidecars: Mapping[str, bytes],
    *,
    digest: str,
    workers: int | None,
) -> Manifest:
    """Add the small files to an output whose steps are all done, and publish it. sidecars: their content by name."""
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
    """Of the sources' places, those of the same kind as `place`: URLs, or local paths."""
    if is_url(place):
        return [location for location in locations if is_url(location)]
    return [local for location in locations for local in local_places(location)]


def _given(locations: Mapping[str, StrPath], used: set[Role]) -> dict[Role, str]:
    """Locations by role. Raises RecipeError for a role that the plan or manifest does not have."""
    given = {parse_role(role): os.fspath(path) for role, path in locations.items()}
    if idle := sorted(given.keys() - used):
        what = f"{option_of(idle[0])} is given, but nothing was made from {idle[0]}"
        raise RecipeError(f"{what}; the sources are {listed(in_order(sorted(used)))}")
    return given


def option_of(role: Role) -> str:
    """The option of the command line for a source's location."""
    return f"--{role}" if role in ROLES else f"--source {role}=PATH"


def _evaluating(device: str) -> Callable[[Source], Evaluator]:
    """Return the evaluator for expressions of a source on a device. Raises RecipeError where there is no such device."""
    if device not in DEVICES:
        raise RecipeError(f"--device is {device!r}; expected one of {', '.join(DEVICES)}")
    if device != "cuda":  # no measurement showed a GPU to be faster for tensors on a disk, so `auto` takes the CPU
        return lambda source: Evaluator(source, kernels)
    try:
        from lswap_core.kernels.gpu.slots import open_slots
    except ImportError as error:
        raise RecipeError(f"--device cuda: {error.name} is not installed; `pip install lswap-core[gpu]` brings it") from error
    slots = open_slots()
    return lambda source: StreamingEvaluator(source, kernels, slots)


def _reopen_all(places: Places, plan: Plan, moved: Mapping[Role, str], sidecars: bool) -> dict[Role, Reopened]:
    """Reopen every source; remote ones concurrently, since that is mostly waiting."""
    remote = any(is_remote(moved.get(source.role, source.location)) for source in plan.sources)
    roles = [source.role for source in plan.sources]
    opened = run_all(
        lambda role, _: reopen(places, plan, role, moved.get(role), sidecars=sidecars and role == plan.primary),
        roles,
        total_bytes=0,
        progress=Silence(),
        workers=len(roles) if remote else 1,
    )
    return dict(zip(roles, opened, strict=True))


def execute(plan: Plan, *, into: StrPath, locations: Mapping[str, StrPath] | None = None, **how: Unpack[Execution]) -> Manifest:
    """Make the output at `into`, which must not exist; it appears there whole or not at all.

    A run that fails or is killed leaves what it finished beside `into`. The same call goes on from there, unless `restart`
    discards it. locations: where a source is now, by role, if not where it was planned. how: see `RunOptions`. Raises
    StalePlanError where a source is not what was planned, RecipeError for an impossible destination or device, OSError
    for what the disk refuses.
    """
    run = RunOptions(**how)
    ready = prepare(plan, locations, run, remote=is_url(into), sidecars=True)
    beside = near(into, (source.location for source in ready.sources.values()))
    opened = open_sink(into, sources=beside, options=run.options, traffic=run.traffic, restart=run.restart)
    with closing(opened) as sink:
        try:
            with source_of(ready.sources, ready.places.count) as source:
                done = run.run(plan, source, sink, ready)
            sidecars = ready.sources[plan.primary].sidecars
            manifest = complete(plan, done, sink, sidecars, digest=run.options.digest, workers=ready.threads)
        except BaseException as error:  # Ctrl-C, too: the note says where the work is
            if sink.kept:
                error.add_note(
                    f"what is done is kept in {sink.partial}; the same command goes on from there (--restart: begin again)"
                )
            raise
        finally:
            run.count_fetched(ready)
    return manifest
