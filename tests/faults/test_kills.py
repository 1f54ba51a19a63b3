"""Killed at random moments: the output is absent or complete, and the same command goes on with what was done."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lswap_core import merge
from tests.build import unmeasured

from .merging import LONG, PROGRAM, SWAP, Merging, journal_events, make_merging, partial_of

KILLS = 200 if LONG else 14
WORKERS = 2
_POLL_SECONDS = 0.0003


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Merging:
    """45 MB of output in some 50 runs."""
    return make_merging(tmp_path_factory.mktemp("kills"), width=448, layers=8)


@pytest.fixture(scope="module")
def whole_seconds(merging: Merging) -> float:
    """From the first sign of the output to its last, undisturbed."""
    out = merging.root / "timed"
    process = _start(merging, out)
    _wait_for(process, partial_of(out))
    began = time.monotonic()
    assert process.wait(timeout=60) == 0
    taken = time.monotonic() - began
    shutil.rmtree(out)
    return taken


def _start(merging: Merging, out: Path) -> subprocess.Popen[bytes]:
    argv = [*PROGRAM, *merging.argv(out, "--quiet")]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=unmeasured())


def _wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(_POLL_SECONDS)


def _kill(merging: Merging, out: Path, rng: random.Random, whole_seconds: float) -> None:
    """Start the command and kill it: some time after it began to write, or once the journal has some number of lines."""
    process = _start(merging, out)
    by_time = rng.random() < 0.5
    delay, lines = rng.random() * whole_seconds, len(journal_events(out)) + rng.randrange(1, len(merging.runs))
    if by_time:
        _wait_for(process, partial_of(out))
        time.sleep(delay)
    else:
        journal = partial_of(out) / ".lswap-journal"
        while process.poll() is None:
            try:
                if journal.read_bytes().count(b"\n") >= lines:
                    break
            except FileNotFoundError:
                pass
            time.sleep(_POLL_SECONDS)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) in (0, -signal.SIGKILL)


def _noted(out: Path) -> set[str]:
    """Steps that the journal holds to be done."""
    done = (entry for event in journal_events(out) for entry in event.get("done", ()))  # type: ignore[attr-defined]
    return {name for name, _, _ in done}


def _begun(merging: Merging, out: Path, noted: set[str]) -> Iterator[str]:
    """Steps of which something is written, but not noted."""
    for name, (file, begin, end) in merging.steps.items():
        if name not in noted and (path := partial_of(out) / file).exists():
            with open(path, "rb") as handle:
                handle.seek(begin)
                if handle.read(end - begin).strip(b"\0"):
                    yield name


@pytest.fixture(scope="module")
def tally(record_testsuite_property: Callable[[str, object], None]) -> Iterator[dict[str, int]]:
    """Where the kills fell: a test of nothing but finished or unbegun runs would be one in name only."""
    fell = {"before the first step": 0, "within the work": 0, "all steps done": 0, "published": 0}
    yield fell
    record_testsuite_property("kills", fell)
    if sum(fell.values()) == KILLS:
        assert fell["within the work"] > KILLS // 4, fell


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(merging: Merging, whole_seconds: float, tally: dict[str, int], seed: int) -> None:
    rng = random.Random(seed)
    out = merging.root / f"out{seed}"
    for _ in range(rng.choice((1, 1, 2, 3))):  # a run that goes on may be killed as well
        _kill(merging, out, rng, whole_seconds)
        if merging.check_absent_or_complete(out):
            tally["published"] += 1
            assert not partial_of(out).exists()
            shutil.rmtree(out)
            return
    noted = _noted(out)
    if partial_of(out).exists() and (partial_of(out) / ".lswap-journal").exists():
        kind = "all steps done" if noted == merging.steps.keys() else "within the work" if noted else "before the first step"
        tally[kind] += 1
        # What is lost is what was in hand: one run for each worker.
        begun = set(_begun(merging, out, noted))
        assert sum(not begun.isdisjoint(run) for run in merging.runs) <= WORKERS
        there = sum(merging.steps[name][2] - merging.steps[name][1] for name in noted)
        moved = merging.resume(out)
        total = sum(end - begin for _, begin, end in merging.steps.values())
        assert moved.pop("resume", 0) == there
        assert sum(moved.values()) == total - there
    else:
        merging.resume(out)
    merging.check_complete(out)
    shutil.rmtree(out)


def test_a_second_process_waits_for_no_dead_one(merging: Merging) -> None:
    out = merging.root / "locked"
    process = _start(merging, out)
    _wait_for(process, partial_of(out) / ".lswap-journal")
    process.send_signal(signal.SIGSTOP)
    try:
        done = merging.run(out)
        assert done.returncode == 4
        assert "is being written by another process" in done.stderr
    finally:
        process.kill()
        process.wait(timeout=60)
    merging.resume(out)
    merging.check_complete(out)
    shutil.rmtree(out)


def test_begun_anew_with_restart(merging: Merging) -> None:
    out = merging.root / "anew"
    process = _start(merging, out)
    _wait_for(process, partial_of(out) / ".lswap-journal")
    while process.poll() is None and not _noted(out):
        time.sleep(_POLL_SECONDS)
    process.kill()
    process.wait(timeout=60)
    assert not merging.check_absent_or_complete(out)
    merge(SWAP, math=merging.root / "math", lang=merging.root / "lang", into=out, restart=True)
    merging.check_complete(out)
    shutil.rmtree(out)
