"""What `pip install` makes: with a compiler, without one, and in place."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("numpy", "rich", "xxhash", "scikit-build-core>=0.10", "cmake", "ninja")
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
ASK = "from lswap_core import kernels; print(*kernels.available_backends())"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("LSWAP_LONG" not in os.environ, reason="builds the package several times; make test-all runs it"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with what a build needs, so that each build takes seconds."""
    where = tmp_path_factory.mktemp("build") / "venv"
    venv.create(where, with_pip=True)
    run(where / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *NEEDED)
    return where / "bin" / "python"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The tracked files, and nothing that an earlier build left."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "source" / name)
    return tmp_path / "source"


def run(*argv: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; raises with all that was said where it fails. PYTHONPATH would hide what was installed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX", "LSWAP_REQUIRE_NATIVE")}
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done


def install(python: Path, *what: object, **environment: str) -> None:
    options = ("-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--force-reinstall")
    run(python, *options, *what, **environment)


def wheel(python: Path, source: Path, **environment: str) -> Path:
    run(python, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", source.parent, source, **environment)
    (made,) = source.parent.glob("*.whl")
    return made


def test_with_a_compiler_the_wheel_has_the_native_kernels_for_any_python(python: Path, source: Path) -> None:
    made = wheel(python, source, LSWAP_REQUIRE_NATIVE="1")
    assert "-py3-none-linux_" in made.name
    libraries = {Path(name).name for name in zipfile.ZipFile(made).namelist() if name.endswith(".so")}
    assert libraries == {"liblswap_cpu.so"} | ({"liblswap_cuda.so"} if shutil.which("nvcc") else set())
    install(python, made)
    assert run(python, "-c", ASK, cwd=source.parent).stdout.split()[0] == "native"
    assert "usage: lswap-eval" in run(python, "-m", "lswap_eval", "score", "--help", cwd=source.parent).stdout
    beside = "import lswap_eval, os; print(*os.listdir(os.path.join(os.path.dirname(lswap_eval.__file__), 'lm_eval_tasks')))"
    assert "lswap_mgsm_direct_sw.yaml" in run(python, "-c", beside, cwd=source.parent).stdout.split()


def test_without_a_compiler_the_wheel_is_pure_and_works(python: Path, source: Path) -> None:
    made = wheel(python, source, **NO_COMPILER)
    assert made.name.endswith("-py3-none-any.whl")
    install(python, made)
    assert "native" not in run(python, "-c", ASK, cwd=source.parent).stdout.split()
    why = "from lswap_core import kernels; kernels.stats(b'', b'', dtype='F32', backend='native')"
    with pytest.raises(RuntimeError, match="'native' is not available; reference are; native is not .*C\\+\\+ compiler"):
        run(python, "-c", why, cwd=source.parent)


def test_the_switch_makes_a_failed_native_build_an_error(python: Path, source: Path) -> None:
    with pytest.raises(RuntimeError, match="CMake"):
        wheel(python, source, LSWAP_REQUIRE_NATIVE="1", **NO_COMPILER)


def test_an_editable_install_finds_the_library(python: Path, source: Path) -> None:
    install(python, "-e", source, LSWAP_REQUIRE_NATIVE="1")
    where = "import lswap_core; print(lswap_core.__file__)"
    assert run(python, "-c", where, cwd=source.parent).stdout.strip() == str(source / "lswap_core" / "__init__.py")
    where = "import lswap_eval; print(lswap_eval.__file__)"
    assert run(python, "-c", where, cwd=source.parent).stdout.strip() == str(source / "eval" / "lswap_eval" / "__init__.py")
    assert not list(source.rglob("*.so"))
    assert run(python, "-c", ASK, cwd=source.parent).stdout.split()[0] == "native"


def test_a_source_distribution_builds(python: Path, source: Path) -> None:
    code = "from scikit_build_core import build; print(build.build_sdist('dist'))"
    name = run(python, "-c", code, cwd=source).stdout.split()[-1]
    install(python, source / "dist" / name, LSWAP_REQUIRE_NATIVE="1")
    assert run(python, "-c", ASK, cwd=source.parent).stdout.split()[0] == "native"
