"""Reopens the sources of a plan for its execution, and checks that they are what was planned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lswap_core.checkpoint.catalogue import Checkpoint, Role, Shard
from lswap_core.errors import StalePlanError
from lswap_core.io.locations import is_remote
from lswap_core.io.ports import Silence
from lswap_core.io.threads import run_all
from lswap_core.plan.plan import Plan, PlanSidecar, PlanSource, SourceFile
from lswap_core.sources.local import read_shard
from lswap_core.sources.places import AnySource, Places
from lswap_core.sources.range_stream import Count, RangeReader
from lswap_core.sources.remote import Folder, RemoteFile
from lswap_core.sources.remote_catalogue import FIRST_GUESS_BYTES, read_remote_shard, read_whole

_AT_ONCE = 16
"""Remote files that are checked at a time: each costs a round trip or two and almost no bytes."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """A source of a plan. location: its current one, in full. here: its files on a local disk. there: by name, files that the
    plan reads over a network. sidecars: the bytes of the files beside the weights that were asked for.
    """

    location: str
    here: Checkpoint | None
    there: Mapping[str, RemoteFile]
    sidecars: Mapping[str, bytes]


def reopen(
    places: Places, plan: Plan, role: Role, moved_to: str | None = None, *, tensors: bool = True, sidecars: bool = False
) -> Reopened:
    """Reopen a source of the plan where it was planned, or at `moved_to`, where only fingerprints count. tensors, sidecars:
    which of them are needed; sidecars only of the primary source.

    Raises StalePlanError where the source is no longer what was planned. Compares size, time and fingerprint of local files.
    Of remote files only those that the plan reads are checked, for size and time. `RemoteFile.confirm` compares their
    fingerprints while tensors are already being received, since that takes two more round trips.
    """
    (planned,) = (source for source in plan.sources if source.role == role)
    location, beside = moved_to or planned.location, plan.sidecars if sidecars else ()
    if is_remote(location):
        begins = _first_bytes(plan, role) if tensors else {}
        return _reopen_remote(places.folder(location), planned, beside, begins, moved=moved_to is not None, count=places.count)
    checkpoint = places.open(location, role, planned.name)
    now = {shard.name: shard for shard in checkpoint.files}
    for file in planned.files:
        shard = now.get(file.name)
        if shard is None or not _is(shard, file) or not (moved_to or shard.mtime_ns == file.mtime_ns):
            raise _stale(checkpoint.path_of(file.name), role)
    there = {sidecar.name: sidecar for sidecar in checkpoint.sidecars}
    contents = {}
    for wanted in beside:
        if wanted.name not in there or there[wanted.name].sha256 != wanted.sha256:
            raise _changed(checkpoint.path_of(wanted.name))
        contents[wanted.name] = there[wanted.name].read()
    return Reopened(checkpoint.location, checkpoint, {}, contents)


def source_of(reopened: Mapping[Role, Reopened], count: Count) -> AnySource:
    """The source of reopened sources' bytes."""
    here = {role: source.here for role, source in reopened.items() if source.here is not None}
    return AnySource(
        here, {(role, name): file for role, source in reopened.items() for name, file in source.there.items()}, count
    )


def _reopen_remote(
    folder: Folder,
    planned: PlanSource,
    beside: Sequence[PlanSidecar],
    begins: Mapping[str, int],
    *,
    moved: bool,
    count: Count,
) -> Reopened:
    """begins: for each file that the plan reads, the offset of the first byte that it reads."""

    def find(file: SourceFile) -> Shard | RemoteFile:
        path = f"{folder.root}/{file.name}"
        if (copy := folder.copy_of(file.name)) is not None:
            copied = read_shard(copy.parent, file.name)
            if not _is(copied, file):
                raise _stale(path, planned.role)
            return copied
        guess = min(begins[file.name], FIRST_GUESS_BYTES)
        remote = RemoteFile(folder, file.name, file.size, partial(_confirm, file, planned.role, guess=guess, count=count))
        try:
            remote.open()
            if not moved and folder.mtime_ns(file.name) != file.mtime_ns:
                raise _stale(path, planned.role)
        except FileNotFoundError:
            raise _stale(path, planned.role) from None
        return remote

    def read(sidecar: PlanSidecar) -> bytes:
        try:
            data = read_whole(folder, sidecar.name, count)
        except FileNotFoundError:
            raise _changed(f"{folder.root}/{sidecar.name}") from None
        if (len(data), hashlib.sha256(data).hexdigest()) != (sidecar.size, sidecar.sha256):
            raise _changed(f"{folder.root}/{sidecar.name}")
        return data

    def look(item: SourceFile | PlanSidecar, _: object) -> Shard | RemoteFile | bytes:
        return find(item) if isinstance(item, SourceFile) else read(item)

    wanted: list[SourceFile | PlanSidecar] = [*beside, *(file for file in planned.files if file.name in begins)]
    results = run_all(look, wanted, total_bytes=0, progress=Silence(), workers=_AT_ONCE)
    copies = tuple(each for each in results if isinstance(each, Shard))
    here = None
    if copies:
        copy = folder.copy_of(copies[0].name)
        assert copy is not None
        here = Checkpoint(planned.role, str(copy.parent), str(copy.parent), planned.name, copies)
    there = {each.name: each for each in results if isinstance(each, RemoteFile)}
    contents = {item.name: content for item, content in zip(wanted, results, strict=True) if isinstance(content, bytes)}
    return Reopened(folder.root, here, there, contents)


def _confirm(file: SourceFile, role: Role, reader: RangeReader, *, guess: int, count: Count) -> None:
    if not _is(read_remote_shard(reader, file.name, file.mtime_ns, guess, count), file):
        raise _stale(reader.path, role)


def _first_bytes(plan: Plan, role: Role) -> dict[str, int]:
    """For each file of a source that is read, the offset of its first tensor that is read."""
    begins: dict[str, int] = {}
    for step in plan.steps:
        for ref in step.made_of.refs:
            if ref.role == role:
                begins[ref.file] = min(ref.begin, begins.get(ref.file, ref.begin))
    return begins


def _is(shard: Shard, planned: SourceFile) -> bool:
    return (shard.header.file_size, shard.fingerprint) == (planned.size, planned.fingerprint)


def _stale(path: str, role: Role) -> StalePlanError:
    return StalePlanError(f"{path}: not the {role} file that was planned; plan again")


def _changed(path: str) -> StalePlanError:
    return StalePlanError(f"{path}: changed after it was planned; plan again")
