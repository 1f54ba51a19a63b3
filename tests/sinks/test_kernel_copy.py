"""Copying by the kernel: whatever a call gives back, the bytes are there to the last one, or an error is."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lswap_core import LayerSwap, WriteOptions, merge
from lswap_core.errors import RecipeError
from lswap_core.io.traffic import Traffic
from lswap_core.sinks.disk import kernel_copy, writing
from lswap_core.sinks.disk.kernel_copy import PIECE_BYTES, Copier, Span
from lswap_core.sinks.disk.writing import WINDOW_BYTES, Writeback
from tests.build import llama_pair, tree

CALLS = ("copy_file_range", "sendfile")
NEVER = [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ETXTBSY]
Done = list[tuple[int, int]]


@pytest.fixture
def span(tmp_path: Path) -> Iterator[Span]:
    """The inside of a file of random bytes, bound for another place in a file that is there already."""
    (tmp_path / "source").write_bytes(random.Random(3).randbytes(200_000))
    (tmp_path / "target").write_bytes(bytes(250_000))
    fds = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_RDWR)
    yield Span(fds[0], 1001, fds[1], 7003, 150_000)
    for fd in fds:
        os.close(fd)


def moved(span: Span, copier: Copier) -> tuple[int, Done]:
    """Move; what is not in the first so many bytes must still be zero, and what is, right. Ranges told are those, in order."""
    told: Done = []
    done = copier.move(span, lambda begin, end: told.append((begin, end)))
    at = 0
    for begin, end in told:
        assert at == begin < end
        at = end
    assert at == done <= span.size
    written = os.pread(span.target, 250_000, 0)
    body = os.pread(span.source, done, span.source_at)
    assert written == bytes(span.target_at) + body + bytes(250_000 - span.target_at - done)
    return done, told


def shorten(call: Callable[..., int], most: int) -> Callable[..., int]:
    """The call, doing `most` bytes at a time."""
    if call is os.sendfile:
        return lambda out, source, offset, count: call(out, source, offset, min(count, most))
    return lambda source, target, count, *offsets: call(source, target, min(count, most), *offsets)


def refuse(code: int, calls: list[int]) -> Callable[..., int]:
    def call(*_: Any) -> int:
        calls.append(code)
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("method", CALLS)
def test_whole_spans(span: Span, method: Any) -> None:
    traffic = Traffic()
    assert moved(span, Copier(method, traffic))[0] == span.size
    assert traffic.bytes_by_method == {method: span.size}


@pytest.mark.parametrize("method", CALLS)
def test_short_copies_are_continued(span: Span, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, method, shorten(getattr(os, method), 4097))
    done, told = moved(span, Copier(method, Traffic()))
    assert done == span.size
    assert len(told) == -(-span.size // 4097)


@pytest.mark.parametrize("method", CALLS)
def test_pieces_are_of_bounded_size(tmp_path: Path, method: Any) -> None:
    size = 2 * PIECE_BYTES + 5
    for name in ("source", "target"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("r+b") as target:
        told: Done = []
        span = Span(source.fileno(), 0, target.fileno(), 0, size)
        assert Copier(method, Traffic()).move(span, lambda begin, end: told.append((begin, end))) == size
    assert max(end - begin for begin, end in told) <= PIECE_BYTES


@pytest.mark.parametrize("code", NEVER)
def test_what_never_works_is_tried_once(span: Span, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "copy_file_range", refuse(code, calls))
    traffic = Traffic()
    copier = Copier("auto", traffic)
    assert [moved(span, copier)[0] for _ in range(3)] == [span.size] * 3
    assert traffic.bytes_by_method == {"sendfile": 3 * span.size}
    assert calls == [code]
    monkeypatch.setattr(os, "sendfile", refuse(code, calls))
    os.pwrite(span.target, bytes(250_000), 0)
    assert [moved(span, copier)[0] for _ in range(3)] == [0] * 3
    assert calls == [code] * 2


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("code", NEVER)
def test_a_method_that_was_asked_for_and_does_not_work_is_an_error(
    span: Span, monkeypatch: pytest.MonkeyPatch, method: Any, code: int
) -> None:
    monkeypatch.setattr(os, method, refuse(code, []))
    with pytest.raises(RecipeError, match=f"--copy-method {method} does not work between these files"):
        moved(span, Copier(method, Traffic()))


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_at_once(span: Span, monkeypatch: pytest.MonkeyPatch, method: Any, code: int) -> None:
    monkeypatch.setattr(os, method, refuse(code, []))
    for choice in ("auto", method) if method == "copy_file_range" else (method,):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what matters
            moved(span, Copier(choice, Traffic()))
        assert caught.value.errno == code


@pytest.mark.parametrize("code", [errno.EIO, errno.EINTR, errno.EAGAIN, errno.ENOMEM])
def test_a_failure_that_may_pass_leaves_the_rest_to_the_next_way(span: Span, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real, calls = os.copy_file_range, [0]

    def third_fails(source: int, target: int, count: int, *offsets: int) -> int:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(code, os.strerror(code))
        return real(source, target, min(count, 10_000), *offsets)

    monkeypatch.setattr(os, "copy_file_range", third_fails)
    traffic = Traffic()
    copier = Copier("auto", traffic)
    assert moved(span, copier)[0] == span.size
    assert traffic.bytes_by_method == {"copy_file_range": 20_000, "sendfile": span.size - 20_000}
    assert moved(span, copier)[0] == span.size
    assert calls[0] > 4  # it is tried again


def test_nothing_moved_without_an_error_is_no_end(span: Span, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    traffic = Traffic()
    assert moved(span, Copier("auto", traffic))[0] == span.size
    assert traffic.bytes_by_method == {"sendfile": span.size}
    monkeypatch.setattr(os, "sendfile", lambda *_: 0)
    os.pwrite(span.target, bytes(250_000), 0)
    assert moved(span, Copier("auto", traffic)) == (0, [])


@pytest.mark.parametrize("method", CALLS)
def test_a_source_that_ends_early_moves_what_is_there(span: Span, method: Any) -> None:
    os.truncate(f"/proc/self/fd/{span.source}", span.source_at + 70_001)
    assert moved(span, Copier(method, Traffic()))[0] == 70_001


@pytest.mark.parametrize("method", CALLS)
def test_real_interruptions(span: Span, method: Any) -> None:
    rings: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: rings.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(10_000):
            assert moved(span, Copier(method, Traffic()))[0] == span.size
            if len(rings) > 100:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rings) > 100


def test_reading_and_writing_alone_lets_the_kernel_do_nothing(span: Span) -> None:
    copier = Copier("read_write", Traffic())
    assert moved(span, copier) == (0, [])
    assert copier.clone(Span(span.source, 4096, span.target, 4096, 100_000)) is None
    assert not copier.clone_file(span.source, span.target)


@pytest.mark.parametrize("failing", [("copy_file_range",), CALLS, (*CALLS, "ioctl")])
@pytest.mark.parametrize("how", [errno.EXDEV, errno.EIO, errno.EINTR])
@pytest.mark.parametrize("digest", ["auto", "none"])
def test_a_merge_is_the_same_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Any, how: int, digest: Any
) -> None:
    pair = llama_pair(tmp_path / "sources")
    options = WriteOptions(digest=digest)
    swap = LayerSwap(bottom=2, transition=1)
    merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "expected", options=options)
    for call in failing:
        monkeypatch.setattr(fcntl if call == "ioctl" else os, call, refuse(how, []))
    merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "out", options=options)
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")


# --- spans that can be cloned, and are asked about, without a filesystem that can -----------------------------------


def test_only_whole_blocks_in_phase_are_cloned(span: Span, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(kernel_copy, "clone_range", lambda _, begin, __, at, size: asked.append((begin, at, size)))
    random_ = random.Random(5)
    for _ in range(2000):
        source_at, size = random_.randrange(60_000), random_.randrange(1, 40_000)
        target_at = source_at + random_.choice([0, 4096, 8192, 1, 512, 4095])
        asked.clear()
        found = Copier("auto", Traffic()).clone(Span(span.source, source_at, span.target, target_at, size))
        whole = [b for b in range(0, 120_000, 4096) if target_at <= b and b + 4096 <= target_at + size]
        if (target_at - source_at) % 4096 or not whole:
            assert (found, asked) == (None, [])
        else:
            assert found == (whole[0] - target_at, whole[-1] + 4096 - target_at)
            assert asked == [(source_at + found[0], whole[0], len(whole) * 4096)]


@pytest.mark.parametrize(
    ("reported", "block"), [(4096, 4096), (16384, 16384), (65536, 65536), (1 << 20, 4096), (512, 4096), (5000, 4096)]
)
def test_blocks_are_what_the_filesystem_says_if_that_is_likely(
    span: Span, monkeypatch: pytest.MonkeyPatch, reported: int, block: int
) -> None:
    real = os.fstatvfs(span.source)

    class Status:
        f_bsize = reported

    assert real.f_bsize > 0
    monkeypatch.setattr(os, "fstatvfs", lambda _: Status)
    monkeypatch.setattr(kernel_copy, "clone_range", lambda *_: None)
    found = Copier("auto", Traffic()).clone(Span(span.source, 1000, span.target, 1000, 140_000))
    assert found == (block - 1000, (141_000 // block) * block - 1000)


# --- written pages ---------------------------------------------------------------------------------------------------


def test_full_windows_go_out_one_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, int, int, int]] = []
    for name in ("start_writing", "finish_writing"):
        monkeypatch.setattr(writing, name, lambda fd, begin, end, name=name: events.append((name, fd, begin, end)))
    push = Writeback()
    random_ = random.Random(7)
    written: dict[int, list[tuple[int, int]]] = {3: [], 4: []}
    fd, at = 3, 0
    for _ in range(3000):
        if random_.random() < 0.01:  # elsewhere, as when the next run is in another file
            fd, at = random_.choice([3, 4]), at + random_.randrange(1 << 20)
        size = random_.randrange(1, 1 << 18)
        push.wrote(fd, at, at + size)
        written[fd].append((at, at + size))
        at += size
    started = [event[1:] for event in events if event[0] == "start_writing"]
    assert len(started) > 20
    assert len(set(started)) == len(started)
    for fd, begin, end in started:
        assert end - begin >= WINDOW_BYTES
        inside = [(b, e) for b, e in written[fd] if begin <= b and e <= end]
        assert sum(e - b for b, e in inside) == end - begin
    waited = [event[1:] for event in events if event[0] == "finish_writing"]
    assert 10 < len(waited) < len(started)
    for number, (name, fd, _, end) in enumerate(events):
        if name == "finish_writing":  # just after the window that follows it has begun to go out
            assert events[number - 1][:3] == ("start_writing", fd, end)


def test_threads_have_windows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Thread

    begun: list[tuple[int, int, int]] = []
    monkeypatch.setattr(writing, "start_writing", lambda *range_: begun.append(range_))
    monkeypatch.setattr(writing, "finish_writing", lambda *_: None)
    push = Writeback()
    half = WINDOW_BYTES // 2
    push.wrote(5, 0, half)
    other = Thread(target=push.wrote, args=(5, half, 2 * half))
    other.start()
    other.join()
    assert begun == []
    push.wrote(5, half, 2 * half)
    assert begun == [(5, 0, 2 * half)]


def test_pushing_what_cannot_be_pushed_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        writing.start_writing(writer, 0, 4096)
    finally:
        os.close(reader)
        os.close(writer)
