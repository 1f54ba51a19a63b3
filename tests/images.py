"""Filesystems in image files, mounted by loopback: only where this machine allows it, and never left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BLOCK_BYTES = 4096
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


@dataclass(frozen=True)
class Mounted:
    """A filesystem of our own, seen at `point`."""

    kind: str
    image: Path
    point: Path

    @property
    def shares(self) -> bool:
        """Files can share extents."""
        return self.kind != "ext4"

    def sync(self) -> None:
        """Write everything to the image, this filesystem's alone."""
        run("sync", "-f", self.point)

    def remount(self) -> None:
        """Forget all that is cached of it."""
        run("umount", self.point)
        run("mount", "-o", "loop", self.image, self.point)

    def used_bytes(self) -> int:
        """Allocated, once everything is written."""
        self.sync()
        status = os.statvfs(self.point)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


@contextmanager
def mounted(kind: str, root: Path, *, size_bytes: int = 512 * 1024 * 1024) -> Iterator[Mounted]:
    """A fresh filesystem in a sparse image in `root`; skips the test, saying why, where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    for tool in (MAKE[kind][0], "mount", "umount"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    point, image = root / kind, root / f"{kind}.img"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    run(*MAKE[kind], image)
    done = subprocess.run(["mount", "-o", "loop", image, point], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount {kind} here: {done.stderr.strip()}")
    try:
        yield Mounted(kind, image, point)
    finally:
        # The loop device goes with the mount. What is still open, after a failure, must not keep it.
        if subprocess.run(["umount", point], capture_output=True, check=False).returncode:
            run("umount", "--lazy", point)
        image.unlink()


def run(*argv: str | Path) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


def blocks_on_disk(path: Path) -> dict[int, int]:
    """Where each block of a file lies: number in the file to number on the disk. Skips where filefrag is not to be had."""
    if shutil.which("filefrag") is None:
        pytest.skip("there is no filefrag here")
    found: dict[int, int] = {}
    for line in run("filefrag", "-s", "-v", f"-b{BLOCK_BYTES}", path).splitlines():
        fields = line.replace("..", ":").replace(" ", "").split(":")
        if fields[0].isdecimal() and len(fields) > 5 and "inline" not in line:
            logical, last, physical = map(int, fields[1:4])
            found |= {logical + k: physical + k for k in range(last - logical + 1)}
    return found
