"""The README's commands and code, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lswap_core.checkpoint import names
from lswap_core.cli.arguments import build_parser
from lswap_core.cli.launcher import parse_part
from lswap_core.plan.division import Part

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's experts."""
    root = tmp_path_factory.mktemp("readme") / "demo"
    subprocess.run([sys.executable, ROOT / "benchmarks" / "make_experts.py", root], check=True, capture_output=True)
    return root


def test_the_tour_runs_and_prints_what_it_says(experts: Path) -> None:
    (tour,) = blocks("sh")
    assert len(tour.strip().splitlines()) == 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", tour], cwd=experts, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (table,) = blocks("text")
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in table.strip().splitlines():
        assert " ".join(line.split()) in shown
    assert (experts / "resharded" / "model-00003-of-00003.safetensors").exists()


@pytest.mark.parametrize("number", [0, 1])
def test_the_code_runs(experts: Path, number: int) -> None:
    code = blocks("python")[number]
    done = subprocess.run([sys.executable, "-c", code], cwd=experts, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for said in re.findall(r"print\(.*# (.*)", code):
        assert said in done.stdout
    assert len(blocks("python")) == 2


def test_every_command_and_option_named_is_one_there_is() -> None:
    known = set(re.findall(r"--[a-z-]+", "".join(_help_texts())))
    assert set(re.findall(r"`(--[a-z-]+)", README)) <= known
    for command in re.findall(r"^\| `(\w+) ", README.split("## Command line")[1], re.M):
        assert command in _commands()


def _help(*command: str) -> str:
    argv = [sys.executable, "-m", "lswap_core", *command, "--help"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _commands() -> list[str]:
    return re.findall(r"^    (\w+) ", _help(), re.M)


def _help_texts() -> list[str]:
    return [_help(command) for command in _commands()]


MANY = README.split("## Many machines")[1].split("\n## ")[0]


def test_the_slurm_script_runs(experts: Path) -> None:
    """Every task of the array as Slurm would start it, one after the other, and what publishes."""
    (script,) = blocks("bash")
    (experts / "plan.json").unlink(missing_ok=True)
    (first, last) = map(int, re.findall(r"--array=(\d+)-(\d+)", script)[0])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    plan = re.findall(r"^    (lswap-core plan .*)$", MANY, re.M)[0]
    publish = re.findall(r'--wrap "(lswap-core publish [^"]*)"', MANY)[0]
    tasks = [["bash", "-c", plan], *(["bash", "-euc", script] for _ in range(first, last + 1)), ["bash", "-c", publish]]
    for number, task in enumerate(tasks, first - 1):
        environment = {**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": str(number)}
        subprocess.run(task, cwd=experts, env=environment, check=True, capture_output=True)
    assert (experts / "merged" / "lswap_manifest.json").exists()


def test_other_launchers_give_arguments_that_are_understood() -> None:
    (job,) = map(yaml.safe_load, blocks("yaml"))
    (pod,) = job["spec"]["template"]["spec"]["containers"]
    (torchrun,) = re.findall(r"^    torchrun .*-m (lswap_core .*)$", MANY, re.M)
    parser = build_parser(dict.fromkeys((*_commands(), "publish"), lambda _: 0))
    for line, environ, count in (
        (pod["command"], {"JOB_COMPLETION_INDEX": "0"}, job["spec"]["completions"]),
        (torchrun.split(), {"RANK": "0", "WORLD_SIZE": "4"}, 4),
    ):
        arguments = parser.parse_args(line[1:])
        assert parse_part(arguments.part, environ) == Part(1, count)
    assert job["spec"]["completionMode"] == "Indexed"


def test_the_documented_names_are_the_ones_recognised() -> None:
    for name in (*names.EMBEDDING_MODULES, *names.NORM_MODULES, *names.HEAD_MODULES):
        assert f"`{name}`" in README


def test_files_speak_of_the_project_alone() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        raw = (ROOT / name).read_bytes()
        assert b"/ro" + b"ot/" not in raw, name
        assert b"/wo" + b"rk/" not in raw, name
