"""The library's verbs, put together: open checkpoints, lay out, execute, verify, merge, compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Unpack

from lswap_core import executor, kernels, report
from lswap_core.baselines import TaskSum
from lswap_core.checkpoint import Checkpoint, Role, Shard, parse_role
from lswap_core.draft import Draft
from lswap_core.errors import FormatError, RecipeError, StalePlanError, VerificationError
from lswap_core.evaluate import Evaluator
from lswap_core.hub_upload import Upload, check_repository, upload
from lswap_core.layout import lay_out
from lswap_core.manifest import Manifest, StepRecord, compile_manifest
from lswap_core.options import WriteOptions
from lswap_core.outputs import intact_shard, read_manifest, shard_issues, sidecar_issues
from lswap_core.parallel import run_all
from lswap_core.plan import CARD_FILE, INDEX_FILE, MANIFEST_FILE, Plan, PlanSidecar, PlanSource
from lswap_core.ports import Output, Progress, Silence, Source
from lswap_core.recipe import LayerSwap
from lswap_core.sinks.local import LocalSink
from lswap_core.sinks.partial import check_destination
from lswap_core.sources.local import LocalSource
from lswap_core.sources.places import Places, Travel, is_remote, local_places
from lswap_core.streaming import StreamingEvaluator
from lswap_core.traffic import Traffic
from lswap_core.verifier import Diff, differing_tensors, tensor_diff

if TYPE_CHECKING:
    from lswap_core.changes import ChangeMaps

__all__ = [
    "analyze", "check_output", "check_repository", "diff", "draft_merge", "execute", "lay_out", "merge", "open_checkpoint",
    "push", "read_manifest", "read_plan", "travel", "verify", "write_plan",
]  # fmt: skip

DEVICES = ("auto", "cpu", "cuda")
StrPath = str | os.PathLike[str]
REMOTE_WORKERS = 16


class Execution(TypedDict, total=False):
    """What `execute` takes beside a plan and a place; see there."""

    progress: Progress | None
    workers: int | None
    device: str
    options: WriteOptions
    restart: bool
    traffic: Traffic | None


def open_checkpoint(path: StrPath, *, role: str, name: str | None = None) -> Checkpoint:
    """The catalogue of the checkpoint at `path`: a directory, one safetensors file, `base+adapter`, a checkpoint with a LoRA
    adapter over it, or, where there is no such path, `org/name[@revision]` on the hub or a URL; headers only, no data.

    role: `math`, `lang` or `base`. name: what to call it in what is published; by default its hub id where it lies on the hub
    or in its cache, else its directory's name. Raises FormatError, RecipeError (role), SourceError or OSError.
    """
    return Places().open(os.fspath(path), parse_role(role), name)


def default_workers(*, remote: bool = False) -> int:
    """Threads that a merge uses by default: the processors this process may run on, at most 8. remote: bytes come over a
    network, which threads spend their time waiting for.
    """
    return REMOTE_WORKERS if remote else min(8, len(os.sched_getaffinity(0)))


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
    place = check_destination(path, _places(plan))
    with open(place, "x", encoding="utf-8") as file:
        file.write(plan.to_json())


def check_output(plan: Plan, into: StrPath) -> None:
    """Raise what `execute` would where `into` is an impossible place."""
    check_destination(into, _places(plan))


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
    places, checkpoints, threads, evaluator_of = prepare(plan, locations, workers=workers, device=device)
    sidecars = _sidecar_bytes(plan, checkpoints[plan.host])
    local = [place for checkpoint in checkpoints.values() for place in local_places(checkpoint.location)]
    with closing(LocalSink(into, sources=local, options=options, traffic=traffic, restart=restart)) as sink:
        try:
            with places.source(checkpoints) as source:
                run = partial(executor.run, progress=progress or Silence(), workers=threads, digests=options.digest != "none")
                done = run(plan, source, sink, evaluator_of(source))
                source.check()
            manifest = complete(plan, done, sink, sidecars, digest=options.digest, workers=threads)
        except BaseException as error:
            (traffic or Traffic()).add("fetch", places.fetched_bytes)
            if sink.kept:
                error.add_note(f"what is done is kept in {sink.partial}; the same command goes on from there (--restart: anew)")
            raise
    (traffic or Traffic()).add("fetch", places.fetched_bytes)
    return manifest


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
    threads = _threads(workers)
    if digest == "sha256":
        run_all(lambda file, _: sink.hash_shard(file.name), plan.files, total_bytes=0, progress=Silence(), workers=threads)
    manifest = compile_manifest(plan, done, tool=f"lswap_core {_version()}", shard_sha256=sink.shard_sha256)
    for name, data in sidecars.items():
        sink.put(name, data)
    if plan.index is not None:
        sink.put(INDEX_FILE, plan.index.encode())
    sink.put(CARD_FILE, report.model_card(plan, manifest).encode())
    sink.put(MANIFEST_FILE, manifest.to_json().encode())
    sink.publish()
    return manifest


class Ready(NamedTuple):
    """What executing a plan needs beside a place: its sources, opened and found to be what was planned, threads, arithmetic."""

    places: Places
    checkpoints: dict[Role, Checkpoint]
    threads: int
    evaluator_of: Callable[[Source], Evaluator]


def prepare(plan: Plan, locations: Mapping[str, StrPath] | None, *, workers: int | None, device: str) -> Ready:
    """See `execute`, which raises the same."""
    _threads(workers)
    evaluator_of = _evaluating(device)
    places = Places()
    checkpoints = _reopen_all(places, plan, _given(locations or {}, {source.role for source in plan.sources}))
    return Ready(places, checkpoints, _threads(workers, remote=_are_remote(*checkpoints.values())), evaluator_of)


def host_sidecars(plan: Plan, locations: Mapping[str, StrPath] | None) -> dict[str, bytes]:
    """What is copied beside the shards, by name. Of the sources only the host is opened; StalePlanError where it changed."""
    moved = _given(locations or {}, {source.role for source in plan.sources})
    (host,) = (source for source in plan.sources if source.role == plan.host)
    return _sidecar_bytes(plan, _reopen(Places(), host, moved.get(host.role)))


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
    root = Path(output)
    manifest = read_manifest(root)
    places = Places()
    sources = _merged_sources(places, manifest, locations) if locations else {}
    threads = _threads(workers, remote=_are_remote(*sources.values()))
    issues = list(sidecar_issues(root, manifest, sources.get(manifest.host)))
    shards: list[Shard] = []
    for record in manifest.shards:
        try:
            shards.append(intact_shard(root, record, manifest))
        except (FormatError, OSError) as error:
            issues.append(f"shard {record.name}: {error}")
    written = Checkpoint("math", str(root), str(root), root.name, tuple(shards))
    with LocalSource({"math": written}) as out, places.source(sources) as inputs:
        issues += differing_tensors(
            manifest,
            out,
            inputs if sources else None,
            kernels,
            files=frozenset(shard.name for shard in shards),
            progress=progress or Silence(),
            workers=threads,
        )
    issues += shard_issues(root, manifest, frozenset(shard.name for shard in shards), workers=_threads(workers))
    if issues:
        raise VerificationError(f"{root} is not what its manifest says", issues)
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
    threads = _threads(workers, remote=_are_remote(first, second))
    with places.source({"math": first, "lang": second}) as source:
        return tensor_diff(first, second, source, kernels, progress=progress or Silence(), workers=threads)


def _places(plan: Plan) -> list[str]:
    """Local paths that the plan reads."""
    return [place for source in plan.sources for place in local_places(source.location)]


def analyze(
    *,
    math: Checkpoint,
    lang: Checkpoint,
    base: Checkpoint | None = None,
    layers: Collection[int] | None = None,
    layer_prefix: str | None = None,
    profiles: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> ChangeMaps:
    """Where two experts differ and, given their base, what each changed; one pass over all tensors, or those of `layers`.
    See `lswap_core.analysis.measure_changes`.
    """
    from lswap_core import survey

    return survey.analyze(
        math, lang, base,
        layers=layers, layer_prefix=layer_prefix, profiles=profiles, progress=progress or Silence(),
        workers=_threads(workers, remote=_are_remote(math, lang, base)),
    )  # fmt: skip


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
    from lswap_core import survey

    return survey.draft_measured(
        recipe, math, lang,
        base=base, changes=changes, auto=auto, progress=progress or Silence(),
        workers=_threads(workers, remote=_are_remote(math, lang, base)),
    )  # fmt: skip


def _version() -> str:
    from importlib.metadata import version  # loads a mail parser; a plan does without

    return version("lswap-core")


def _are_remote(*checkpoints: Checkpoint | None) -> bool:
    """Some of them do not lie on a local or mounted disk."""
    return any(checkpoint is not None and "://" in checkpoint.root for checkpoint in checkpoints)


def _threads(workers: int | None, *, remote: bool = False) -> int:
    if workers is not None and workers < 1:
        raise RecipeError(f"--workers is {workers}; expected 1 or more")
    return workers or default_workers(remote=remote)


def _given(locations: Mapping[str, StrPath], used: set[Role]) -> dict[Role, str]:
    """Locations by role; a RecipeError for a role that has no part in what was made."""
    given = {parse_role(role): os.fspath(path) for role, path in locations.items()}
    if idle := sorted(given.keys() - used):
        raise RecipeError(f"--{idle[0]} is given, but nothing was made from {idle[0]}")
    return given


def _evaluating(device: str) -> Callable[[Source], Evaluator]:
    """What evaluates expressions of a source on a device. Raises RecipeError where there is no such device."""
    if device not in DEVICES:
        raise RecipeError(f"--device is {device!r}; expected one of {', '.join(DEVICES)}")
    if device != "cuda":  # nothing was measured in which a GPU is faster for tensors on a disk, so `auto` takes none
        return lambda source: Evaluator(source, kernels)
    try:
        from lswap_core import gpu
    except ImportError as error:
        raise RecipeError(f"--device cuda: {error.name} is not installed; `pip install lswap-core[gpu]` brings it") from error
    slots = gpu.open_slots()
    return lambda source: StreamingEvaluator(source, kernels, slots)


def _reopen_all(places: Places, plan: Plan, moved: Mapping[Role, str]) -> dict[Role, Checkpoint]:
    """`_reopen` of every source; remote ones all at once, since that is mostly waiting."""
    remote = any(is_remote(moved.get(source.role, source.location)) for source in plan.sources)
    opened = run_all(
        lambda source, _: _reopen(places, source, moved.get(source.role)),
        plan.sources,
        total_bytes=0,
        progress=Silence(),
        workers=len(plan.sources) if remote else 1,
    )
    return {source.role: checkpoint for source, checkpoint in zip(plan.sources, opened, strict=True)}


def _reopen(places: Places, planned: PlanSource, moved_to: str | None) -> Checkpoint:
    """The checkpoint that a plan was made from, if it still is that; elsewhere, only fingerprints count."""
    checkpoint = places.open(moved_to or planned.location, planned.role, planned.name)
    now = {shard.name: shard for shard in checkpoint.files}
    for file in planned.files:
        shard = now.get(file.name)
        same = shard is not None and (shard.header.file_size, shard.fingerprint) == (file.size, file.fingerprint)
        if not same or not (moved_to or now[file.name].mtime_ns == file.mtime_ns):
            raise StalePlanError(f"{checkpoint.path_of(file.name)}: not the {planned.role} file that was planned; plan again")
    return checkpoint


def _sidecar_bytes(plan: Plan, host: Checkpoint) -> dict[str, bytes]:
    there = {sidecar.name: sidecar for sidecar in host.sidecars}

    def read(planned: PlanSidecar, _: object) -> bytes:
        if planned.name not in there or there[planned.name].sha256 != planned.sha256:
            raise StalePlanError(f"{host.path_of(planned.name)}: changed after it was planned; plan again")
        return there[planned.name].read()

    workers = REMOTE_WORKERS if _are_remote(host) else 1
    contents = run_all(read, plan.sidecars, total_bytes=0, progress=Silence(), workers=workers)
    return {planned.name: data for planned, data in zip(plan.sidecars, contents, strict=True)}


def _merged_sources(places: Places, manifest: Manifest, locations: Mapping[str, StrPath]) -> dict[Role, Checkpoint]:
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
