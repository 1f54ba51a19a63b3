"""A directory on a local or mounted disk, built beside its final place and published by one rename."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from threading import local

from lswap_core.descriptors import Descriptors
from lswap_core.digests import Digest
from lswap_core.errors import RecipeError
from lswap_core.plan import CLAIM_FILE, MANIFEST_FILE, OutputFile, Step
from lswap_core.ports import Source, Tally
from lswap_core.sizes import format_size

_PIECE_BYTES = 256 * 1024
"""See `lswap_core.evaluate.CHUNK_BYTES`."""


class LocalSink:
    """Writes to `.<name>.partial` beside `destination`. A lock, which a dead process does not hold, keeps others out."""

    def __init__(self, destination: str | os.PathLike[str], *, sources: Iterable[str] = ()) -> None:
        """Claim the partial directory. RecipeError where the destination exists, lies in, is or holds one of `sources`
        (paths), or is being written by another process.
        """
        # Links are followed up to the directory that the output appears in; the name itself must be free, links included.
        absolute = Path(os.path.abspath(destination))
        self._destination = Path(os.path.realpath(absolute.parent)) / absolute.name
        self._refuse_impossible(sources)
        self._partial = self._destination.with_name(f".{self._destination.name}.partial")
        self._directory = self._claim()
        self._descriptors = Descriptors(self._open)
        self._buffers = local()

    def create(self, files: tuple[OutputFile, ...]) -> None:
        """See `lswap_core.ports.Sink`. OSError (ENOSPC) where the disk has no room for them."""
        needed = sum(file.header.file_size for file in files)
        free = shutil.disk_usage(self._partial).free
        if needed > free:
            what = f"the output takes {format_size(needed)}, the disk has {format_size(free)} free"
            raise OSError(errno.ENOSPC, what, str(self._destination.parent))
        for file in files:
            with open(self._partial / file.name, "xb") as handle:
                handle.write(file.header.encode())
                handle.truncate(file.header.file_size)

    def copy(self, step: Step, source: Source, tally: Tally) -> str:
        """See `lswap_core.ports.Sink`."""
        digest = Digest()
        (ref,) = step.refs
        buffer: bytearray = self._buffers.__dict__.setdefault("copy", bytearray(_PIECE_BYTES))
        for offset in range(0, ref.size_bytes, _PIECE_BYTES):
            piece = memoryview(buffer)[: min(_PIECE_BYTES, ref.size_bytes - offset)]
            source.read_into(ref, offset, piece)
            digest.update(piece)
            self.write(step, offset, piece)
            tally(len(piece))
        return digest.text()

    def write(self, step: Step, offset: int, data: memoryview) -> None:
        """See `lswap_core.ports.Sink`."""
        fd = self._descriptors.get("out", step.file)
        at = step.begin + offset
        while data:
            count = os.pwrite(fd, data, at)
            data, at = data[count:], at + count

    def put(self, name: str, data: bytes) -> None:
        """See `lswap_core.ports.Sink`."""
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def publish(self) -> None:
        """See `lswap_core.ports.Sink`: files, then directories, are synced before the rename and the parent after it;
        without the last, a power cut left only the partial name on ext4, XFS and btrfs.
        """
        self._descriptors.close()
        (self._partial / CLAIM_FILE).unlink()
        for folder, _, files in os.walk(self._partial, topdown=False):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        self._refuse_existing()
        self._partial.rename(self._destination)
        _sync(self._destination.parent)

    def close(self) -> None:
        """Remove what is unpublished, and let go of the lock."""
        self._descriptors.close()
        if self._partial.exists():
            shutil.rmtree(self._partial)
        os.close(self._directory)

    def _open(self, _slot: str, name: str) -> int:
        return os.open(self._partial / name, os.O_WRONLY | os.O_CLOEXEC)

    def _refuse_existing(self) -> None:
        if os.path.lexists(self._destination):
            raise RecipeError(f"{self._destination} exists; an output is never written over, choose another --out or remove it")

    def _refuse_impossible(self, sources: Iterable[str]) -> None:
        for source in sources:
            real = Path(os.path.realpath(source))
            if self._destination == real or self._destination.is_relative_to(real) or real.is_relative_to(self._destination):
                raise RecipeError(f"the output {self._destination} is, holds or lies in the source {real}; choose another --out")
        self._refuse_existing()
        if not self._destination.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the output's parent directory does not exist", str(self._destination.parent))

    def _claim(self) -> int:
        self._partial.mkdir(exist_ok=True)
        directory = os.open(self._partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between mkdir and flock the directory may have been published, or abandoned, by whoever held it.
            ours = os.path.samestat(os.fstat(directory), os.stat(self._partial))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            os.close(directory)
            raise RecipeError(f"{self._destination} is being written by another process; wait for it or choose another --out")
        leftovers = list(self._partial.iterdir())
        if leftovers and not {CLAIM_FILE, MANIFEST_FILE} & {path.name for path in leftovers}:
            os.close(directory)
            raise RecipeError(f"{self._partial} is in the way and not of this program's making; move it or choose another --out")
        for path in leftovers:  # of a run that was killed
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (self._partial / CLAIM_FILE).touch()
        return directory


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
