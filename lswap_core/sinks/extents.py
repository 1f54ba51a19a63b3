"""What Linux does with parts of files and Python does not offer: sharing extents, and pushing written pages out."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from functools import cache
from typing import Any

# <linux/fs.h>: _IOW(0x94, 9, int) and _IOW(0x94, 13, struct file_clone_range), on x86, Arm and RISC-V alike.
_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
# <fcntl.h>
_LOST = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
"""What became of pages on their way to the disk. Any other error says that the call is not to be had there."""
_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE, _SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4


def clone_file(source: int, target: int) -> None:
    """Make `target` share all extents of `source`; whatever it held is gone. OSError where the filesystem cannot."""
    fcntl.ioctl(target, _FICLONE, source)


def clone_range(source: int, source_at: int, target: int, target_at: int, size: int) -> None:
    """Make a range of `target` share the extents of a range of `source`. Offsets and size are whole blocks."""
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, source_at, size, target_at))


def start_writing(fd: int, begin: int, end: int) -> None:
    """Begin to write the dirty pages of a range to the disk, without waiting. OSError where the disk failed to take pages."""
    _sync_range(fd, begin, end, _SYNC_FILE_RANGE_WRITE)


def finish_writing(fd: int, begin: int, end: int) -> None:
    """Wait until the pages of a range are on their way out, then let the page cache have them back. No replacement for fsync.
    OSError where the disk failed to take pages.
    """
    _sync_range(fd, begin, end, _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER)
    os.posix_fadvise(fd, begin, end - begin, os.POSIX_FADV_DONTNEED)


def _sync_range(fd: int, begin: int, end: int, flags: int) -> None:
    # Its error must not be overlooked: the kernel tells of pages that it failed to write only once, and to an fsync after
    # this call, through another descriptor, no more.
    if _sync_file_range()(fd, begin, end - begin, flags) and (error := ctypes.get_errno()) in _LOST:
        raise OSError(error, os.strerror(error))


@cache
def _sync_file_range() -> Any:
    function = ctypes.CDLL(None, use_errno=True).sync_file_range
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function
