"""What every way of executing a plan shares: what it needs before the first byte, and what completes an output at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lswap_core import kernels
from lswap_core.checkpoint.catalogue import INDEX_FILE, Checkpoint, Role, parse_role
from lswap_core.engine.device_streaming import StreamingEvaluator
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import RecipeError, VerificationError
from lswap_core.io.ports import Output, Silence, Source
from lswap_core.io.threads import run_all, threads_for
from lswap_core.plan.manifest import Manifest, StepRecord, compile_manifest
from lswap_core.plan.plan import CARD_FILE, MANIFEST_FILE, Plan
from lswap_core.report import card
from lswap_core.sinks.places import is_url
from lswap_core.sources.places import Places, is_remote, local_places
from lswap_core.sources.planned import Reopened, reopen

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
    manifest = compile_manifest(plan, done, tool=f"lswap_core {_version()}", shard_sha256=sink.shard_sha256)
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
        raise RecipeError(f"--{idle[0]} is given, but nothing was made from {idle[0]}")
    return given


def merged_sources(places: Places, manifest: Manifest, locations: Mapping[str, StrPath]) -> dict[Role, Checkpoint]:
    """The sources of a merge, opened where `locations` says. RecipeError where one is missing, VerificationError for others."""
    given = _given(locations, {source.role for source in manifest.sources})
    if absent := [source.role for source in manifest.sources if source.role not in given]:
        raise RecipeError(f"to verify against the sources, give {' and '.join(f'--{role}' for role in absent)} too")
    opened = {source.role: places.open(given[source.role], source.role) for source in manifest.sources}
    issues = []
    for source in manifest.sources:
        now = {shard.name: (shard.header.file_size, shard.fingerprint) for shard in opened[source.role].files}
        where = opened[source.role].location
        issues += [
            f"{where}: {file.name} is not the file that was merged"
            for file in source.files
            if now.get(file.name) != (file.size, file.sha256)
        ]
    if issues:
        raise VerificationError("these are not the sources of the merge", issues)
    return opened


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


def _version() -> str:
    from importlib.metadata import version  # loads a mail parser; a plan does without

    return version("lswap-core")
