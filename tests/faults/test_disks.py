"""Disks that are full, failing or read-only, and sources that do not stay as they are: one line, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lswap_core import WriteOptions
from tests.build import HANG_SECONDS, unmeasured

from .conftest import fault
from .eager import EAGER
from .merging import PROGRAM, Merging, make_merging, one_line, partial_of

MATH, LANG = "math/model-00001-of-00003.safetensors", "lang/model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Merging:
    return make_merging(tmp_path_factory.mktemp("disks"), width=32)


@pytest.fixture
def out(merging: Merging) -> Iterator[Path]:
    """A place for an output, at which nothing is."""
    place = merging.root / "out"
    yield place
    for left in (place, partial_of(place)):
        shutil.rmtree(left, ignore_errors=True)


@pytest.mark.parametrize(
    ("call", "path", "skip", "error", "named"),
    [
        ("write", ".partial/model-", 9, errno.EDQUOT, ".safetensors"),
        ("write", ".partial/model-", 9, errno.EIO, ".safetensors"),
        ("write", ".partial/model-", 1, errno.ENOSPC, ".safetensors"),  # the room for a shard
        ("write", ".lswap-journal", 0, errno.EDQUOT, ".lswap-journal"),
        ("write", ".lswap-journal", 6, errno.ENOSPC, ".lswap-journal"),
        ("write", ".partial/config.json", 0, errno.EDQUOT, "config.json"),
        ("write", ".partial/lswap_manifest.json", 0, errno.ENOSPC, "lswap_manifest.json"),
        ("read", MATH, 0, errno.EIO, MATH),  # its header
        ("read", MATH, 9, errno.EIO, MATH),
        ("read", LANG, 8, errno.EIO, LANG),
        ("read", "math/tokenizer.json", 0, errno.EIO, "math/tokenizer.json"),
        ("sync", ".partial/model-00002", 0, errno.EIO, "model-00002"),
        ("sync", ".partial/model-00002", 1, errno.EIO, "model-00002"),
        ("sync", ".partial/lswap_manifest.json", 0, errno.EIO, "lswap_manifest.json"),
    ],
)
def test_a_failing_disk(merging: Merging, out: Path, shim: str, call: str, path: str, skip: int, error: int, named: str) -> None:
    done = merging.run(out, environment=fault(shim, call, path, skip, error))
    assert not merging.check_absent_or_complete(out)
    assert done.returncode == 1, done
    line = one_line(done)
    assert named in line
    assert os.strerror(error) in line
    assert ("is kept in" in line) == partial_of(out).exists()
    merging.resume(out)
    merging.check_complete(out)


def test_reads_that_fail_where_the_kernel_copies(merging: Merging, out: Path, shim: str) -> None:
    undigested = merging.with_options(WriteOptions(digest="none"))
    done = undigested.run(out, environment=fault(shim, "write", ".partial/model-", 9, errno.EIO))
    assert done.returncode == 1, done
    assert ".safetensors: Input/output error" in one_line(done)
    undigested.resume(out)
    undigested.check_complete(out)


def test_pages_that_were_lost_on_their_way_out_are_not_vouched_for(merging: Merging, out: Path, shim: str) -> None:
    # The kernel tells of them once, and not necessarily the last sync.
    done = merging.run(out, program=EAGER, environment=fault(shim, "range", ".partial/model-00002", 2, errno.EIO))
    assert done.returncode == 1, done
    assert "model-00002-of-00003.safetensors: Input/output error" in one_line(done)
    assert not (partial_of(out) / "model-00002-of-00003.safetensors").exists()
    merging.resume(out)
    merging.check_complete(out)


def test_where_pages_cannot_be_pushed_out_nothing_is_lost(merging: Merging, out: Path, shim: str) -> None:
    done = merging.run(out, program=EAGER, environment=fault(shim, "range", ".partial/model-", 0, errno.ENOSYS))
    assert (done.returncode, done.stderr) == (0, "")
    merging.check_complete(out)


def test_a_limit_to_the_size_of_files(merging: Merging, out: Path) -> None:
    done = merging.run(out, before=["prlimit", "--fsize=50000"])
    assert done.returncode == 1, done
    assert ".safetensors: File too large" in one_line(done)
    assert not merging.check_absent_or_complete(out)
    assert not partial_of(out).exists()
    merging.resume(out)
    merging.check_complete(out)


# Small disks.


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs with the given options."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def make(options: str) -> Path:
        nonlocal mounted
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
        mounted = True
        return place

    yield make
    if mounted:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_too_small_is_told_first(merging: Merging, mount: Callable[..., Path]) -> None:
    disk = mount("size=128k")
    done = merging.run(disk / "out")
    assert done.returncode == 1
    assert "are to be written, the disk has" in one_line(done)
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_in_the_middle(merging: Merging, mount: Callable[..., Path], shim: str) -> None:
    disk = mount("size=2m")
    process = stopped(merging, disk / "out", fault(shim, "write", ".lswap-journal", 8, 0))
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(2 << 20))
    done = go_on(process)
    assert not merging.check_absent_or_complete(disk / "out")
    assert done.returncode == 1, done
    assert "No space left on device" in one_line(done)
    done = merging.run(disk / "out")
    assert done.returncode == 1, done
    (disk / "filler").unlink()
    moved = merging.resume(disk / "out")
    assert moved["resume"] > 0
    merging.check_complete(disk / "out")


@pytest.mark.parametrize("options", ["size=2m,ro", "size=2m,nr_inodes=1", "size=2m,nr_inodes=2", "size=2m,nr_inodes=6"])
def test_a_disk_that_takes_no_files(merging: Merging, mount: Callable[..., Path], options: str) -> None:
    disk = mount(options)
    done = merging.run(disk / "out")
    assert done.returncode == 1
    line = one_line(done)
    assert str(disk) in line
    assert ("Read-only file system" if "ro" in options else "No space left on device") in line
    assert list(disk.iterdir()) == []


# Sources that do not stay as they are.


def stopped(merging: Merging, out: Path, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    """The command, once it has stopped itself."""
    argv, pipe = [*PROGRAM, *merging.argv(out, *more)], subprocess.PIPE
    process = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=unmeasured() | environment)
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_code == os.CLD_STOPPED, process.communicate()
    return process


def go_on(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Let it go on to its end."""
    process.send_signal(signal.SIGCONT)
    said, error = process.communicate(timeout=HANG_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, said, error)


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def _change(path: Path) -> None:
    data = path.read_bytes()
    with open(path, "r+b") as file:  # in place, and other bytes everywhere but in the header
        file.seek(len(data) // 3)
        file.write(bytes(byte ^ 0xFF for byte in data[len(data) // 3 :]))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copyfile(path, other)
    _change(other)
    other.replace(path)


def _put(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


_CHANGES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "shrinks": (_shrink, 5, "plan again"),
    "is-emptied": (_empty, 5, "plan again"),
    "grows": (_grow, 5, "plan again"),
    "changes": (_change, 5, "plan again"),
    "is-replaced": (_replace, 5, "plan again"),
    "is-removed": (Path.unlink, 1, "No such file or directory"),
    "becomes-a-fifo": (_put(os.mkfifo), 3, "is not a regular file"),
    "becomes-a-device": (_put(lambda path: path.symlink_to("/dev/zero")), 3, "is not a regular file"),
    "becomes-a-directory": (_put(Path.mkdir), 3, "is not a regular file"),
    "becomes-a-loop": (_put(lambda path: path.symlink_to(path.name)), 1, "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("method", ["auto", "copy_file_range"])
@pytest.mark.parametrize("name", _CHANGES)
def test_a_source_that_does_not_stay(merging: Merging, out: Path, shim: str, tmp_path: Path, name: str, method: str) -> None:
    change, status, words = _CHANGES[name]
    shard = merging.root / (MATH if name < "c" else LANG)
    shutil.copy2(shard, tmp_path / "kept")
    once = merging if method == "auto" else merging.with_options(WriteOptions(digest="none", copy_method="copy_file_range"))
    process = stopped(once, out, fault(shim, "write", ".lswap-journal", 10, 0))
    try:
        change(shard)
        done = go_on(process)
    finally:
        process.kill()
        if shard.is_dir() and not shard.is_symlink():
            shard.rmdir()
        shard.unlink(missing_ok=True)
        shutil.copy2(tmp_path / "kept", shard)
    assert done.returncode == status, done
    line = one_line(done)
    assert words in line
    assert str(shard) in line
    assert not out.exists()
    # What was read of the changed file counts for nothing once it is what it was.
    once.resume(out)
    once.check_complete(out)


def test_what_was_read_of_a_changed_source_is_not_gone_on_from(merging: Merging, out: Path, shim: str, tmp_path: Path) -> None:
    shard = merging.root / "math" / "model-00002-of-00003.safetensors"
    shutil.copy2(shard, tmp_path / "kept")
    # In the midst of this shard, which stays open: nothing but a look at it, then and there, tells that it has changed.
    process = stopped(merging, out, fault(shim, "write", ".lswap-journal", 15, 0), "--workers", "1")
    try:
        _change(shard)
        done = go_on(process)
    finally:
        process.kill()
        shutil.copy2(tmp_path / "kept", shard)
    assert done.returncode == 5, done
    merging.resume(out)
    merging.check_complete(out)
