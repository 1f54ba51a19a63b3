"""Complete writes, and durable files and directories."""

from __future__ import annotations

import os
from pathlib import Path

from lswap_core.errors import RecipeError, located


def write_all(fd: int, data: bytes | memoryview, at: int | None = None) -> None:
    """Write all of `data`, at an offset or at the file's position."""
    rest = memoryview(data)
    while rest:
        count = os.write(fd, rest) if at is None else os.pwrite(fd, rest, at)
        rest = rest[count:]
        at = None if at is None else at + count


def sync_file(path: Path) -> None:
    """Make a file's bytes durable. Where that fails, remove the file: the page cache may show bytes that are not on the disk,
    and a second fsync would report success.
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
    """Make the file at `path` durable. It is never removed. flags: to open it with."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        with located(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def publish(built: Path, destination: Path) -> None:
    """Rename a finished directory to its final name. Raises RecipeError where that name has been taken."""
    if os.path.lexists(destination):
        raise exists_already(destination)
    built.rename(destination)


def sync_name(destination: Path) -> None:
    """Make the final name durable. Without this, a power cut left only the old name on ext4, XFS and btrfs."""
    try:
        sync_directory(destination.parent)
    except OSError as error:
        error.add_note(f"{destination} is complete, but a power cut may take its name from it")
        raise


def exists_already(destination: Path, option: str = "--out") -> RecipeError:
    """The error to raise where something has the output's name. option: the command line's option for it."""
    return RecipeError(f"{destination} exists; an output is never written over, choose another {option} or remove it")
