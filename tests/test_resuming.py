"""The journal of an unfinished output: what it tells after it was cut off, damaged, or left behind by another run."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lswap_core import LayerSwap, WriteOptions, execute, kernels, lay_out, open_checkpoint
from lswap_core.difference import DifferenceStats
from lswap_core.errors import RecipeError
from lswap_core.evaluate import Evaluator
from lswap_core.executor import run
from lswap_core.manifest import StepRecord
from lswap_core.options import DigestKind
from lswap_core.plan import Plan
from lswap_core.ports import Silence
from lswap_core.sinks.journal import Journal, read_journal
from lswap_core.sinks.local import LocalSink
from lswap_core.sources.local import LocalSource
from lswap_core.traffic import Traffic
from tests.build import llama_pair, tree

STATISTICS = DifferenceStats(count=7, differing=3, sum_abs=0.1, sum_squares=1e-300, max_abs=float("inf"))
RECORDS = [
    StepRecord("model.a", "xxh3-128:00", None),
    StepRecord('odd "name" \n é', None, None),
    StepRecord("model.b", "xxh3-128:ff", STATISTICS),
]


def written(path: Path, *synced: int) -> None:
    """A journal of three records, one at a time; how many are synced, if that was told."""
    journal = Journal(path, "plan", "auto")
    journal.start({"a.safetensors": "write", "b.safetensors": "clone"}, [])
    for number, record in enumerate(RECORDS, 1):
        assert journal.record([record]) == number
    for events in synced:
        journal.synced(events)
    journal.close()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written(tmp_path / "j", 1, 2)
    found = read_journal(tmp_path / "j")
    assert found is not None
    assert (found.plan, found.digest) == ("plan", "auto")
    assert found.placed == {"a.safetensors": "write", "b.safetensors": "clone"}
    assert found.durable == {record.name: record for record in RECORDS[:2]}
    assert found.unsure == ((RECORDS[2],),)
    assert not (tmp_path / "j.new").exists()


def test_what_was_done_at_the_start_is_durable(tmp_path: Path) -> None:
    for _ in range(2):  # in place of the one before
        journal = Journal(tmp_path / "j", "plan", "none")
        journal.start({}, RECORDS)
        assert journal.record(RECORDS[:1]) == 2
        journal.close()
    found = read_journal(tmp_path / "j")
    assert found is not None
    assert (list(found.durable.values()), found.unsure) == (RECORDS, ((RECORDS[0],),))


def test_there_is_none(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "j") is None
    (tmp_path / "j").touch()
    assert read_journal(tmp_path / "j") is None


def test_every_cut_leaves_what_stands_before_it(tmp_path: Path) -> None:
    written(tmp_path / "j", 3)
    data = (tmp_path / "j").read_bytes()
    ends = [at for at in range(len(data)) if data[at : at + 1] == b"\n"]
    for size in range(len(data)):
        (tmp_path / "j").write_bytes(data[:size])
        found = read_journal(tmp_path / "j")
        lines = sum(end <= size for end in ends)
        assert (found is None) == (lines < 2)
        if found is not None:
            told = list(found.durable.values()) + [record for records in found.unsure for record in records]
            assert told == RECORDS[: lines - 2]
            assert bool(found.durable) == (lines == 6)


@given(at=st.integers(0, 10**6), scrap=st.binary(min_size=1, max_size=60), keep=st.booleans())
def test_garbage_tells_nothing(tmp_path_factory: pytest.TempPathFactory, at: int, scrap: bytes, keep: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage"
    written(path, 2, 3)
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] + scrap + data[at + (0 if keep else len(scrap)) :])
    found = read_journal(path)
    if found is not None:
        assert (found.plan, found.digest) == ("plan", "auto")
        told = list(found.durable.values()) + [record for records in found.unsure for record in records]
        assert told == RECORDS[: len(told)]


@pytest.mark.parametrize(
    "event",
    [{}, {"other": 1}, {"synced": 4}, {"synced": -1}, {"synced": True}, {"done": 1}, {"done": [["a"]]}, {"done": [[1, None, None]]},
     {"placed": []}, {"placed": {"a": 1}}, {"journal": "lswap-journal/2"}, {"journal": "lswap-journal/1"}],
)  # fmt: skip
def test_a_sound_line_that_makes_no_sense_ends_it(tmp_path: Path, event: object) -> None:
    written(tmp_path / "j", 1)
    text = json.dumps(event).encode()
    with open(tmp_path / "j", "ab") as file:
        file.write(xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n")
    journal = tmp_path / "j"
    before = read_journal(journal)
    with open(journal, "ab") as file:
        text = b'{"synced":3}'
        file.write(xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n")
    found = read_journal(journal)
    assert found is not None
    assert found == before
    assert set(found.durable) == {"model.a"}


# What is made of it.


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
        sink = LocalSink(self.root / "out", options=WriteOptions(digest=digest))
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


def test_all_that_was_done_is_gone_on_from(work: Work) -> None:
    work.leave()
    assert work.resume() == work.total


@pytest.mark.parametrize("seed", range(5))
def test_what_was_not_synced_is_taken_if_it_still_has_its_digest(work: Work, seed: int) -> None:
    work.leave()
    step = random.Random(seed).choice(work.plan.steps)
    with open(work.partial / step.file, "r+b") as file:
        file.seek(step.begin)
        byte = file.read(1)
        file.seek(step.begin)
        file.write(bytes([byte[0] ^ 1]))
    there = work.resume()
    assert 0 < there <= work.total - step.size_bytes


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
    sink = LocalSink(work.root / "out")  # everything durable, by a run that has nothing left to do
    sources = {role: open_checkpoint(work.root / role, role=role) for role in ("math", "lang")}
    with LocalSource(sources) as source:  # type: ignore[arg-type]
        sink.begin(work.plan, source)
        sink.close()
        (work.partial / work.plan.files[0].name).unlink()
        sink = LocalSink(work.root / "out")
        monkeypatch.setattr("lswap_core.sinks.local.sync_file", _killed_at(work.plan.files[0].name))
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


def test_a_manifest_beside_a_damaged_journal_vouches_for_nothing(work: Work) -> None:
    _seal(work)
    (work.partial / ".lswap-journal").write_bytes(b"damaged")
    for file in work.plan.files:  # as a power cut may leave what was not synced
        path = work.partial / file.name
        path.write_bytes(file.header.encode() + bytes(file.header.file_size - len(file.header.encode())))
    assert work.resume() == 0


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


def test_another_kind_of_digest_is_refused(work: Work) -> None:
    work.leave()
    with pytest.raises(RecipeError, match="begun with --digest auto"):
        execute(work.plan, into=work.root / "out", options=WriteOptions(digest="sha256"))
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
