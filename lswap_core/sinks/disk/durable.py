"""Writing that is complete, and stays."""

from __future__ import annotations

import os
from pathlib import Path

from lswap_core.errors import located


def write_all(fd: int, data: bytes | memoryview, at: int | None = None) -> None:
    """All of `data`, at an offset or else where the file is."""
    rest = memoryview(data)
    while rest:
        count = os.write(fd, rest) if at is None else os.pwrite(fd, rest, at)
        rest = rest[count:]
        at = None if at is None else at + count


def sync_file(path: Path) -> None:
    """Make a file's bytes durable. Where that fails the file is removed: what the page cache still shows may not be on the
    disk, and a second try would say that all is well.
    """
    try:
        sync(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make a directory's names durable."""
    sync(path, os.O_DIRECTORY)


def sync(path: Path, flags: int = 0) -> None:
    """Make durable what is at `path`, and leave it there whatever happens. flags: to open it with."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        with located(path):
            os.fsync(fd)
    finally:
        os.close(fd)
