"""Going on from what an earlier run left, damaged as it may be: never wrong bytes. What a journal tells is in test_journal."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from lswap_core import LayerSwap, WriteOptions, execute, kernels, lay_out, open_checkpoint
from lswap_core.engine.evaluate import Evaluator
from lswap_core.engine.executor import run
from lswap_core.errors import RecipeError
from lswap_core.io.ports import Silence
from lswap_core.io.traffic import Traffic
from lswap_core.options import DigestKind
from lswap_core.plan.plan import Plan
from lswap_core.sinks.disk.sink import DiskSink
from lswap_core.sources.local import LocalSource
from tests.build import llama_pair, tree


@dataclass(frozen=True)
class Work:
    """A plan, how to carry it out, and what comes of that."""

    root: Path
    plan: Plan
    expected: dict[str, bytes]

    @property
    def partial(self) -> Path:
        return self.root / ".out.partial"

    def leave(self, digest: DigestKind = "auto") -> None:
        """Do all steps, but do not publish."""
        sources = {role: open_checkpoint(self.root / role, role=role) for role in ("math", "lang")}
        sink = DiskSink(self.root / "out", options=WriteOptions(digest=digest))
        with LocalSource(sources) as source:  # type: ignore[arg-type]
            run(self.plan, source, sink, Evaluator(source, kernels), progress=Silence(), workers=2)
        sink.close()

    def resume(self) -> int:
        """Go on; returns how many bytes were there."""
        traffic = Traffic()
        execute(self.plan, into=self.root / "out", traffic=traffic)
        assert tree(self.root / "out") == self.expected
        assert not self.partial.exists()
        return traffic.bytes_by_method.get("resume", 0)

    @property
    def total(self) -> int:
        return sum(step.size_bytes for step in self.plan.steps)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    pair = llama_pair(tmp_path)
    math, lang = open_checkpoint(pair.math, role="math"), open_checkpoint(pair.lang, role="lang")
    plan = lay_out(LayerSwap(bottom=2, top=1, transition=1).draft(math=math, lang=lang))
    execute(plan, into=tmp_path / "out")
    expected = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    return Work(tmp_path, plan, expected)


@pytest.mark.parametrize("damage", ["gone", "shorter", "other header", "a link", "a directory", "second name"])
def test_a_file_that_is_not_what_was_left_is_made_anew(work: Work, damage: str) -> None:
    work.leave()
    shard = work.partial / work.plan.files[1].name
    other = work.root / "other"
    shutil.copyfile(shard, other)
    before = other.read_bytes()
    if damage == "shorter":
        shard.write_bytes(before[:-1])
    elif damage == "other header":
        shard.write_bytes(before.replace(b"model.", b"modem.", 1))
    else:
        shard.unlink()
    if damage == "a link":
        shard.symlink_to(other)
    elif damage == "a directory":
        shard.mkdir()
    elif damage == "second name":
        shard.hardlink_to(other)
    assert work.resume() == work.total - sum(s.size_bytes for s in work.plan.steps if s.file == shard.name)
    assert other.read_bytes() == before


def test_the_journal_of_the_former_file_is_not_believed_of_the_new_one(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a lost file was made anew, and before the journal was."""
    work.leave()
    sink = DiskSink(work.root / "out")  # everything durable, by a run that has nothing left to do
    sources = {role: open_checkpoint(work.root / role, role=role) for role in ("math", "lang")}
    with LocalSource(sources) as source:  # type: ignore[arg-type]
        sink.begin(work.plan, source)
        sink.close()
        (work.partial / work.plan.files[0].name).unlink()
        sink = DiskSink(work.root / "out")
        monkeypatch.setattr("lswap_core.sinks.disk.sink.sync_file", _killed_at(work.plan.files[0].name))
        with pytest.raises(KeyboardInterrupt):
            sink.begin(work.plan, source)
        monkeypatch.undo()
        sink.close()
    assert (work.partial / work.plan.files[0].name).exists()
    assert work.resume() < work.total


def _killed_at(name: str) -> Callable[[Path], None]:
    def sync(path: Path) -> None:
        if path.name == name:
            raise KeyboardInterrupt

    return sync


@pytest.mark.parametrize("missing", [(), (".lswap-partial",)])
def test_cut_off_just_before_the_rename(work: Work, missing: tuple[str, ...]) -> None:
    _seal(work, *missing)
    assert work.resume() == work.total


def _seal(work: Work, *missing: str) -> None:
    """As a run leaves it that was killed between the unlink of its journal and the rename."""
    execute(work.plan, into=work.root / "out")
    (work.root / "out").rename(work.partial)
    if ".lswap-partial" not in missing:
        (work.partial / ".lswap-partial").touch()


def test_a_damaged_manifest_is_as_good_as_none(work: Work) -> None:
    _seal(work)
    manifest = work.partial / "lswap_manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert work.resume() == 0


def test_a_sealed_output_of_another_plan_is_refused(work: Work) -> None:
    _seal(work)
    with pytest.raises(RecipeError, match="of another plan"):
        execute(replace(work.plan, sidecars=()), into=work.root / "out")
    assert work.resume() == work.total


@pytest.mark.parametrize("seed", range(30))
def test_no_damage_to_the_journal_gives_wrong_bytes(work: Work, seed: int) -> None:
    rng = random.Random(seed)
    work.leave()
    journal = work.partial / ".lswap-journal"
    data = bytearray(journal.read_bytes())
    lines = bytes(data).splitlines(keepends=True)
    damages: list[Callable[[], bytes]] = [
        lambda: bytes(data[: rng.randrange(len(data))]),
        lambda: bytes(data[: (at := rng.randrange(len(data)))]) + bytes(4096) + bytes(data[at:]),
        lambda: bytes(byte ^ (1 << rng.randrange(8)) if rng.random() < 0.002 else byte for byte in data),
        lambda: b"".join(line for line in lines if rng.random() < 0.8),
        lambda: b"".join(rng.sample(lines, len(lines))),
        lambda: rng.randbytes(200),
        partial(bytes, 100),
    ]
    journal.write_bytes(rng.choice(damages)())
    # What was in hand was never finished.
    for step in rng.sample(work.plan.steps, 3):
        with open(work.partial / step.file, "r+b") as file:
            file.seek(step.begin)
            file.write(rng.randbytes(step.size_bytes))
    work.resume()
