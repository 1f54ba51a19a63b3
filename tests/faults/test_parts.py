"""Workers of parts, and whoever publishes, killed at random moments; and what is durable before what."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lswap_core import WriteOptions, execute
from lswap_core.plan.division import Part
from lswap_core.verbs.merge import read_plan
from lswap_core.verbs.parts import apply_part, publish
from tests.build import HANG_SECONDS, unmeasured

from .merging import LONG, PROGRAM, SWAP_ARGUMENTS, make_merging, sums

KILLS = 60 if LONG else 4
COUNT = 3
_POLL_SECONDS = 0.0005
_CALL = re.compile(r"^\d+ +(?:\[[^]]*\] )?(\w+)\((.*)$")


@dataclass(frozen=True)
class Parts:
    """A plan of 45 MB, and what one process makes of it."""

    root: Path
    file: Path
    expected: dict[str, str]

    def argv(self, out: Path, part: Part) -> list[str]:
        how = ["--part", str(part), "--copy-method", "read_write", "--workers", "2"]
        return [*PROGRAM, "apply", str(self.file), "--out", str(out), "--quiet", *how]

    def do(self, out: Path, part: Part) -> None:
        apply_part(read_plan(self.file), part, into=out, options=WriteOptions(copy_method="read_write"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    root = tmp_path_factory.mktemp("parts")
    make_merging(root, width=448)
    sources = ["--math", str(root / "math"), "--lang", str(root / "lang")]
    made = [*PROGRAM, "plan", *sources, *SWAP_ARGUMENTS, "--out", str(root / "plan.json"), "--quiet"]
    subprocess.run(made, check=True, env=unmeasured())
    execute(read_plan(root / "plan.json"), into=root / "one", options=WriteOptions(copy_method="read_write"))
    return Parts(root, root / "plan.json", sums(root / "one"))


def build_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


def spoil(out: Path, rng: random.Random) -> None:
    """What a power cut may do to a part that was not recorded: any of its bytes may be anything, or its files be gone."""
    for path in sorted((build_of(out) / "output").glob("*.safetensors")):
        if rng.random() < 0.5:
            path.unlink()


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_worker_costs_its_part_and_no_other(parts: Parts, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    out = tmp_path / "out"
    numbers = list(range(1, COUNT + 1))
    rng.shuffle(numbers)
    victim, *others = numbers
    first = others[: rng.randrange(len(others) + 1)]
    for number in first:
        parts.do(out, Part(number, COUNT))
    record = build_of(out) / f"part-{victim}-of-{COUNT}.json"
    for _ in range(rng.choice((1, 2))):
        process = subprocess.Popen(parts.argv(out, Part(victim, COUNT)), env=unmeasured(), stderr=subprocess.DEVNULL)
        while not (build_of(out) / "output").exists() and process.poll() is None:
            time.sleep(_POLL_SECONDS)
        time.sleep(rng.random() * 0.25)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=HANG_SECONDS) in (0, -signal.SIGKILL)
    if not record.exists() and not first and rng.random() < 0.5:
        spoil(out, rng)
    for number in rng.sample(numbers, COUNT):
        parts.do(out, Part(number, COUNT))
    publish(read_plan(parts.file), into=out)
    assert sums(out) == parts.expected
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("seed", range(KILLS // 2))
def test_publishing_killed_is_absent_or_complete_and_goes_on(parts: Parts, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    out = tmp_path / "out"
    for number in range(1, COUNT + 1):
        parts.do(out, Part(number, COUNT))
    kept = tmp_path / "kept"
    shutil.copytree(build_of(out), kept)
    argv = [*PROGRAM, "publish", str(parts.file), "--out", str(out), "--quiet"]
    for _ in range(3):
        process = subprocess.Popen(argv, env=unmeasured(), stderr=subprocess.DEVNULL)
        while not (build_of(out) / "output" / "tokenizer.json").exists() and process.poll() is None:
            time.sleep(_POLL_SECONDS)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.wait(timeout=HANG_SECONDS)
        if out.exists():
            break
    else:
        subprocess.run(argv, env=unmeasured(), check=True)
    assert sums(out) == parts.expected
    subprocess.run(argv, env=unmeasured(), stderr=subprocess.DEVNULL, check=False)
    assert not build_of(out).exists()
    shutil.rmtree(kept)


def trace(argv: list[str], log: Path) -> list[tuple[str, str]]:
    """The calls of a command that write, sync and rename, each with the path that it is about, in the order of their ends."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    calls = "pwrite64,ftruncate,fsync,fdatasync,rename,link,mkdir"
    done = subprocess.run(["strace", "-f", "-qq", "-y", "-o", log, "-e", f"trace={calls}", *argv], env=unmeasured(), check=False)
    if done.returncode and "ptrace" in log.read_text():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0
    begun: dict[str, str] = {}
    found = []
    for line in log.read_text().splitlines():
        thread = line.split()[0]
        if "<unfinished ...>" in line:
            begun[thread] = line.replace("<unfinished ...>", "")
            continue
        if resumed := re.match(r"\d+ +<\.\.\. \w+ resumed>(.*)", line):
            line = begun.pop(thread) + resumed[1]
        match = _CALL.match(line)
        if match is None or "= -1" in line:
            continue
        paths = re.findall(r'<(/[^>]*)>|"(/[^"]*)"', match[2])
        if paths:
            found.append((match[1], next(filter(None, paths[-1]))))
    return found


def test_a_part_is_durable_before_it_is_recorded(parts: Parts, tmp_path: Path) -> None:
    """In a trace of a worker, and of whoever publishes: every write is followed by a sync of that file, and those by the rename
    that tells of them, which is followed by a sync of its directory.
    """
    out = tmp_path / "out"
    build = build_of(out)
    (tmp_path / "logs").mkdir()
    parts.do(out, Part(1, 2))
    calls = trace(parts.argv(out, Part(2, 2)), tmp_path / "logs" / "worker")
    told = calls.index(("rename", str(build / "part-2-of-2.json")))
    written = {path for call, path in calls if call in ("pwrite64", "ftruncate")}
    assert len({path for path in written if path.endswith(".safetensors")}) > 1
    for path in written:
        last = max(at for at, (call, of) in enumerate(calls) if of == path and call in ("pwrite64", "ftruncate"))
        assert ("fsync", path) in calls[last:told], path
    assert ("fsync", str(build / "output")) in calls[:told]
    assert ("fsync", str(build)) in calls[told:]
    assert not any(call == "pwrite64" for call, _ in calls[told:])

    calls = trace([*PROGRAM, "publish", str(parts.file), "--out", str(out), "--quiet"], tmp_path / "logs" / "publisher")
    told = calls.index(("rename", str(out)))
    for name in parts.expected:
        assert ("fsync", str(build / "output" / name)) in calls[:told], name
    assert ("fsync", str(tmp_path)) in calls[told:]
    assert sums(out) == parts.expected


@pytest.mark.parametrize("call", ["fsync", "pwrite64"])
def test_a_worker_whose_disk_fails_records_nothing(parts: Parts, tmp_path: Path, call: str) -> None:
    """The other parts' work stays, and the part can be done again."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    out = tmp_path / "out"
    parts.do(out, Part(1, 2))
    before = (build_of(out) / "part-1-of-2.json").read_bytes()
    file = sorted((build_of(out) / "output").glob("*.safetensors"))[1]
    file.unlink()  # as if this worker was the first to need it
    inject = f"inject={call}:error=EIO"
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(file), "-e", f"trace={call}", "-e", inject]
    done = subprocess.run(
        [*argv, *parts.argv(out, Part(2, 2))], env=unmeasured(), capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert done.returncode == 1, done.stderr
    assert f"{file}: Input/output error" in done.stderr
    assert "the same command does part 2/2 again" in done.stderr
    assert sorted(p.name for p in build_of(out).glob("part-*")) == ["part-1-of-2.json"]
    assert (build_of(out) / "part-1-of-2.json").read_bytes() == before
    assert file.exists()


def test_a_filesystem_without_hard_links(parts: Parts, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    out = tmp_path / "out"
    inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=link,linkat", "-e", "inject=link,linkat:error=EOPNOTSUPP"]
    workers = [subprocess.Popen([*inject, *parts.argv(out, Part(number, 2))], env=unmeasured()) for number in (1, 2)]
    assert [worker.wait(timeout=HANG_SECONDS) for worker in workers] == [0, 0]
    publish(read_plan(parts.file), into=out)
    assert sums(out) == parts.expected
    assert os.listdir(tmp_path) == ["out"]
