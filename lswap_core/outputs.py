"""A published output: its manifest, its shards, and what of it is not as the manifest says."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from hashlib import file_digest
from pathlib import Path

from lswap_core.checkpoint import Checkpoint, Shard
from lswap_core.errors import FormatError
from lswap_core.manifest import Manifest, ShardRecord
from lswap_core.parallel import run_all
from lswap_core.plan import INDEX_FILE, MANIFEST_FILE
from lswap_core.ports import Silence, Tally
from lswap_core.sources.local import open_confined, read_shard, read_small

STRAY = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""Weights, which a directory should hold only if its manifest says so."""


def read_manifest(output: str | os.PathLike[str]) -> Manifest:
    """The manifest of the output directory; FormatError where it is none, FileNotFoundError where there is none."""
    root = Path(output)
    if not os.path.lexists(root / MANIFEST_FILE):
        what = f"no output of this program: there is no {MANIFEST_FILE} in it"
        raise FileNotFoundError(errno.ENOENT, what, str(root))
    if (root / MANIFEST_FILE).is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a manifest", str(root / MANIFEST_FILE))
    return Manifest.from_json(read_small(root, MANIFEST_FILE), path=str(root / MANIFEST_FILE))


def intact_shard(root: Path, record: ShardRecord, manifest: Manifest) -> Shard:
    """The output shard, if its size, header and tensors are what the manifest says."""
    shard = read_shard(root, record.name)
    if (shard.header.file_size, shard.header_sha256) != (record.size, record.header_sha256):
        raise FormatError("size or header is not what the manifest says", path=str(root / record.name))
    start = shard.header.data_begin
    for name, info in shard.header.tensors.items():
        said = manifest.tensors.get(name)
        if said is None or (said.file, said.dtype, said.begin) != (record.name, info.dtype, start + info.begin):
            raise FormatError("is not where the manifest says, or not what it says", path=str(root / record.name), tensor=name)
    return shard


def sidecar_issues(root: Path, manifest: Manifest, host: Checkpoint | None) -> Iterator[str]:
    for record in manifest.sidecars:
        try:
            with open_confined(root, record.name) as file:
                found = file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield f"{record.name}: {error.strerror}"
        except FormatError as error:
            yield str(error)
        else:
            if found != record.sha256:
                yield f"{record.name}: has SHA-256 {found}, the manifest says {record.sha256}"
    if host is not None:
        theirs = {sidecar.name: sidecar for sidecar in host.sidecars}
        for record in manifest.sidecars:
            if record.name != INDEX_FILE and (record.name not in theirs or theirs[record.name].sha256 != record.sha256):
                yield f"{record.name}: is not that of {manifest.host}, {host.location}"
    known = {shard.name for shard in manifest.shards}
    for stray in sorted(file.name for pattern in STRAY for file in root.glob(pattern) if file.name not in known):
        yield f"{stray}: is not in the manifest; some loaders read whatever weights they find"


def shard_issues(root: Path, manifest: Manifest, files: Collection[str], *, workers: int) -> list[str]:
    """One sentence for every shard among `files` that has not the SHA-256 that the manifest gives for all of it."""

    def check(record: ShardRecord, _: Tally) -> str | None:
        with open_confined(root, record.name) as file:
            found = file_digest(file, "sha256").hexdigest()
        return None if found == record.sha256 else f"{record.name}: has SHA-256 {found}, the manifest says {record.sha256}"

    hashed = [record for record in manifest.shards if record.sha256 is not None and record.name in files]
    found = run_all(check, hashed, total_bytes=0, progress=Silence(), workers=workers)
    return [issue for issue in found if issue]
