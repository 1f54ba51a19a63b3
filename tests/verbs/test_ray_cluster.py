"""Parts as tasks of a Ray cluster of two nodes on this machine: the same bytes, also where a node dies or the user has had enough."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lswap_core import LayerSwap, WriteOptions, execute, lay_out, open_checkpoint
from lswap_core.cli.main import main
from lswap_core.verbs.merge import write_plan
from tests.buckets import Store, moto_store
from tests.build import HANG_SECONDS, llama_pair, tree, unmeasured
from tests.faults.merging import SWAP, SWAP_ARGUMENTS, make_merging
from tests.ray_nodes import LOOPBACK

ray = pytest.importorskip("ray", reason="ray is not installed")
COUNT = 6
_POLL_SECONDS = 0.01


@dataclass
class Nodes:
    """A running cluster, one for all tests: what kills a node comes last."""

    process: subprocess.Popen[str]
    address: str
    raylets: list[int]

    def kill_first(self) -> None:
        assert self._tell("kill") == "\n"
        self.raylets.pop(0)

    def add(self) -> None:
        self.raylets.append(int(self._tell("add")))

    def _tell(self, what: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """An object store, with an empty bucket `cluster`."""
    with moto_store() as server:
        server.client().create_bucket(Bucket="cluster")
        yield server


@pytest.fixture(scope="module")
def nodes(store: Store) -> Iterator[Nodes]:
    """Every node may write to the store, as the machines of a cluster may."""
    argv = [sys.executable, str(Path(__file__).parents[1] / "ray_nodes.py")]
    environment = {**unmeasured(), **store.environment, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the cluster did not start"
        yield Nodes(process, **json.loads(line))
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=HANG_SECONDS)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@dataclass(frozen=True)
class Case:
    """A plan of 45 MB, and what one process makes of it."""

    file: Path
    expected: dict[str, bytes]

    @contextmanager
    def start(
        self, out: Path | str, nodes: Nodes, *more: str, copy_method: str = "read_write", **environ: str
    ) -> Iterator[subprocess.Popen[str]]:
        argv = [sys.executable, "-m", "lswap_core", "apply", str(self.file), "--out", str(out), "--quiet", "--engine", "ray"]
        argv += ["--address", nodes.address, "--copy-method", copy_method, *more]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=unmeasured() | LOOPBACK | environ) as driver:
            try:
                yield driver
            finally:
                driver.kill()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("cluster")
    make_merging(root, width=448)
    math, lang = (open_checkpoint(root / role, role=role) for role in ("math", "lang"))
    plan = lay_out(SWAP.draft(math=math, lang=lang))
    write_plan(plan, root / "plan.json")
    execute(plan, into=root / "one", options=WriteOptions(copy_method="read_write"))
    return Case(root / "plan.json", tree(root / "one"))


def records(out: Path) -> list[str]:
    return sorted(path.name for path in out.with_name(f".{out.name}.parts").glob("part-*.json"))


def stop_a_task(raylet: int, driver: subprocess.Popen[str]) -> psutil.Process:
    """A process of that node that is within a part, and stays there."""
    until = time.monotonic() + HANG_SECONDS
    while time.monotonic() < until and driver.poll() is None:
        for child in psutil.Process(raylet).children():
            try:
                if "lswap_core part" in " ".join(child.cmdline()):
                    child.suspend()
                    if "lswap_core part" in " ".join(child.cmdline()):
                        return child
                    child.resume()
            except psutil.NoSuchProcess:
                continue
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"no part was seen: {driver.communicate(timeout=HANG_SECONDS)}")


def wait_for(condition: object, driver: subprocess.Popen[str]) -> None:
    assert callable(condition)
    until = time.monotonic() + HANG_SECONDS
    while not condition() and driver.poll() is None and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    assert condition()


def heard_at(*roots: int) -> set[str]:
    """The addresses at which processes and what they started listen."""
    found = set()
    for process in [
        process for root in roots for process in (psutil.Process(root), *psutil.Process(root).children(recursive=True))
    ]:
        with suppress(psutil.NoSuchProcess):  # some of Ray's come and go
            found |= {c.laddr.ip.removeprefix("::ffff:") for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    return found


def test_interrupted_it_keeps_what_is_done(case: Case, nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with case.start(out, nodes, "--parts", str(COUNT)) as driver:
        stopped = [stop_a_task(nodes.raylets[0], driver)]
        wait_for(lambda: records(out), driver)
        # On the other node too: Ray aborts the driver where a task is cancelled while its answer is being taken.
        stopped.append(stop_a_task(nodes.raylets[1], driver))
        driver.send_signal(signal.SIGINT)
        time.sleep(1)  # for the driver to cancel what is stopped; where it is slower, more parts are done
        for task in stopped:
            task.resume()
        _, said = driver.communicate(timeout=HANG_SECONDS)
    assert driver.returncode == 130, said
    assert "interrupted; parts that are done are kept" in said
    assert len(said.splitlines()) == 1
    assert not out.exists()
    done = records(out)
    assert 0 < len(done) < COUNT
    time.sleep(0.5)
    assert records(out) == done, "a task goes on"
    with case.start(out, nodes) as driver:  # in as many parts as before, without being told
        _, said = driver.communicate(timeout=HANG_SECONDS)
    assert (driver.returncode, said) == (0, "")
    assert tree(out) == case.expected


def test_what_a_task_raises_is_told_as_if_it_was_raised_here(case: Case, nodes: Nodes, tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    math, lang = open_checkpoint(pair.math, role="math"), open_checkpoint(pair.lang, role="lang")
    write_plan(lay_out(LayerSwap(bottom=2).draft(math=math, lang=lang)), tmp_path / "plan.json")
    (pair.lang / "model-00001-of-00003.safetensors").write_bytes(b"not what it was")
    with Case(tmp_path / "plan.json", {}).start(tmp_path / "out", nodes, "--parts", "2") as driver:
        _, said = driver.communicate(timeout=HANG_SECONDS)
    assert driver.returncode == 3, said
    assert said.startswith(f"lswap-core: error: {pair.lang}/model-00001-of-00003.safetensors: ")
    assert len(said.splitlines()) == 1


def test_a_node_that_dies_in_the_middle_of_a_part(case: Case, nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with case.start(out, nodes, "--parts", str(COUNT)) as driver:
        stopped = stop_a_task(nodes.raylets[0], driver)
        wait_for(lambda: records(out), driver)
        assert heard_at(nodes.process.pid, driver.pid) <= {"127.0.0.1", "::1"}
        assert len(records(out)) < COUNT
        assert not out.exists()
        nodes.kill_first()
        stopped.kill()
        _, said = driver.communicate(timeout=HANG_SECONDS)
    assert (driver.returncode, said) == (0, "")
    assert tree(out) == case.expected
    assert os.listdir(tmp_path) == ["out"]


def test_towards_a_store_where_a_node_dies_in_the_middle_of_a_part(case: Case, nodes: Nodes, store: Store) -> None:
    nodes.add()
    client = store.client()

    def done() -> list[str]:
        there = client.list_objects_v2(Bucket="cluster", Prefix="out/").get("Contents", ())
        assert all(entry["Key"].startswith("out/.lswap-partial/") for entry in there)
        return [entry["Key"] for entry in there if "/part-" in entry["Key"]]

    with case.start("s3://cluster/out", nodes, "--parts", str(COUNT), copy_method="auto", **store.environment) as driver:
        stopped = stop_a_task(nodes.raylets[0], driver)
        wait_for(done, driver)
        assert len(done()) < COUNT
        nodes.kill_first()
        stopped.kill()
        _, said = driver.communicate(timeout=HANG_SECONDS)
    assert (driver.returncode, said) == (0, "")
    assert store.tree("cluster", "out") == case.expected
    assert store.uploads("cluster") == []


@pytest.fixture
def ray_place() -> Iterator[str]:
    """Where Ray may put its sockets, whose paths must be short."""
    place = tempfile.mkdtemp(prefix="ray")
    yield place
    shutil.rmtree(place, ignore_errors=True)


def test_a_cluster_of_its_own_is_heard_by_this_machine_alone(case: Case, tmp_path: Path, ray_place: str) -> None:
    """Without an address, planned and applied in one. All that listens while it works does so on the loopback interface."""
    out = tmp_path / "out"
    experts = [f"--{role}={case.file.parent / role}" for role in ("math", "lang")]
    argv = [
        sys.executable,
        "-m",
        "lswap_core",
        "merge",
        *experts,
        *SWAP_ARGUMENTS,
        "--out",
        str(out),
        "--quiet",
        "--engine",
        "ray",
    ]
    heard: set[str] = set()
    environment = {name: value for name, value in unmeasured().items() if not name.startswith("RAY_")} | {"RAY_TMPDIR": ray_place}
    argv += ["--copy-method", "read_write", "--parts", str(COUNT)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment) as driver:
        wait_for(lambda: records(out), driver)
        heard = heard_at(driver.pid)
        _, said = driver.communicate(timeout=HANG_SECONDS)
    assert (driver.returncode, said) == (0, "")
    assert heard
    assert heard <= {"127.0.0.1", "::1"}
    assert tree(out) == case.expected


def test_without_ray_the_extra_is_named(case: Case, tmp_path: Path) -> None:
    """And without being asked for it is not loaded."""
    code = "import sys; sys.modules['ray'] = None; from lswap_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "apply", str(case.file), "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run([*argv, "--engine", "ray"], capture_output=True, text=True, env=unmeasured(), check=False)
    assert done.returncode == 4
    assert "ray is not installed; `pip install 'lswap-core[cluster]'` brings it" in done.stderr
    assert subprocess.run(argv, env=unmeasured(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--address", "auto"], "--address has no effect without --engine ray"),
        (["--parts", "3"], "--parts has no effect without --engine ray"),
        (["--engine", "ray", "--part", "1/3"], "--part and --engine ray do not go together"),
        (["--part", "1/3", "--parts", "3"], "--parts has no effect without --engine ray"),
        (["--engine", "ray", "--parts", "0"], "--parts is 0; expected 1 or more"),
    ],
)
def test_options_that_do_not_go_together(
    case: Case, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", str(case.file), "--out", str(tmp_path / "out"), *more]) == 4
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_store_that_takes_no_parts_is_refused(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", str(case.file), "--out", "gs://bucket/merged", "--engine", "ray"]) == 4
    assert (
        "gs://bucket/merged: parts are built in a directory that all workers share, or in an s3:// store"
        in capsys.readouterr().err
    )
