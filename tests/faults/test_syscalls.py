"""Every system call that changes the output, in turn, is the last one that is made, or fails."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from lswap_core import WriteOptions

from .eager import EAGER
from .merging import LONG, PROGRAM, Merging, make_merging, one_line, partial_of

CALLS = (
    "copy_file_range", "fdatasync", "flock", "fsync", "ftruncate", "ioctl", "link", "linkat", "mkdir", "openat", "pwrite64",
    "rename", "rmdir", "sendfile", "sync_file_range", "unlink", "unlinkat", "write",
)  # fmt: skip
FAULTS = ("signal=SIGKILL", "error=EIO", "error=ENOSPC")
HINTS = {"copy_file_range", "ioctl", "mkdir", "sendfile"}
"""Calls that may fail: there is another way, or (mkdir) the thing is there already."""
SHARE = 10**6 if LONG else 2
"""Occurrences of each call in each variant."""
_ENTRY = re.compile(r"^\d+ +(\w+)\((.*)$")
_PATHS = re.compile(r'"(/[^"]*)"|\d<(/[^>]*)>(?!\(deleted\))')  # strace finds no deleted files by their paths


@dataclass(frozen=True)
class Occurrence:
    """The `number`-th time that some thread makes a call on a path, from 1 on."""

    call: str
    path: str
    number: int


@dataclass(frozen=True)
class Variant:
    """A way of running the command."""

    merging: Merging
    program: tuple[str, ...] = PROGRAM

    @property
    def out(self) -> Path:
        return self.merging.root / "out"

    def run(self, *strace: str) -> subprocess.CompletedProcess[str]:
        """Run it with one worker, traced."""
        return self.merging.run(self.out, "--workers", "1", before=("strace", "-f", "-qq", *strace), program=self.program)

    @cached_property
    def occurrences(self) -> list[Occurrence]:
        """What an undisturbed run does to the output, and to the directory that it appears in."""
        log = self.merging.root / "trace"
        assert self.run("-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}").returncode == 0
        self.merging.check_complete(self.out)
        shutil.rmtree(self.out)
        counts: Counter[tuple[str, str, str]] = Counter()
        found: dict[Occurrence, None] = {}
        for line in log.read_text().splitlines():
            entry = _ENTRY.match(line)
            for path in _PATHS.findall(entry[2]) if entry else ():
                place = Path(path[0] or path[1])
                if entry and (place in (self.out, self.out.parent) or partial_of(self.out) in (place, *place.parents)):
                    counts[line.split()[0], entry[1], str(place)] += 1
                    found[Occurrence(entry[1], str(place), counts[line.split()[0], entry[1], str(place)])] = None
                    break
        return list(found)

    def chosen(self, call: str) -> list[tuple[Occurrence, str]]:
        """All occurrences of a call with all faults, or a share of both."""
        cases = [(occurrence, fault) for occurrence in self.occurrences if occurrence.call == call for fault in FAULTS]
        return random.Random(call).sample(cases, min(SHARE, len(cases)))


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    """The usual way, and such as make the calls that it does not."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace processes here")
    merging = make_merging(tmp_path_factory.mktemp("syscalls"), width=32)
    return {
        "usual": Variant(merging),
        "eager": Variant(merging, EAGER),
        "link": Variant(merging.with_options(WriteOptions(link="hard"))),
        "undigested": Variant(merging.with_options(WriteOptions(digest="none"))),
        "sendfile": Variant(merging.with_options(WriteOptions(digest="none", copy_method="sendfile"))),
    }


_SOUGHT = [
    *(("usual", call) for call in ("flock", "fsync", "ftruncate", "ioctl", "mkdir", "openat", "pwrite64", "rename", "unlink", "write")),
    *(("eager", call) for call in ("fdatasync", "fsync", "sync_file_range")),
    ("undigested", "copy_file_range"),
    ("sendfile", "sendfile"),
]  # fmt: skip


def test_no_call_is_overlooked(variants: dict[str, Variant]) -> None:
    made = {(name, o.call) for name in ("usual", "eager", "undigested", "sendfile") for o in variants[name].occurrences}
    assert set(_SOUGHT) <= made
    assert {call for _, call in made} == {call for _, call in _SOUGHT}
    assert len(variants["usual"].occurrences) > 100


@pytest.mark.parametrize(("name", "call"), _SOUGHT)
def test_killed_or_refused(variants: dict[str, Variant], name: str, call: str) -> None:
    variant = variants[name]
    cases = variant.chosen(call)
    assert cases
    for case in cases:
        try:
            _check(variant, *case)
        except AssertionError as error:
            error.add_note(f"with {case}")
            raise


def _check(variant: Variant, occurrence: Occurrence, fault: str) -> None:
    merging, out = variant.merging, variant.out
    for left in (out, partial_of(out)):  # by a case that failed
        shutil.rmtree(left, ignore_errors=True)
    done = variant.run(
        "-o", "/dev/null", "-P", occurrence.path, "-e", f"inject={occurrence.call}:{fault}:when={occurrence.number}"
    )
    complete = merging.check_absent_or_complete(out)
    if "SIGKILL" in fault:
        assert done.returncode in (-9, 137), done
    elif done.returncode == 0:
        assert occurrence.call in HINTS, done
        assert complete
    else:
        assert done.returncode == 1, done
        line = one_line(done)
        assert str(merging.root) in line
        # Only the name in the parent directory can be in doubt once the output is there.
        assert complete == ("is complete, but a power cut may take its name" in line)
        assert ("is kept in" in line) == partial_of(out).exists()
    if not complete:
        merging.resume(out)
    merging.check_complete(out)
    assert {path.name for path in merging.root.iterdir()} == {"math", "lang", "out", "trace"}
    shutil.rmtree(out)
