"""Writes runs into the files of a directory: by sharing extents, in the kernel, or through a buffer that is digested."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import local
from typing import Any

from lswap_core.errors import located
from lswap_core.io.per_thread import Buffers, Descriptors
from lswap_core.io.pieces import Pieces
from lswap_core.io.ports import Source, Tally
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.runs import Run
from lswap_core.sinks.disk.durable import write_all
from lswap_core.sinks.disk.kernel_copy import Copier, Span

_PIECE_BYTES = 256 * 1024
"""See `lswap_core.engine.evaluate.CHUNK_BYTES`."""


class Mover:
    """Writes into existing files. Safe to use from several threads."""

    def __init__(
        self,
        root: Path,
        options: WriteOptions,
        traffic: Traffic,
        *,
        open_file: Callable[[str], int],
        on_loss: Callable[[Path], None],
    ) -> None:
        """open_file: opens a name in `root` for writing. on_loss: called with the path of a file of which the disk failed to
        write pages, before the error is raised.
        """
        self._root = root
        self._options = options
        self._traffic = traffic
        self._on_loss = on_loss
        self.copier = Copier(options.copy_method, traffic)
        self._writeback = Writeback()
        self._descriptors = Descriptors(lambda _, name: open_file(name))
        self._buffers = Buffers()

    def copy(self, run: Run, source: Source, tally: Tally, *, there: bool = False) -> list[StepRecord]:
        """A copied run, byte for byte. there: its bytes are in place, and only their digests are wanted."""
        pieces = Pieces(run, source, tally, self._options.digest)
        if there:
            self._through(run, 0, run.size_bytes, pieces, write=False)
        else:
            self._transfer(run, source, pieces)
        return pieces.records()

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """`data` at `offset` within a computed run."""
        self._write(run, offset, data)
        self._traffic.add("compute", len(data))

    def close(self) -> None:
        """Close all files. No thread may be using them."""
        self._descriptors.close()

    def _transfer(self, run: Run, source: Source, pieces: Pieces) -> None:
        """Share extents where the filesystem can. Else let the kernel copy, if no digest is wanted. Else use a buffer, where
        the bytes are digested while they are in the cache.
        """
        theirs, end = source.descriptor(run.source.role, run.source.file), run.size_bytes
        if theirs is None:
            return self._through(run, 0, end, pieces)
        span = Span(theirs, run.source.begin, self._descriptors.get("out", run.file), run.begin, end)
        with located(self._root / run.file):
            body = self.copier.clone(span)
        if body is not None:
            self._through(run, 0, body[0], pieces)
            if pieces.digested and self._options.digest != "auto":
                self._through(run, *body, pieces, write=False)
            else:
                pieces.skip(body[1] - body[0])
            return self._through(run, body[1], end, pieces)
        if pieces.digested and self._options.copy_method == "auto":
            return self._through(run, 0, end, pieces)

        def advance(begin: int, stop: int) -> None:
            self._wrote(run, span.target, run.begin + begin, run.begin + stop)
            if pieces.digested:
                self._through(run, begin, stop, pieces, write=False)
            else:
                pieces.skip(stop - begin)

        with located(self._root / run.file):
            done = self.copier.move(span, advance)
        return self._through(run, done, end, pieces)

    def _through(self, run: Run, begin: int, end: int, pieces: Pieces, *, write: bool = True) -> None:
        """Bring bytes [begin, end) of a run over through a buffer; or only digest them, if they are there already."""

        def memory(offset: int, size: int) -> memoryview:
            return self._buffers.get("piece", size, run.source.begin + offset)

        for offset, piece in pieces.read(begin, end, _PIECE_BYTES, memory):
            if write:
                self._write(run, offset, piece)
        if write and end > begin:
            self._traffic.add("read_write", end - begin)

    def _write(self, run: Run, offset: int, data: memoryview) -> None:
        fd, at = self._descriptors.get("out", run.file), run.begin + offset
        with located(self._root / run.file):
            write_all(fd, data, at)
        self._wrote(run, fd, at, at + len(data))

    def _wrote(self, run: Run, fd: int, begin: int, end: int) -> None:
        path = self._root / run.file
        try:
            with located(path):
                self._writeback.wrote(fd, begin, end)
        except OSError:
            self._on_loss(path)
            raise


WINDOW_BYTES = 8 * 1024 * 1024
"""Bytes that a thread writes before it starts writeback. Twice as many may be dirty for each thread."""


class Writeback:
    """Starts writeback of the ranges that are written. Each thread has its own window."""

    def __init__(self) -> None:
        self._mine = local()

    def wrote(self, fd: int, begin: int, end: int) -> None:
        """Report that bytes [begin, end) were written. While a full window is written back, the thread waits for the one
        before it.
        """
        held, at, to = getattr(self._mine, "window", (-1, 0, 0))
        if (held, to) != (fd, begin):
            self._mine.before = None
            at = begin
        self._mine.window = (fd, at, end)
        if end - at >= WINDOW_BYTES:
            start_writing(fd, at, end)
            if (before := self._mine.before) is not None:
                finish_writing(fd, *before)
            self._mine.before = (at, end)
            self._mine.window = (fd, end, end)


_LOST = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
"""Errors for pages that were lost on their way to the disk. Any other error means that the call is not supported."""

# <fcntl.h>
_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE, _SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4


def start_writing(fd: int, begin: int, end: int) -> None:
    """Begin writeback of a range's dirty pages, without waiting. Raises OSError where the disk failed to write pages."""
    _sync_range(fd, begin, end, _SYNC_FILE_RANGE_WRITE)


def finish_writing(fd: int, begin: int, end: int) -> None:
    """Wait for writeback of a range's pages, then drop them from the page cache. This does not replace fsync.

    Raises OSError where the disk failed to write pages.
    """
    _sync_range(fd, begin, end, _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER)
    os.posix_fadvise(fd, begin, end - begin, os.POSIX_FADV_DONTNEED)


def _sync_range(fd: int, begin: int, end: int, flags: int) -> None:
    # Its error must not be ignored: the kernel reports pages that it failed to write only once. An fsync after this call,
    # through another descriptor, does not report them again.
    if _sync_file_range()(fd, begin, end - begin, flags) and (error := ctypes.get_errno()) in _LOST:
        raise OSError(error, os.strerror(error))


@cache
def _sync_file_range() -> Any:
    function = ctypes.CDLL(None, use_errno=True).sync_file_range
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function
