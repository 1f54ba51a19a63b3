"""The import contract: few rows, no exception, and imports that break it are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The modules of both packages and the contract, to be changed."""
    for source, target in (("lswap_core", "lswap_core"), ("eval/lswap_eval", "lswap_eval")):
        shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def check(copy: Path) -> tuple[int, str]:
    """The exit status of import-linter, and what it prints."""
    # An editable install has a finder of its own, which would find the packages where they were installed from.
    program = (
        "import sys; from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder\n"
        "sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]; sys.path.insert(0, '.')\n"
        "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_contract_has_eight_rows_and_no_exception() -> None:
    (rows,) = [contract["layers"] for contract in CONTRACTS if contract.get("containers") == ["lswap_core"]]
    assert len(rows) <= 8
    assert not [contract["name"] for contract in CONTRACTS if "ignore_imports" in contract]
    (circles,) = [contract for contract in CONTRACTS if contract["type"] == "acyclic_siblings"]
    assert circles["ancestors"] == ["lswap_core", "lswap_eval"]


def test_the_tree_keeps_it(copy: Path) -> None:
    status, said = check(copy)
    assert status == 0, said


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("lswap_core/plan/layout.py", "import lswap_core.cli.main", "A wing imports only from the rows below its own"),
        ("lswap_core/sinks/places.py", "import lswap_core.sources.local", "A wing imports only from the rows below its own"),
        ("lswap_core/errors.py", "def f():\n    from lswap_core.verbs import merge", "A wing imports only from the rows below"),
        ("lswap_core/sinks/disk/sink.py", "import lswap_core.sinks.s3.sink", "Disks and stores know nothing of each other"),
        ("lswap_core/recipe/expressions.py", "import lswap_core.recipe.draft", "No wing has a circle"),
        ("lswap_eval/mgsm/numbers.py", "import lswap_eval.cli.main", "In the evaluation, too"),
        ("lswap_core/verbs/merge.py", "import lswap_eval.log", "The evaluation may import the surgery"),
        ("lswap_core/common.py", "x = 1", "A wing imports only from the rows below its own"),
    ],
    ids=["up", "sideways", "up, when called", "disk to store", "a circle", "in the evaluation", "core to evaluation", "outside"],
)
def test_an_import_that_breaks_it_is_refused(copy: Path, file: str, planted: str, broken: str) -> None:
    with open(copy / file, "a", encoding="utf-8") as module:
        module.write(f"\n{planted}\n")
    status, said = check(copy)
    assert status == 1
    assert broken in " ".join(said.split())
