"""Copies between two files in the kernel, without the bytes passing through this process. The fastest way that a pair of
filesystems supports is determined by trying, once for each pair.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from lswap_core.errors import RecipeError
from lswap_core.io.traffic import Traffic
from lswap_core.options import CopyMethod

PIECE_BYTES = 8 * 1024 * 1024
"""Most bytes of one call. Progress and interruptions are handled between two calls."""

_LARGEST_BLOCK = 64 * 1024

_USUAL_BLOCK = 4096

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_NEVER = frozenset({
    errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ETXTBSY,
})  # fmt: skip
"""The filesystem, or the pair, does not support the call. Other errors, such as read errors, show best in reading."""


@dataclass(frozen=True, slots=True)
class Span:
    """`size` bytes of an open file from `source_at` on, and their place in another, from `target_at` on."""

    source: int
    source_at: int
    target: int
    target_at: int
    size: int

    def part(self, begin: int, end: int) -> Span:
        """Bytes [begin, end) of the span."""
        return Span(self.source, self.source_at + begin, self.target, self.target_at + begin, end - begin)


class Copier:
    """Copies spans. Safe to use from several threads, as long as no two use one target descriptor."""

    def __init__(self, method: CopyMethod, traffic: Traffic) -> None:
        """method: the only one to try before reading and writing; `auto` tries all."""
        self._method = method
        self._traffic = traffic
        self._refused: set[tuple[str, int, int]] = set()
        self.shares = False
        """Whether cloning has worked."""

    def clone_file(self, source: int, target: int) -> bool:
        """Make `target` share all of `source`. False where that is impossible."""
        cloned = self._may("clone", source, target) and self._try("clone", source, target, lambda: clone_file(source, target))
        self.shares |= cloned
        return cloned

    def clone(self, span: Span) -> tuple[int, int] | None:
        """Share the whole blocks of `span`. Returns their range [begin, end), None where nothing can be shared."""
        block = max(_block_bytes(span.source), _block_bytes(span.target))
        begin = -span.target_at % block
        end = span.size - (span.target_at + span.size) % block
        if (span.source_at - span.target_at) % block or begin >= end or not self._may("clone", span.source, span.target):
            return None
        body = span.part(begin, end)

        def call() -> None:
            clone_range(body.source, body.source_at, body.target, body.target_at, body.size)

        if not self._try("clone", span.source, span.target, call):
            return None
        self._traffic.add("clone", body.size)
        return begin, end

    def move(self, span: Span, advance: Callable[[int, int], None]) -> int:
        """Copy in the kernel. Returns the number of bytes copied, from the first on. The caller reads and writes the rest.

        advance: called with the range [begin, end) of the span that each call has copied.
        """
        done = 0
        if self._may("copy_file_range", span.source, span.target):
            done = self._drive("copy_file_range", span, done, advance)
        if done < span.size and self._may("sendfile", span.source, span.target):
            os.lseek(span.target, span.target_at + done, os.SEEK_SET)
            done = self._drive("sendfile", span, done, advance)
        return done

    def _drive(self, method: str, span: Span, done: int, advance: Callable[[int, int], None]) -> int:
        while done < span.size:
            rest, count = span.part(done, min(span.size, done + PIECE_BYTES)), 0

            def call(rest: Span = rest) -> None:
                nonlocal count
                if method == "sendfile":
                    count = os.sendfile(rest.target, rest.source, rest.source_at, rest.size)
                else:
                    count = os.copy_file_range(rest.source, rest.target, rest.size, rest.source_at, rest.target_at)

            # Nothing moved, without an error: the file ends here, or the filesystem is unusual. Reading will show which.
            if not self._try(method, span.source, span.target, call) or count == 0:
                break
            self._traffic.add(method, count)
            advance(done, done + count)
            done += count
        return done

    def _may(self, method: str, source: int, target: int) -> bool:
        return self._method in ("auto", method) and (method, *_devices(source, target)) not in self._refused

    def _try(self, method: str, source: int, target: int, call: Callable[[], None]) -> bool:
        try:
            call()
        except OSError as error:
            if error.errno in _FULL:
                raise
            if error.errno in _NEVER:
                if self._method == method:
                    raise RecipeError(
                        f"--copy-method {method} does not work between these files ({error.strerror}); leave it out"
                    ) from None
                self._refused.add((method, *_devices(source, target)))
            return False
        return True


def _devices(source: int, target: int) -> tuple[int, int]:
    return os.fstat(source).st_dev, os.fstat(target).st_dev


def _block_bytes(fd: int) -> int:
    """The size of extents' blocks. Network filesystems report their preferred transfer size instead."""
    size = os.fstatvfs(fd).f_bsize
    return size if _USUAL_BLOCK <= size <= _LARGEST_BLOCK and size & (size - 1) == 0 else _USUAL_BLOCK


# <linux/fs.h>: _IOW(0x94, 9, int) and _IOW(0x94, 13, struct file_clone_range), on x86, Arm and RISC-V alike.
_FICLONE = 0x40049409

_FICLONERANGE = 0x4020940D


def clone_file(source: int, target: int) -> None:
    """Make `target` share all extents of `source`. Its old content is lost. Raises OSError where the filesystem cannot."""
    fcntl.ioctl(target, _FICLONE, source)


def clone_range(source: int, source_at: int, target: int, target_at: int, size: int) -> None:
    """Make a range of `target` share the extents of a range of `source`. Offsets and size are multiples of the block size."""
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, source_at, size, target_at))
