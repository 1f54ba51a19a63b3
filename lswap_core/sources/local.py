"""Reads checkpoints on a local or mounted disk."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from lswap_core.checkpoint.catalogue import INDEX_FILE, SINGLE_FILE, Checkpoint, Role, Shard, Sidecar, TensorRef
from lswap_core.checkpoint.header import LENGTH_BYTES, MAX_HEADER_BYTES, Header, parse_header, parse_length
from lswap_core.errors import FormatError, RecipeError, StalePlanError, became_shorter, located
from lswap_core.io.per_thread import Descriptors
from lswap_core.plan.runs import Run
from lswap_core.sources.directory import (
    NESTED,
    PICKLES,
    check_name,
    check_shard,
    is_sidecar,
    only_file,
    parse_index,
    pickled,
    sample_ranges,
)
from lswap_core.sources.disks import reads_best_in_order
from lswap_core.text.strict_json import is_unicode, parse_object


def open_local(path: str | Path, role: Role, name: str | None = None) -> Checkpoint:
    """Open a model directory (with an index, or with one model.safetensors) or one safetensors file.

    Reads headers and small files only. Raises FormatError for malformed files and OSError for files that cannot be read.
    """
    root = Path(path)
    if not is_unicode(str(root)):
        raise RecipeError(f"the path {str(root)!r} is no Unicode text, which plans and manifests are; rename it")
    if not root.is_dir():
        if any(root.match(pattern) for pattern in PICKLES):
            raise pickled(str(root), root.name)
        shard = read_shard(root.parent, root.name, path=str(root))
        return Checkpoint(role, str(root.absolute()), str(root.parent.absolute()), name or root.name, (shard,))
    index = root / INDEX_FILE
    text = None
    if os.path.lexists(index):
        raw = read_small(root, INDEX_FILE)
        shards = _indexed_shards(root, raw)
        text = raw.decode()
    else:
        shards = (read_shard(root, _only_file(root)),)
    config = None
    if os.path.lexists(root / "config.json"):
        config = parse_object(read_small(root, "config.json"), path=str(root / "config.json"), infinities=True)
    at = str(root.absolute())
    return Checkpoint(role, at, at, name or published_name(root), shards, text, config, tuple(_sidecars(root)))


def read_shard(root: Path, name: str, *, path: str | None = None) -> Shard:
    """Read and validate the header of one safetensors file."""
    where = path or str(root / name)
    fd = _open_regular(root / name if path else _confined(root, name), where)
    with located(where), open(fd, "rb", buffering=0) as file:  # closes fd
        status = os.fstat(fd)
        length = parse_length(file.read(LENGTH_BYTES), status.st_size, path=where)
        raw = file.read(length)
        header = parse_header(raw, data_size=status.st_size - LENGTH_BYTES - length, path=where)
        return Shard(name, header, status.st_mtime_ns, _sample(fd, header))


def _sample(fd: int, header: Header) -> bytes:
    return b"".join(os.pread(fd, end - begin, begin) for begin, end in sample_ranges(header))


class LocalSource:
    """Reads local checkpoints, by role. Every file is compared with its catalogue when it is opened, and by `check`."""

    def __init__(self, checkpoints: Mapping[Role, Checkpoint]) -> None:
        self._shards = {(str(role), shard.name): (c, shard) for role, c in checkpoints.items() for shard in c.files}
        self._descriptors = Descriptors(self._open)
        # One file of each is enough: shards of a checkpoint may be links, but to one place.
        first = {role: c.path_of(c.shards[0].name) for role, c in checkpoints.items() if c.shards}
        self.sequential = any(map(reads_best_in_order, first.values()))
        """Whether reading each file from first to last is faster: on rotational disks, and on network filesystems."""

    def arrange(self, runs: Sequence[Run]) -> Sequence[Run]:
        """See `lswap_core.io.ports.Source`."""
        return sorted(runs, key=lambda run: (run.source.role, run.source.file, run.source.begin)) if self.sequential else runs

    def expect(self, order: Sequence[Run]) -> None:
        """See `lswap_core.io.ports.Source`. The kernel reads ahead itself."""

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        """See `lswap_core.io.ports.Source`."""
        fd = self._descriptors.get(ref.role, ref.file)
        at, end = ref.begin + offset, ref.begin + offset + len(buffer)
        while at < end:
            with located(self.path_of(ref.role, ref.file)):
                count = os.preadv(fd, [buffer[at - end :]], at)
            if count == 0:
                raise became_shorter(self.path_of(ref.role, ref.file))
            at += count

    def descriptor(self, role: Role, file: str) -> int | None:
        """See `lswap_core.io.ports.Source`."""
        return self._descriptors.get(role, file)

    def path_of(self, role: str, file: str) -> str:
        """See `lswap_core.io.ports.Source`."""
        return self._shards[role, file][0].path_of(file)

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        """See `lswap_core.io.ports.Source`."""
        for ref in refs:
            self._check(ref.role, ref.file, self._descriptors.get(ref.role, ref.file))

    def check(self) -> None:
        """Raises StalePlanError where a file has changed since it was catalogued."""
        for role, file in self._shards:
            os.close(self._open(role, file))

    def close(self) -> None:
        """Close all files."""
        self._descriptors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self, role: str, file: str) -> int:
        path = self.path_of(role, file)
        fd = _open_regular(Path(path), path)
        try:
            self._check(role, file, fd)
        except StalePlanError:
            os.close(fd)
            raise
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # twice the usual read-ahead
        return fd

    def _check(self, role: str, file: str, fd: int) -> None:
        checkpoint, planned = self._shards[role, file]
        now = os.fstat(fd)
        if (now.st_size, now.st_mtime_ns) != (planned.header.file_size, planned.mtime_ns):
            path = checkpoint.path_of(file)
            raise StalePlanError(f"{path}: changed after it was planned ({now.st_size} bytes now); plan again")


def _open_regular(path: Path, where: str) -> int:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FormatError("is not a regular file", path=where)
    return fd


def _confined(root: Path, name: str) -> Path:
    """Path of `name` below `root`, checked after resolving symbolic links. A hub cache keeps its files in `blobs`, beside the
    snapshots that link to them.
    """
    real_root, target = Path(os.path.realpath(root)), Path(os.path.realpath(root / name))
    caches = [folder.parent / "blobs" for folder in real_root.parents if folder.name == "snapshots"]
    allowed = [real_root, *(Path(os.path.realpath(blobs)) for blobs in caches)]
    if not any(target.is_relative_to(place) for place in allowed):
        raise FormatError(f"leads out of the checkpoint's directory, to {target}", path=str(root / name))
    return root / name


def open_confined(root: Path, name: str) -> BufferedReader:
    """Open a regular file in `root`, whose links do not lead out of it. Raises FormatError for anything else."""
    path = _confined(root, name)
    return open(_open_regular(path, str(path)), "rb")


def read_small(root: Path, name: str) -> bytes:
    """Read a whole file beside the weights. Raises FormatError where it is no regular file in `root`, or implausibly large."""
    with located(root / name), open_confined(root, name) as file:
        if os.fstat(file.fileno()).st_size > MAX_HEADER_BYTES:
            raise FormatError(
                f"has over {MAX_HEADER_BYTES} bytes, too many for a file beside the weights; move it away", path=str(root / name)
            )
        return file.read()


def _indexed_shards(root: Path, raw: bytes) -> tuple[Shard, ...]:
    path = str(root / INDEX_FILE)
    weight_map = parse_index(raw, path=path, single_beside=os.path.lexists(root / SINGLE_FILE))
    shards = []
    for file, count in sorted(Counter(weight_map.values()).items()):
        try:
            shard = read_shard(root, file)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG) or os.path.lexists(root / file):
                raise
            missing = min(tensor for tensor, there in weight_map.items() if there == file)
            raise FormatError(f"shard {file} is missing", path=path, tensor=missing) from None
        shards.append(shard)
        check_shard(shard, count, weight_map, index_path=path, path=str(root / file))
    return tuple(shards)


def _only_file(root: Path) -> str:
    """The only safetensors file of a directory without an index. Raises FormatError."""
    return only_file(os.listdir(root), str(root))


def _sidecars(root: Path) -> Iterator[Sidecar]:
    nested = {file for pattern in NESTED for file in root.glob(pattern)}
    for file in sorted(nested | set(root.iterdir())):
        name = file.relative_to(root).as_posix()
        if is_sidecar(name) and not file.is_dir():
            check_name(name, str(root / name))
            open_confined(root, name).close()
            yield Sidecar(name, partial(read_small, root, name))


def published_name(root: Path) -> str:
    """The name of this checkpoint in published files: its hub id if it is in a hub cache, else its directory's name."""
    real = Path(os.path.realpath(root))
    repository = real.parent.parent.name
    if real.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return real.name or "model"
