"""What every test here watches: the command line in this process, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from lswap_core.cli import main
from lswap_core.cli.arguments import build_parser

from .corpus import make_expert


@dataclass(frozen=True)
class Outcome:
    """What a command gave."""

    status: int
    out: str
    error: str


Run = Callable[..., Outcome]


def picture(root: Path) -> dict[str, object]:
    """Everything below `root`: kinds, modes, times and contents, links as links."""
    found: dict[str, object] = {}
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(folder, name)
            status = path.lstat()
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes() if status.st_size < 1 << 20 else status.st_size
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def open_descriptors() -> int:
    """How many this process holds."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("hostile")
    return (base / str(number) for number in count())


@pytest.fixture
def tmp_path(_folders: Iterator[Path]) -> Path:
    """As pytest's own, which looks through all its directories to make one more: too slow for thousands."""
    path = next(_folders)
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with two good experts, `math` and `lang`, that nothing may change."""
    root = tmp_path_factory.mktemp("experts")
    for role, seed in (("math", 1), ("lang", 2)):
        make_expert(root / role, seed)
    before = picture(root)
    yield root
    assert picture(root) == before, "a source was changed"


# Building the parser takes longer than all else that a refusal takes, and there are a thousand of them.
_parser = cache(lambda: build_parser(main._COMMANDS))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs one command in this process, in an empty directory; whatever comes of it, `tmp_path` stays as it is."""
    handler = signal.getsignal(signal.SIGTERM)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(main, "build_parser", lambda _: _parser())

    def run(*arguments: str | Path) -> Outcome:
        before, descriptors = picture(tmp_path), open_descriptors()
        capsys.readouterr()
        status = main.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert picture(tmp_path) == before, "the command left something behind"
        assert open_descriptors() == descriptors, "the command left a file open"
        return Outcome(status, printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(command: Run) -> Callable[..., str]:
    """Runs one command that must be refused with `status` and one line; returns the line."""

    def run(*arguments: str | Path, status: int = 3) -> str:
        outcome = command(*arguments)
        assert outcome.status == status, outcome
        assert outcome.out == ""
        (line,) = outcome.error.splitlines()
        assert outcome.error == line + "\n"
        assert line.startswith("lswap-core: error: ")
        return line

    return run
