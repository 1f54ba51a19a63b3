"""Power cuts: what a disk holds at some moment of a merge is mounted as after a crash. What was published is whole, what was
not is gone on from.

The file systems under test lie in images on another one that shares extents, so that a picture of a disk is taken at once.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.build import HANG_SECONDS, unmeasured

from .eager import EAGER
from .merging import LONG, PROGRAM, Merging, journal_events, make_merging, partial_of

RUNS = 25 if LONG else 2
CUTS = 3
"""Of each run, and one more when it has reported success."""
_KINDS = {
    "ext4": (["mkfs.ext4", "-q", "-F"], 96, ""),
    "xfs": (["mkfs.xfs", "-q", "-f"], 320, ",nouuid"),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], 256, ""),
}
"""How to make one, its size in MiB, and how to mount it."""
_POLL_SECONDS = 0.0005


def _call(*argv: str | Path) -> None:
    """Run a command; skip where it cannot be done."""
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"{argv[0]} does not work here: {done.stderr.strip()}")


@contextmanager
def _mounted(image: Path, place: Path, more: str = "") -> Iterator[None]:
    _call("mount", "-o", f"loop{more}", image, place)
    try:
        yield
    finally:
        if subprocess.run(["umount", place], capture_output=True, check=False).returncode:
            subprocess.run(["umount", "-l", place], check=True)


def _new_image(path: Path, kind: str, size_mib: int) -> Path:
    make = _KINDS[kind][0]
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    with open(path, "wb") as file:
        file.truncate(size_mib << 20)
    _call(*make, path)
    return path


@dataclass(frozen=True)
class Disk:
    """An image with the sources, and how to mount it: always at the same place."""

    merging: Merging
    pristine: Path
    options: str

    @property
    def out(self) -> Path:
        return self.merging.root / "out"

    def mounted(self, image: Path) -> AbstractContextManager[None]:
        return _mounted(image, self.merging.root.parent, self.options)

    def snapshot(self, image: Path, name: str) -> Path:
        """What the image holds now."""
        taken = image.with_name(name)
        subprocess.run(["cp", "--reflink=always", image, taken], check=True)
        return taken


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory on a file system that shares extents."""
    base = tmp_path_factory.mktemp("images")
    (base / "mounted").mkdir()
    image = _new_image(base / "outer.img", "xfs", 3000)
    with _mounted(image, base / "mounted"):
        yield base / "mounted"
    image.unlink()


@pytest.fixture(scope="module", params=_KINDS)
def disk(request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    kind: str = request.param
    _, size_mib, options = _KINDS[kind]
    place = tmp_path_factory.mktemp(kind)
    pristine = _new_image(images / f"{kind}.img", kind, size_mib)
    with _mounted(pristine, place):
        merging = make_merging(place / "experts", width=192)
    yield Disk(merging, pristine, options)
    for image in images.glob("*.img"):
        image.unlink()


@dataclass(frozen=True)
class Cut:
    """A disk as it was at some moment."""

    image: Path
    durable_bytes: int
    """What was known to be durable just before."""
    published: bool = False


@pytest.fixture(scope="module")
def tally(record_testsuite_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """What the cuts left: a test of nothing but empty or whole disks would be one in name only."""
    left: Counter[str] = Counter()
    yield left
    record_testsuite_property("power cuts", dict(left))
    if left.total() >= RUNS * (CUTS + 1) * len(_KINDS):
        assert left["work to go on from"] > left.total() // 6, left


@pytest.mark.parametrize("seed", range(RUNS))
def test_the_plug_is_pulled(disk: Disk, tally: Counter[str], seed: int) -> None:
    rng = random.Random(seed)
    image = disk.snapshot(disk.pristine, "work.img")
    with disk.mounted(image):
        cuts = list(_merge_and_cut(disk, image, rng, eager=seed % 2 == 0))
    image.unlink()
    for cut in cuts:
        with disk.mounted(cut.image):
            tally[_check(disk, cut)] += 1
        cut.image.unlink()


def _merge_and_cut(disk: Disk, image: Path, rng: random.Random, *, eager: bool) -> Iterator[Cut]:
    argv = [*(EAGER if eager else PROGRAM), *disk.merging.argv(disk.out, "--quiet")]
    journal = partial_of(disk.out) / ".lswap-journal"
    process = subprocess.Popen(argv, env=unmeasured())
    try:
        for number, lines in enumerate(sorted(rng.sample(range(1, 40), CUTS))):
            while process.poll() is None and _lines(journal) < lines:
                time.sleep(_POLL_SECONDS)
            time.sleep(rng.random() * 0.005)
            process.send_signal(signal.SIGSTOP)  # else it is done before the picture is taken; what it waits for goes on
            durable_bytes = _durable_bytes(disk)
            yield Cut(disk.snapshot(image, f"cut{number}.img"), durable_bytes)
            process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=HANG_SECONDS) == 0
    finally:
        process.kill()
        process.wait(timeout=HANG_SECONDS)
    yield Cut(disk.snapshot(image, "last.img"), 0, published=True)


def _lines(journal: Path) -> int:
    try:
        return journal.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _durable_bytes(disk: Disk) -> int:
    """Of the steps that the last but one note of that kind tells of: it was on the disk before the last was begun."""
    events = journal_events(disk.out)
    synced = [event["synced"] for event in events if "synced" in event][:-1]
    done = [event["done"] for event in events if "done" in event][: synced[-1] if synced else 0]  # type: ignore[misc]
    steps = disk.merging.steps
    return sum(steps[name][2] - steps[name][1] for entries in done for name, _, _ in entries)  # type: ignore[attr-defined]


def _check(disk: Disk, cut: Cut) -> str:
    """Look at it, and go on from it; returns what was left."""
    complete = disk.merging.check_absent_or_complete(disk.out)
    assert complete or not cut.published
    there = 0
    if not complete:
        there = disk.merging.resume(disk.out).get("resume", 0)
        assert there >= cut.durable_bytes
    disk.merging.check_complete(disk.out)
    return "the output" if complete else "work to go on from" if there else "nothing"


def test_a_disk_that_loses_what_was_not_synced_is_told_from_one_that_does_not(disk: Disk) -> None:
    """These cuts do cut: a file that was written and renamed, but never synced, is not whole afterwards."""
    image = disk.snapshot(disk.pristine, "work.img")
    data = random.Random(0).randbytes(1 << 20)
    with disk.mounted(image):
        fresh = disk.merging.root / "fresh"
        fresh.write_bytes(data)
        fresh.rename(disk.out)
        taken = disk.snapshot(image, "cut.img")
    with disk.mounted(taken):
        assert not disk.out.exists() or disk.out.read_bytes() != data
    image.unlink()
    taken.unlink()
