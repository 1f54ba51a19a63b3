"""Determines the kind of disk of a file, as far as it matters for the order of reading."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3",
    "smbfs",
})  # fmt: skip
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted filesystem: mount point, type, source, and device numbers."""

    point: str
    kind: str
    device: str
    numbers: str


def reads_best_in_order(path: str, *, root: str = "/") -> bool:
    """Whether reading files one by one from first to last is fastest: the disk below `path` is rotational or behind a
    network. False where that is unknown. root: the directory of `proc` and `sys`.
    """
    mount = mount_of(os.path.realpath(path), root)
    if mount is None:
        return False
    if mount.kind in _NETWORK or mount.kind.startswith("fuse."):
        return True
    block = Path(root, "sys/dev/block", mount.numbers)
    if not block.exists():  # btrfs and others have device numbers of their own, not their disk's
        block = Path(root, "sys/class/block", os.path.basename(os.path.realpath(mount.device)))
    disk = Path(os.path.realpath(block))
    for place in (disk, disk.parent):  # a partition has no queue; its disk has one
        try:
            return (place / "queue/rotational").read_text().strip() == "1"
        except OSError:
            continue
    return False


def mount_of(path: str, root: str = "/") -> Mount | None:
    """The mount of an absolute path without links; the last one, where one hides another."""
    try:
        lines = Path(root, "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    best: Mount | None = None
    for line in lines:
        # man 5 proc: id, parent, major:minor, root, mount point, options, optional fields, "-", kind, source, options
        fields, _, rest = line.partition(" - ")
        before, after = fields.split(" "), rest.split(" ")
        if len(before) < 5 or len(after) < 2:
            continue
        point = _unescaped(before[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best.point)):
            best = Mount(point, after[0], _unescaped(after[1]), before[2])
    return best


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
