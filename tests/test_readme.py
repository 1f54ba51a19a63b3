"""The README's commands and code, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lswap_core import cli, names

ROOT = Path(__file__).parent.parent
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
        assert command in cli.COMMANDS


def _help_texts() -> list[str]:
    argv = [sys.executable, "-m", "lswap_core"]
    return [subprocess.run([*argv, c, "--help"], capture_output=True, text=True, check=True).stdout for c in cli.COMMANDS]


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
