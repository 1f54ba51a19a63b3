"""Killed at random moments: the output is absent or complete, and the same command goes on with what was done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lswap_core import merge
from tests.build import HANG_SECONDS, unmeasured

from .conftest import fault
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
    assert process.wait(timeout=HANG_SECONDS) == 0
    taken = time.monotonic() - began
    shutil.rmtree(out)
    return taken


def _start(merging: Merging, out: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    argv, env = [*PROGRAM, *merging.argv(out, "--quiet")], unmeasured() | dict(environment or {})
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


def _wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(_POLL_SECONDS)


def _kill_at_a_moment(merging: Merging, out: Path, rng: random.Random, whole_seconds: float) -> subprocess.Popen[bytes]:
    """Start the command and kill it some time after it began to write."""
    process = _start(merging, out)
    _wait_for(process, partial_of(out))
    time.sleep(rng.random() * whole_seconds)
    process.send_signal(signal.SIGKILL)
    return process


def _kill_at_a_line(merging: Merging, out: Path, rng: random.Random, shim: str) -> subprocess.Popen[bytes]:
    """Start the command and kill it as it is to write some line of the journal: within the work on the busiest machine."""
    left = len(merging.runs) - len(journal_events(out))
    process = _start(merging, out, fault(shim, "write", ".lswap-journal", rng.randrange(1, max(2, left)), 0))
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    process.send_signal(signal.SIGKILL)
    return process


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
def test_killed_at_a_random_moment(merging: Merging, whole_seconds: float, tally: dict[str, int], shim: str, seed: int) -> None:
    rng = random.Random(seed)
    out = merging.root / f"out{seed}"
    for _ in range(rng.choice((1, 1, 2, 3))):  # a run that goes on may be killed as well
        process = _kill_at_a_line(merging, out, rng, shim) if seed % 2 else _kill_at_a_moment(merging, out, rng, whole_seconds)
        assert process.wait(timeout=HANG_SECONDS) in (0, -signal.SIGKILL)
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
        process.wait(timeout=HANG_SECONDS)
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
    process.wait(timeout=HANG_SECONDS)
    assert not merging.check_absent_or_complete(out)
    merge(SWAP, math=merging.root / "math", lang=merging.root / "lang", into=out, restart=True)
    merging.check_complete(out)
    shutil.rmtree(out)
