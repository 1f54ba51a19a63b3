"""The names that the packages offer: one list, one lazy table, one block for type checkers, all equal."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lswap_core
import lswap_core.kernels
import lswap_eval

LAZY = [lswap_core, lswap_core.kernels, lswap_eval]


def typed_names(package: ModuleType) -> dict[str, str]:
    """Each name that the TYPE_CHECKING block imports, and the module that it comes from."""
    assert package.__file__ is not None
    (block,) = [node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    return {alias.name: str(node.module).removeprefix(f"{package.__name__}.") for node in imports for alias in node.names}


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_the_list_the_table_and_the_block_are_equal(package: ModuleType) -> None:
    typed = typed_names(package)
    assert typed == package._HOME
    assert sorted(typed) == sorted(package.__all__)
    assert len(package.__all__) == len(set(package.__all__))
    assert sorted(dir(package)) == sorted(package.__all__)


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_every_name_loads_from_where_it_is_defined(package: ModuleType) -> None:
    for name in package.__all__:
        home = importlib.import_module(f"{package.__name__}.{package._HOME[name]}")
        value = getattr(package, name)
        assert value is getattr(home, name)
        if callable(value) and hasattr(value, "__module__") and hasattr(value, "__name__"):
            assert value.__module__ == home.__name__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_the_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert lswap_core.__version__ == version("lswap-core")


@pytest.mark.parametrize("module", ["lswap_core", "lswap_eval"])
def test_the_command_tells_its_version_and_its_name(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{module.replace('_', '-')} {lswap_core.__version__}\n"


def test_both_spellings_of_the_commands_are_installed() -> None:
    from importlib.metadata import entry_points

    found = {entry.name: entry.value for entry in entry_points(group="console_scripts") if entry.name.startswith("lswap")}
    for package in ("lswap_core", "lswap_eval"):
        assert found[package] == found[package.replace("_", "-")] == f"{package}.cli.main:main"


def test_few_files_stand_at_the_top() -> None:
    assert lswap_core.__file__ is not None
    assert len(list(Path(lswap_core.__file__).parent.glob("*.py"))) <= 5
