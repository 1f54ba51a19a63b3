"""What kind of disk a file lies on, as far as the order of reading matters."""

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
    """One mounted filesystem: where it is seen, its kind, what it is of, and the numbers of its device."""

    point: str
    kind: str
    device: str
    numbers: str


def reads_best_in_order(path: str, *, root: str = "/") -> bool:
    """The disk below `path` turns, or lies behind a network: reading its files one by one from first to last is faster than
    jumping about. False where that cannot be known. root: where `proc` and `sys` are.
    """
    mount = mount_of(os.path.realpath(path), root)
    if mount is None:
        return False
    if mount.kind in _NETWORK or mount.kind.startswith("fuse."):
        return True
    block = Path(root, "sys/dev/block", mount.numbers)
    if not block.exists():  # btrfs and others number themselves, not their disk
        block = Path(root, "sys/class/block", os.path.basename(os.path.realpath(mount.device)))
    disk = Path(os.path.realpath(block))
    for place in (disk, disk.parent):  # a partition has no queue, its disk has
        try:
            return (place / "queue/rotational").read_text().strip() == "1"
        except OSError:
            continue
    return False


def mount_of(path: str, root: str = "/") -> Mount | None:
    """The mount that an absolute path without links lies on; the last one, where one hides another."""
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
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
