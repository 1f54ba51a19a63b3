"""Measure processes side by side: what one run costs, contenders interleaved, medians, tables.

What is counted: **wall** from the start of the process until every byte of its output is on the disk (`sync` on each of
its files and directories, the same for everybody, whether a contender synced by itself or not); **CPU** user and system
of the process, its reaped children and that `sync`; **resident** and **anonymous** memory, the largest sum over the
process and its children that a look every 20 ms found (anonymous includes shared memory; mapped files are not in it);
**read** by system calls, so without what is read through a mapping, and **written** as the kernel charges it, when pages
become dirty: bytes in shared extents are in neither.
"""

from __future__ import annotations

import os
import platform
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import IO

LOOK_EVERY_MS = 20
WRITES_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
"""An installed package has its bytecode, a checkout only after the first run, which the gate is, and where that may write it."""
OUT = "bench-out"
"""Where every contender writes to, in the directory that is measured."""
_PIECE_BYTES = 1 << 20


class RunError(Exception):
    """A contender ended with an error; the message is the last line it said."""


class GateError(Exception):
    """An output is wrong: nothing may be timed."""


@dataclass(frozen=True)
class Measurement:
    """What one run cost. sync_s: the part of wall_s that came after the process had ended."""

    wall_s: float
    sync_s: float
    cpu_s: float
    peak_resident_bytes: int
    peak_anonymous_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Contender:
    """argv(out): its command, which makes the directory `out`. check(out): what is wrong with that, None where it writes
    nothing. Where a required one fails to run there is no benchmark; another is left out, with the reason.
    """

    name: str
    argv: Callable[[Path], Sequence[str]]
    check: Callable[[Path], list[str]] | None
    required: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def measure(contender: Contender, out: Path) -> Measurement:
    """Run it once, into `out`. RunError where it ends with an error."""
    with open(out.with_name(f"{out.name}.log"), "w+b") as log:
        begin = time.perf_counter()
        run = _run(contender.argv(out), log, contender.environment)
        end = time.perf_counter()
        if contender.check is None:
            return Measurement(end - begin, 0.0, *run)
        durable = _run(["sync", *map(str, sorted(out.rglob("*"))), str(out), str(out.parent)], log, {})
        now = time.perf_counter()
    return Measurement(now - begin, now - end, run[0] + durable[0], *run[1:])


def _run(argv: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> tuple[float, int, int, int, int]:
    """CPU seconds, peak resident and anonymous bytes, bytes read and written."""
    resident = anonymous = 0
    # Not subprocess.run: the child must stay a zombie until /proc/PID/io is read, which then has all it ever moved.
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | WRITES_BYTECODE | environment
    )
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        wait_ms = 1  # at first, or a short run would not be seen at all
        while not poll.poll(wait_ms):
            wait_ms = min(2 * wait_ms, LOOK_EVERY_MS)
            found = [_memory(pid) for pid in _tree(process.pid)]
            resident = max(resident, sum(each[0] for each in found))
            anonymous = max(anonymous, sum(each[1] for each in found))
        moved = _fields(Path(f"/proc/{process.pid}/io"))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        os.close(ended)
        if process.returncode is None:
            process.kill()
            process.wait()
    if process.returncode:
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines() or ["nothing was said"]
        raise RunError(f"{Path(argv[0]).name} ended with {process.returncode}: {said[-1]}")
    return usage.ru_utime + usage.ru_stime, resident, anonymous, moved["rchar"], moved["write_bytes"]


def _tree(pid: int) -> list[int]:
    """The process and its descendants, as far as they still are."""
    found = [pid]
    for each in found:  # grows as it goes
        threads: list[Path] = []
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            threads += Path(f"/proc/{each}/task").glob("*/children")
        for children in threads:
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has
                found.extend(map(int, children.read_text().split()))
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Resident bytes at their highest, and anonymous bytes (shared memory included) now."""
    try:
        found = _fields(Path(f"/proc/{pid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return found.get("VmHWM", 0) << 10, found.get("RssAnon", 0) + found.get("RssShmem", 0) << 10


def _fields(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)(?: kB)?$", path.read_text(), re.M)}


def admit(contenders: Iterable[Contender], place: Path, inputs: Sequence[Path]) -> tuple[list[Contender], dict[str, str]]:
    """Run each once and hold its output to the gate: those that may be timed, and why others may not.

    GateError where an output is wrong, RunError where a required contender cannot run.
    """
    admitted, left_out, out = [], {}, place / OUT
    if out.exists():
        raise RunError(f"{out} is in the way, perhaps from a run that was killed; remove it")
    for contender in contenders:
        warm(inputs)
        try:
            _tell(f"gate: {contender.name}")
            measure(contender, out)
            if contender.check is not None and (wrong := contender.check(out)):
                raise GateError(f"{contender.name}: {wrong[0]}" + (f", and {len(wrong) - 1} more" if wrong[1:] else ""))
            admitted.append(contender)
        except RunError as failure:
            if contender.required:
                raise RunError(f"{contender.name}: {failure}") from None
            left_out[contender.name] = str(failure)
        finally:
            remove(out)
    return admitted, left_out


def interleave(contenders: Sequence[Contender], rounds: int, place: Path, inputs: Sequence[Path]) -> dict[str, list[Measurement]]:
    """Every round runs every contender once, in an order that turns by one from round to round. Inputs are read before
    each run, outputs removed after it, and both are settled before the clock starts.
    """
    found: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            warm(inputs)
            _tell(f"round {number + 1} of {rounds}: {contender.name}")
            try:
                found[contender.name].append(measure(contender, place / OUT))
            finally:
                remove(place / OUT)
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def warm(folders: Iterable[Path]) -> None:
    """Read every file, so that as much as the memory holds is in the page cache."""
    buffer = bytearray(_PIECE_BYTES)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            with open(path, "rb", buffering=0) as handle:
                while handle.readinto(buffer):
                    pass


def remove(out: Path) -> None:
    """Remove an output and what a failed run left beside it, and wait until the disk knows."""
    for path in (out, out.with_name(f".{out.name}.partial")):
        if path.exists():
            shutil.rmtree(path)
    out.with_name(f"{out.name}.log").unlink(missing_ok=True)
    subprocess.run(["sync", "-f", out.parent], check=True)


def against(found: Mapping[str, list[Measurement]], name: str, other: str, what: str = "wall_s") -> float | None:
    """The median over the rounds of `name`'s figure as a multiple of `other`'s; None where one of them did not run."""
    if name not in found or other not in found:
        return None
    pairs = zip(found[name], found[other], strict=True)
    return float(median(getattr(mine, what) / (getattr(theirs, what) or float("nan")) for mine, theirs in pairs))


def summarise(runs: Sequence[Measurement]) -> dict[str, dict[str, object]]:
    """Median, least, greatest and all values of every figure."""
    found = {}
    for what in (each.name for each in fields(Measurement)):
        values = [getattr(run, what) for run in runs]
        found[what] = {"median": median(values), "min": min(values), "max": max(values), "runs": values}
    return found


def middle(runs: Sequence[Measurement], what: str) -> float:
    """The median of a figure."""
    return float(median(getattr(run, what) for run in runs))


def spread(runs: Sequence[Measurement], what: str, unit: float = 1.0, digits: int = 2) -> str:
    """`median (least to greatest)` of a figure, in units of `unit`."""
    values = [getattr(run, what) / unit for run in runs]
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def multiple(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Surroundings:
    """Where and when figures were taken."""

    date: str
    processor: str
    processors: int
    memory_bytes: int
    kernel: str
    filesystem: str
    load_before: float
    """Runnable processes on average over the last minute: a busy machine's figures are worth little."""
    versions: dict[str, str]

    @classmethod
    def of(cls, folder: Path, versions: Mapping[str, str]) -> Surroundings:
        model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        return cls(
            datetime.now(UTC).date().isoformat(),
            model[1] if model else platform.machine(),
            len(os.sched_getaffinity(0)),
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            platform.release(),
            filesystem(folder),
            round(os.getloadavg()[0], 2),
            {"python": platform.python_version(), **versions},
        )

    def line(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.date}; {self.processor}, {self.processors} processors, {self.memory_bytes / 1e9:.0f} GB of memory, "
            f"Linux {self.kernel}, {self.filesystem}; load before {self.load_before}; {versions}"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def filesystem(folder: Path) -> str:
    """The type of the filesystem that holds `folder`, as `ext4`."""
    argv = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[0]
