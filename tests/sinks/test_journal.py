"""The journal: what it tells after it was cut off, damaged, or written by someone else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from xxhash import xxh3_64_hexdigest

from lswap_core import LayerSwap, RecipeError, kernels, lay_out, merge, open_checkpoint
from lswap_core.engine import executor
from lswap_core.engine.evaluate import Evaluator
from lswap_core.io.ports import Silence
from lswap_core.io.traffic import Traffic
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import MANIFEST_FILE, Plan
from lswap_core.sinks.disk.journal import Journal, JournalContents, read_journal
from lswap_core.sinks.disk.partial_directory import JOURNAL_FILE
from lswap_core.sinks.disk.sink import DiskSink
from lswap_core.sources.local import LocalSource
from tests.build import Pair, llama_pair, tree

RECORDS = [
    StepRecord("a", "xxh3-128:00"),
    StepRecord("名\n", None),
    StepRecord("b", "d", DifferenceStats(count=3, sum_abs=0.1, max_abs=1e308, dot=float("inf"))),
]


def write(path: Path) -> bytes:
    journal = Journal(path, "plan", "auto")
    journal.start({"f": "write", "g": "clone"}, [])
    journal.record(RECORDS[:2])
    journal.synced(1)
    journal.record(RECORDS[2:])
    journal.close()
    return path.read_bytes()


def test_it_tells_what_was_noted(tmp_path: Path) -> None:
    write(tmp_path / "j")
    told = read_journal(tmp_path / "j")
    durable = {record.name: record for record in RECORDS[:2]}
    assert told == JournalContents("plan", "auto", {"f": "write", "g": "clone"}, durable, ((RECORDS[2],),))


def test_begun_anew_it_tells_what_is_durable(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "plan", "none")
    journal.start({"f": "write"}, RECORDS)
    journal.close()
    told = read_journal(tmp_path / "j")
    assert told is not None
    assert (told.durable, told.unsure) == ({record.name: record for record in RECORDS}, ())
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


def test_none_is_none(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "j") is None
    (tmp_path / "j").touch()
    assert read_journal(tmp_path / "j") is None


def test_cut_off_anywhere_it_tells_a_beginning(tmp_path: Path) -> None:
    whole = write(tmp_path / "j")
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole)):
        (tmp_path / "j").write_bytes(whole[:cut])
        told, lines = read_journal(tmp_path / "j"), sum(end - 1 <= cut for end in ends)
        assert (told is None) == (lines < 2), cut
        if told is not None:
            assert set(told.durable) == ({"a", "名\n"} if lines >= 4 else set())
            assert len(told.unsure) == (1 if lines in (3, 5) else 0)


def test_a_sound_line_that_says_nothing_ends_it(tmp_path: Path) -> None:
    line = b'{"journal":"lswap-journal/1"}'
    sound = write(tmp_path / "j")
    (tmp_path / "j").write_bytes(xxh3_64_hexdigest(line).encode() + b" " + line + b"\n" + sound)
    assert read_journal(tmp_path / "j") is None


@pytest.mark.parametrize("spoil", [lambda b: b ^ 1, lambda _: 0])
def test_a_damaged_line_ends_it(tmp_path: Path, spoil: object) -> None:
    whole = write(tmp_path / "j")
    sound = read_journal(tmp_path / "j")
    assert sound is not None
    for at, byte in enumerate(whole):
        (tmp_path / "j").write_bytes(whole[:at] + bytes([spoil(byte)]) + whole[at + 1 :])  # type: ignore[operator]
        told = read_journal(tmp_path / "j")
        if told is not None:
            assert told.durable.items() <= sound.durable.items()
            assert {record for records in told.unsure for record in records} <= set(RECORDS)


# --- resuming from one -----------------------------------------------------------------------------------------------


def unfinished(tmp_path: Path) -> tuple[Plan, Pair]:
    """An output of which everything was written and nothing published."""
    pair = llama_pair(tmp_path / "sources")
    sources = {role: open_checkpoint(getattr(pair, role), role=role) for role in ("math", "lang")}
    plan = lay_out(LayerSwap(bottom=2, transition=1).draft(**sources))
    merge(LayerSwap(bottom=2, transition=1), math=pair.math, lang=pair.lang, into=tmp_path / "expected")
    sink = DiskSink(tmp_path / "out")
    with LocalSource({"math": sources["math"], "lang": sources["lang"]}) as source:
        executor.run(plan, source, sink, Evaluator(source, kernels), progress=Silence(), workers=2)
    sink.close()
    return plan, pair


def resumed(tmp_path: Path, pair: Pair) -> int:
    """Go on, hold the output against the expected one; returns how many bytes were there already."""
    traffic = Traffic()
    merge(LayerSwap(bottom=2, transition=1), math=pair.math, lang=pair.lang, into=tmp_path / "out", traffic=traffic)
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")
    assert {path.name for path in tmp_path.iterdir()} == {"sources", "expected", "out"}
    return traffic.bytes_by_method.get("resume", 0)


def test_bytes_that_are_not_durable_are_held_against_their_digests(tmp_path: Path) -> None:
    plan, pair = unfinished(tmp_path)
    told = read_journal(tmp_path / ".out.partial" / JOURNAL_FILE)
    assert told is not None
    assert told.unsure, "all of it became durable"
    spoilt = max(plan.steps, key=lambda step: step.size_bytes)
    with open(tmp_path / ".out.partial" / spoilt.file, "r+b") as file:
        file.seek(spoilt.begin + 3)
        byte = file.read(1)[0]
        file.seek(spoilt.begin + 3)
        file.write(bytes([byte ^ 1]))
    there = resumed(tmp_path, pair)
    assert 0 < there <= sum(step.size_bytes for step in plan.steps) - spoilt.size_bytes


def test_a_file_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    plan, pair = unfinished(tmp_path)
    (tmp_path / ".out.partial" / plan.files[0].name).unlink()
    there = resumed(tmp_path, pair)
    assert there == sum(step.size_bytes for file in plan.files[1:] for step in file.steps())


def test_cut_off_between_the_journal_and_the_rename(tmp_path: Path) -> None:
    plan, pair = unfinished(tmp_path)
    partial = tmp_path / ".out.partial"
    shutil.copy(tmp_path / "expected" / MANIFEST_FILE, partial)
    (partial / JOURNAL_FILE).unlink()
    assert resumed(tmp_path, pair) == sum(step.size_bytes for step in plan.steps)


def test_a_manifest_beside_a_damaged_journal_vouches_for_nothing(tmp_path: Path) -> None:
    _, pair = unfinished(tmp_path)
    partial = tmp_path / ".out.partial"
    shutil.copy(tmp_path / "expected" / MANIFEST_FILE, partial)
    (partial / JOURNAL_FILE).write_bytes(b"\0" * 100)
    assert resumed(tmp_path, pair) == 0


def test_another_plans_journal_is_refused(tmp_path: Path) -> None:
    _, pair = unfinished(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(RecipeError, match="holds an unfinished merge of another plan"):
        merge(LayerSwap(bottom=1), math=pair.math, lang=pair.lang, into=tmp_path / "out")
    assert tree(tmp_path) == before
