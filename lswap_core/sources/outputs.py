"""Reads a published output: its manifest, its shards, and how they differ from the manifest."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from fnmatch import fnmatch
from hashlib import file_digest
from pathlib import Path
from typing import Protocol

from lswap_core.checkpoint.catalogue import INDEX_FILE, Checkpoint, Shard
from lswap_core.errors import FormatError
from lswap_core.io.locations import is_remote
from lswap_core.io.ports import Silence, Tally
from lswap_core.io.threads import run_all
from lswap_core.plan.manifest import Manifest, ShardRecord
from lswap_core.plan.plan import MANIFEST_FILE
from lswap_core.sources.local import open_confined, read_shard, read_small
from lswap_core.sources.places import Places
from lswap_core.sources.range_stream import Count, Stream
from lswap_core.sources.remote import Folder
from lswap_core.sources.remote_catalogue import read_remote_shard, read_whole

_PIECE_BYTES = 1024 * 1024
_FIRST_GUESS_BYTES = 64 * 1024
STRAY = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""Weight files, which a directory may have only if its manifest names them."""


class PublishedOutput(Protocol):
    """The files of an output. Methods raise FormatError, OSError, SourceError."""

    @property
    def root(self) -> str:
        """The location of the output."""

    def read(self, name: str) -> bytes:
        """The content of a small file."""

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal."""

    def shard(self, name: str) -> Shard:
        """The header of a shard."""

    def names(self) -> Iterable[str]:
        """Names of the files beside the manifest."""


class LocalOutput:
    """An output on a local or mounted disk."""

    def __init__(self, root: Path) -> None:
        self._path = root
        self.root = str(root)
        """See `PublishedOutput`."""

    def read(self, name: str) -> bytes:
        """See `PublishedOutput`."""
        if (self._path / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory, not a file", str(self._path / name))
        return read_small(self._path, name)

    def sha256(self, name: str) -> str:
        """See `PublishedOutput`."""
        with open_confined(self._path, name) as file:
            return file_digest(file, "sha256").hexdigest()

    def shard(self, name: str) -> Shard:
        """See `PublishedOutput`."""
        return read_shard(self._path, name)

    def names(self) -> Iterable[str]:
        """See `PublishedOutput`."""
        return os.listdir(self._path) if self._path.is_dir() else ()


class RemoteOutput:
    """An output in an object store or on the hub."""

    def __init__(self, folder: Folder, count: Count) -> None:
        self._folder, self._count = folder, count
        self.root = folder.root
        """See `PublishedOutput`."""

    def read(self, name: str) -> bytes:
        """See `PublishedOutput`."""
        return read_whole(self._folder, name, self._count)

    def sha256(self, name: str) -> str:
        """See `PublishedOutput`."""
        reader, digest, buffer = self._folder.reader(name), hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
        with closing(Stream(reader, 0, reader.size, self._count)) as stream:
            while stream.at < stream.end:
                piece = buffer[: min(_PIECE_BYTES, stream.end - stream.at)]
                stream.read_into(piece)
                digest.update(piece)
        return digest.hexdigest()

    def shard(self, name: str) -> Shard:
        """See `PublishedOutput`."""
        return read_remote_shard(self._folder.reader(name), name, self._folder.mtime_ns(name), _FIRST_GUESS_BYTES, self._count)

    def names(self) -> Iterable[str]:
        """See `PublishedOutput`."""
        return (name for name in self._folder.sizes() if "/" not in name)


def open_output(place: str | os.PathLike[str], places: Places | None = None) -> PublishedOutput:
    """Open the output at a location: a path, a model on the hub, or a place in a store. See `lswap_core.io.locations`."""
    where = os.fspath(place)
    if not is_remote(where):
        return LocalOutput(Path(where))
    known = places or Places()
    return RemoteOutput(known.folder(where), known.count)


def read_manifest(output: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of the output at a path or URL. Raises FormatError where it is invalid, FileNotFoundError where it is
    missing.
    """
    return manifest_of(open_output(output))


def manifest_of(output: PublishedOutput) -> Manifest:
    """See `read_manifest`."""
    if MANIFEST_FILE not in output.names():
        what = f"no output of this program: there is no {MANIFEST_FILE} in it"
        raise FileNotFoundError(errno.ENOENT, what, output.root)
    return Manifest.from_json(output.read(MANIFEST_FILE), path=f"{output.root}/{MANIFEST_FILE}")


def intact_shard(output: PublishedOutput, record: ShardRecord, manifest: Manifest) -> Shard:
    """The output shard, if its size, header and tensors are the manifest's. Raises FormatError where they are not."""
    shard, path = output.shard(record.name), f"{output.root}/{record.name}"
    if (shard.header.file_size, shard.header_sha256) != (record.size, record.header_sha256):
        raise FormatError("size or header is not what the manifest says", path=path)
    start = shard.header.data_begin
    for name, info in shard.header.tensors.items():
        said = manifest.tensors.get(name)
        if said is None or (said.file, said.dtype, said.begin) != (record.name, info.dtype, start + info.begin):
            raise FormatError("is not where the manifest says, or not what it says", path=path, tensor=name)
    return shard


def sidecar_issues(output: PublishedOutput, manifest: Manifest, primary: Checkpoint | None) -> Iterator[str]:
    for record in manifest.sidecars:
        try:
            sha256 = output.sha256(record.name)
        except OSError as error:
            yield f"{record.name}: {error.strerror}"
        except FormatError as error:
            yield str(error)
        else:
            if sha256 != record.sha256:
                yield f"{record.name}: has SHA-256 {sha256}, the manifest says {record.sha256}"
    if primary is not None:
        theirs = {sidecar.name: sidecar for sidecar in primary.sidecars}
        for record in manifest.sidecars:
            if record.name != INDEX_FILE and (record.name not in theirs or theirs[record.name].sha256 != record.sha256):
                yield f"{record.name}: is not that of {manifest.primary}, {primary.location}"
    known = {shard.name for shard in manifest.shards}
    weights = (name for name in output.names() if name not in known and any(fnmatch(name, pattern) for pattern in STRAY))
    for stray in sorted(weights):
        yield f"{stray}: is not in the manifest; some loaders read whatever weights they find"


def shard_issues(output: PublishedOutput, manifest: Manifest, files: Collection[str], *, workers: int) -> list[str]:
    """One sentence for every shard among `files` whose SHA-256 is not the manifest's."""

    def check(record: ShardRecord, _: Tally) -> str | None:
        sha256 = output.sha256(record.name)
        return None if sha256 == record.sha256 else f"{record.name}: has SHA-256 {sha256}, the manifest says {record.sha256}"

    hashed = [record for record in manifest.shards if record.sha256 is not None and record.name in files]
    issues = run_all(check, hashed, total_bytes=0, progress=Silence(), workers=workers)
    return [issue for issue in issues if issue]
