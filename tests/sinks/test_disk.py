"""Reading from and publishing to a local disk. Malformed sources are in tests/hostile."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lswap_core import LayerSwap, merge
from lswap_core.errors import FormatError, RecipeError, StalePlanError
from lswap_core.io.per_thread import Descriptors
from lswap_core.plan.layout import lay_out
from lswap_core.plan.plan import Plan
from lswap_core.recipe.draft import Draft
from lswap_core.sinks.disk.sink import DiskSink
from lswap_core.sources.local import LocalSource, open_local
from tests.build import llama_pair, tree


def hub_cache(root: Path, source: Path, *, inside: bool = True) -> Path:
    """`source` as the hub's cache keeps it: snapshots of links into blobs."""
    snapshot = root / "models--org--mathy" / "snapshots" / "abc123"
    blobs = snapshot.parent.parent / "blobs" if inside else root / "elsewhere"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        (blobs / f"{number:040x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / f"{number:040x}", snapshot))
    return snapshot


def test_a_hub_cache_works_and_gives_its_id(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    found = open_local(hub_cache(tmp_path, pair.math), "math")
    assert found.name == "org/mathy"
    assert set(found.tensors) == set(pair.math_model)
    assert {s.name for s in found.sidecars} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_links_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    with pytest.raises(FormatError, match="leads out of the checkpoint's directory"):
        open_local(hub_cache(tmp_path, pair.math, inside=False), "math")


def test_a_directory_that_is_itself_a_link_works(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    (tmp_path / "link").symlink_to(pair.math)
    assert open_local(tmp_path / "link", "math").name == "math"


def test_one_file_is_a_checkpoint(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path, shards=1)
    found = open_local(pair.math / "model-00001-of-00001.safetensors", "lang")
    assert (found.name, len(found.tensors), found.sidecars, found.config) == ("model-00001-of-00001.safetensors", 27, (), None)
    with LocalSource({"lang": found}) as source:
        ref = found.tensors["lm_head.weight"]
        data = bytearray(ref.size_bytes)
        source.read_into(ref, 0, memoryview(data))
    assert bytes(data) == pair.math_model["lm_head.weight"].data


def test_a_file_that_shrinks_under_the_reader(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path, shards=1)
    found = open_local(pair.math, "math")
    file = pair.math / found.shards[0].name
    ref = max(found.tensors.values(), key=lambda ref: ref.end)
    with LocalSource({"math": found}) as source:
        source.read_into(ref, 0, memoryview(bytearray(1)))
        os.truncate(file, ref.end - 1)
        with pytest.raises(StalePlanError, match="became shorter while it was read"):
            source.read_into(ref, 0, memoryview(bytearray(ref.size_bytes)))
        with pytest.raises(StalePlanError, match="changed after it was planned"):
            source.check()


def plan_of(tmp_path: Path) -> tuple[Plan, LocalSource]:
    pair = llama_pair(tmp_path / "sources")
    checkpoint = open_local(pair.math, "math")
    return lay_out(Draft.of(checkpoint)), LocalSource({"math": checkpoint})


class Quiet:
    def begin(self, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None: ...

    def end(self) -> None: ...


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.umask(0o027); from lswap_core.cli.main import main;"
        "sys.exit(main(['merge', '--math', 'math', '--lang', 'lang', '--bottom', '1', '--out', 'out', '--quiet']))"
    )
    llama_pair(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    for file in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o640, file


def test_two_writers_of_one_output(tmp_path: Path) -> None:
    first = DiskSink(tmp_path / "out")
    with pytest.raises(RecipeError, match="is being written by another process"):
        DiskSink(tmp_path / "out")
    first.close()
    DiskSink(tmp_path / "out").close()


def test_leftovers_of_a_killed_run_are_cleared_and_nobody_elses(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    (partial / "sub").mkdir(parents=True)
    (partial / "precious").write_text("mine")
    with pytest.raises(RecipeError, match="is in the way and not of this program's making"):
        DiskSink(tmp_path / "out")
    assert (partial / "precious").read_text() == "mine"
    (partial / ".lswap-partial").touch()
    DiskSink(tmp_path / "out").close()
    assert not partial.exists()


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    plan, source = plan_of(tmp_path)
    sink = DiskSink(tmp_path / "out")
    sink.begin(plan, source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with pytest.raises(RecipeError, match="exists"):
        sink.publish()
    sink.close()
    source.close()
    assert {path.name for path in tmp_path.iterdir()} == {"sources", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"theirs"}


@pytest.mark.parametrize("number", [1, 2, 4, 7])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "preadv"])
def test_what_the_disk_refuses_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    pair = llama_pair(tmp_path / "sources")
    sources = tree(tmp_path)
    swap = LayerSwap(bottom=1, transition=1)
    merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "expected")
    real, calls = getattr(os, call), []

    def refuse(*args: object) -> object:
        calls.append(args)
        if len(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="Input/output error") as caught:
        merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "out")
    monkeypatch.undo()
    assert caught.value.filename
    assert tree(tmp_path / "sources") == {name.removeprefix("sources/"): data for name, data in sources.items()}
    assert not (tmp_path / "out").exists()
    assert bool(getattr(caught.value, "__notes__", None)) == (tmp_path / ".out.partial").exists()
    merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")
    assert {path.name for path in tmp_path.iterdir()} == {"sources", "expected", "out"}


def test_short_reads_and_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = llama_pair(tmp_path / "sources")
    swap = LayerSwap(bottom=1, transition=1)
    merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "a")
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:5], at))
    merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "b")
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert a == b


def test_files_stay_open_one_per_slot(tmp_path: Path) -> None:
    opened: list[int] = []

    def open_file(slot: str, name: str) -> int:
        opened.append(os.open(tmp_path / name, os.O_RDONLY | os.O_CREAT))
        return opened[-1]

    files = Descriptors(open_file)
    first = files.get("a", "x")
    assert files.get("a", "x") == first
    other = files.get("b", "x")
    second = files.get("a", "y")
    assert len(opened) == 3
    for fd in (other, second):
        os.fstat(fd)
    files.close()
    for fd in (other, second):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert files.get("a", "y") >= 0
    files.close()
