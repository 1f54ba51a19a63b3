"""Opens a source in any place: a local directory, a model on the hub, a prefix in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Self

from lswap_core.checkpoint.catalogue import Checkpoint, Role, TensorRef, parse_role
from lswap_core.io.locations import are_remote, is_remote, parse_hub_id
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import Run, runs
from lswap_core.sources import hub, object_stores
from lswap_core.sources.adapters import open_source, places_of
from lswap_core.sources.local import LocalSource
from lswap_core.sources.range_stream import Count
from lswap_core.sources.remote import Folder, RemoteFile, RemoteSource, spans_of
from lswap_core.sources.remote_catalogue import local_copies, open_folder


def local_places(location: str) -> tuple[str, ...]:
    """The local paths that a location names."""
    return () if is_remote(location) else places_of(location)


@dataclass(frozen=True, slots=True)
class Travel:
    """Network traffic of executing a plan: bytes of tensors and of files beside the weights, and the bytes of a full download
    of the remote sources. Headers and samples, some 30 kB per shard, are not counted in the first.
    """

    needed: int
    download: int


class Places:
    """Opens checkpoints and reads them. What it learns about a remote one while opening is used for reading."""

    def __init__(self) -> None:
        self._folders: dict[str, Folder] = {}
        self._lock = Lock()
        self.fetched_bytes = 0
        """Bytes received over the network so far."""

    def open(self, location: str, role: Role, name: str | None = None) -> Checkpoint:
        """Open the checkpoint at `location`. Reads headers and small files only.

        An existing path wins, or two of them as `base+adapter`; then `hf://org/name[@revision]`, `org/name[@revision]` and
        URLs of object stores. Raises FormatError for malformed files, RecipeError for an impossible location, SourceError for
        a source that cannot be reached, and OSError for files that cannot be read.
        """
        if not is_remote(location):
            return open_source(location, role, name)
        return open_folder(self.folder(location), role, name, self.count)

    def folder(self, location: str) -> Folder:
        """The files at a remote location. Raises as `open`."""
        folder = _open_folder(location)
        return self._folders.setdefault(folder.root, folder)

    def source(self, checkpoints: Mapping[Role, Checkpoint]) -> AnySource:
        """The source of checkpoints' bytes."""
        here: dict[Role, Checkpoint] = {}
        there: dict[tuple[Role, str], RemoteFile] = {}
        for role, checkpoint in checkpoints.items():
            if not are_remote(checkpoint):
                here[role] = checkpoint
                continue
            if checkpoint.root not in self._folders:
                self._folders[checkpoint.root] = _open_folder(checkpoint.root)
            folder, copied = self._folders[checkpoint.root], set[str]()
            if (copies := local_copies(folder, checkpoint)) is not None:
                here[role], copied = copies, {shard.name for shard in copies.shards}
            left = (shard for shard in checkpoint.files if shard.name not in copied)
            there |= {(role, shard.name): RemoteFile(folder, shard.name, shard.header.file_size) for shard in left}
        return AnySource(here, there, self.count)

    def travel(self, plan: Plan) -> Travel | None:
        """The traffic from remote sources for `plan`; None where all of them are local. Files in the local cache do not
        count.
        """
        remote = [source for source in plan.sources if is_remote(source.location)]
        if not remote:
            return None
        spans = spans_of(list(runs(plan.steps)))
        needed = download = 0
        for source in remote:
            folder = _open_folder(source.location)
            for file in source.files:
                if folder.copy_of(file.name) is None:
                    needed += spans[source.role, file.name].size_bytes if (source.role, file.name) in spans else 0
                    download += file.size
            if source.role == plan.primary:
                beside = sum(sidecar.size for sidecar in plan.sidecars if folder.copy_of(sidecar.name) is None)
                needed, download = needed + beside, download + beside
        return Travel(needed, download)

    def count(self, count: int) -> None:
        """Count bytes received over the network."""
        with self._lock:
            self.fetched_bytes += count


def _open_folder(location: str) -> Folder:
    repository = parse_hub_id(location)
    return object_stores.StoreFolder(location) if repository is None else hub.HubFolder(*repository)


class AnySource:
    """Reads checkpoints of which each file may be local or remote."""

    def __init__(
        self, here: Mapping[Role, Checkpoint], there: Mapping[tuple[Role, str], RemoteFile], count: Count = lambda _: None
    ) -> None:
        """there: the files to read remotely, even if `here` has the same checkpoint."""
        self._here, self._there = LocalSource(here), RemoteSource(there, count)
        self._remote = there.keys()

    def arrange(self, runs: Sequence[Run]) -> Sequence[Run]:
        """See `lswap_core.io.ports.Source`."""
        return self._there.arrange(runs) if self._remote else self._here.arrange(runs)

    def expect(self, order: Sequence[Run]) -> None:
        """See `lswap_core.io.ports.Source`."""
        self._there.expect(order)

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        """See `lswap_core.io.ports.Source`."""
        self._of(ref.role, ref.file).read_into(ref, offset, buffer)

    def descriptor(self, role: Role, file: str) -> int | None:
        """See `lswap_core.io.ports.Source`."""
        return None if (role, file) in self._remote else self._here.descriptor(role, file)

    def path_of(self, role: Role, file: str) -> str:
        """See `lswap_core.io.ports.Source`."""
        return self._of(role, file).path_of(role, file)

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        """See `lswap_core.io.ports.Source`."""
        for ref in refs:
            self._of(ref.role, ref.file).confirm([ref])

    def check(self) -> None:
        """Raises StalePlanError where a local file has changed since it was catalogued."""
        self._here.check()

    def close(self) -> None:
        """Close all files and connections."""
        self._there.close()
        self._here.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _of(self, role: Role, file: str) -> LocalSource | RemoteSource:
        return self._there if (role, file) in self._remote else self._here


def open_checkpoint(path: str | os.PathLike[str], *, role: str, name: str | None = None) -> Checkpoint:
    """Open the checkpoint at `path`. Reads headers only, no data.

    path: a directory, one safetensors file, `base+adapter` for a checkpoint with a LoRA adapter or, where no such path
    exists, `org/name[@revision]` on the hub or a URL. role: any identifier; layer swapping uses `math`, `lang` and `base`.
    name: its name in published files; by default its hub id if it is on the hub or in its cache, else its directory's name.
    Raises FormatError, RecipeError (role), SourceError or OSError.
    """
    return Places().open(os.fspath(path), parse_role(role), name)
