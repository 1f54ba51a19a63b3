"""Creates output files before their first step: linked to or cloned from a source's file where possible, else empty."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from lswap_core.errors import located
from lswap_core.io.ports import Source
from lswap_core.io.traffic import Traffic
from lswap_core.options import CopyMethod, Link
from lswap_core.plan.plan import OutputFile, Plan, Step
from lswap_core.plan.runs import Base, is_plain, is_shareable
from lswap_core.sinks.disk.kernel_copy import Copier, Span
from lswap_core.text.plain import format_size

LINKED, CLONED, WRITTEN = "link", "clone", "write"
"""How a file was created: as a link to the source's file, with all extents shared with it, or with a header and free space."""
SCRATCH_FILE = ".lswap-scratch"
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


def try_copying(plan: Plan, source: Source, scratch: Path, copier: Copier, method: CopyMethod) -> None:
    """Find out before any work whether extents can be shared. scratch: a file to try it on, which is removed.

    Raises RecipeError where the only copying method that was asked for does not work.
    """
    if method == "read_write":
        return
    tried = set()
    with located(scratch), open(scratch, "wb") as target:
        scratch.unlink()
        for role, file in {(s.made_of.refs[0].role, s.made_of.refs[0].file): None for s in plan.steps if is_plain(s)}:
            theirs = source.descriptor(role, file)
            if theirs is None or (device := os.fstat(theirs).st_dev) in tried:
                continue
            tried.add(device)
            if method in ("auto", "clone"):
                copier.clone_file(theirs, target.fileno())
            else:
                Copier(method, Traffic()).move(Span(theirs, 0, target.fileno(), 0, 1), lambda *_: None)


def check_space(folder: Path, left: Iterable[Step], copier: Copier) -> None:
    """Raises ENOSPC where the remaining steps do not fit. Bytes that can be shared with a source need no space."""
    needed = sum(step.size_bytes for step in left if not (copier.shares and is_shareable(step)))
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{format_size(needed)} are to be written, the disk has {format_size(free)} free"
        raise OSError(errno.ENOSPC, what, str(folder.parent))


def place(file: OutputFile, base: Base | None, source: Source, path: Path, *, copier: Copier, link: Link) -> str:
    """Create `path`, replacing an existing file. Returns how. Where it is shared, the base's shared steps are done."""
    path.unlink(missing_ok=True)
    theirs = None if base is None else source.descriptor(base.role, base.file)
    if base is not None and theirs is not None and _begins_alike(theirs, file):
        if link == "hard" and base.whole and _link(source.path_of(base.role, base.file), path):
            return LINKED
        with located(path), open(path, "xb") as handle:
            if copier.clone_file(theirs, handle.fileno()):
                return CLONED
        path.unlink()
    with located(path), open(path, "xb") as handle:
        handle.write(file.header.encode())
        handle.truncate(file.header.file_size)
    return WRITTEN


def _begins_alike(fd: int, file: OutputFile) -> bool:
    """Whether the source file has the output file's size and header."""
    head = file.header.encode()
    return os.fstat(fd).st_size == file.header.file_size and os.pread(fd, len(head), 0) == head


def _link(source: str, path: Path) -> bool:
    """Link the file. False where the filesystem cannot, or the two are on different ones."""
    try:
        os.link(os.path.realpath(source), path)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True
