"""A log keeps what was said, once each, through kills and full disks, and is never continued by another run."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lswap_core.errors import FormatError, RecipeError
from lswap_eval import Header, Log, Record, read_log

HEADER = Header({"identity": "ab" * 32, "name": "m"}, {"prompt": "native_cot", "stop": ["\n\n"], "temperature": 0.0}, "cd" * 32)
HOSTILE = [
    "",
    "a\nb\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029c",
    '"\\ud83d\\',
    "\x00\x1b[2J",
    "উত্তর হল 11।",
    "😀\ufeff",
    "\ufffe\uffff",
]


def record(problem: int, output: str = "11", language: str = "sw", sample: int = 0) -> Record:
    return Record(language, problem, sample, "ef" * 32, output, "stop", 100 + problem, None)


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    records = [record(number, text) for number, text in enumerate(HOSTILE)]
    header = replace(HEADER, golds={"sw": [18, 3]})
    with Log.open(path, header) as log:
        log.append(records[:3])
        log.append([])
        log.append(iter(records[3:]))
        assert log.done == {r.key for r in records}
    assert read_log(path) == (header, records)
    raw = path.read_bytes()
    assert raw.count(b"\n") == len(records) + 1
    assert json.loads(raw.split(b"\n")[0]) == {"format": "lswap-eval-log/1", **asdict(HEADER), "golds": {"sw": [18, 3]}}
    assert json.loads(raw.split(b"\n")[1]) == asdict(records[0])


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=[])), max_size=4))
def test_any_text_is_kept_but_for_halves_of_surrogate_pairs(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with Log.open(path, HEADER) as log:
        log.append(record(number, text) for number, text in enumerate(texts))
    kept = ["".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in text) for text in texts]
    assert [r.output for r in read_log(path)[1]] == kept


@pytest.mark.parametrize("seed", range(4))
def test_a_log_cut_off_anywhere_is_resumed_to_the_log_of_an_unbroken_run(tmp_path: Path, seed: int) -> None:
    records = [record(number, text) for number, text in enumerate(HOSTILE)]
    whole = tmp_path / "whole.jsonl"
    with Log.open(whole, HEADER) as log:
        log.append(records)
    raw = whole.read_bytes()
    drawn = random.Random(seed)
    for cut in {0, 1, len(raw) - 1, raw.index(b"\n"), raw.index(b"\n") + 1, *(drawn.randrange(len(raw)) for _ in range(40))}:
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(raw[:cut])
        with Log.open(torn, HEADER, resume=True) as log:
            assert len(log.done) == max(raw[:cut].count(b"\n") - 1, 0)
            log.append(r for r in records if r.key not in log.done)
        assert torn.read_bytes() == raw


def test_a_torn_end_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log.open(path, HEADER) as log:
        log.append([record(0), record(1)])
    path.write_bytes(path.read_bytes()[:-1])
    assert [r.problem for r in read_log(path)[1]] == [0]


def test_kill_9_loses_no_batch_that_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = """if True:
        import sys
        from lswap_eval import Header, Log, Record
        log = Log.open(sys.argv[1], Header({"identity": "ab"}, {}, "cd"))
        for batch in range(10**6):
            log.append(Record("sw", 8 * batch + i, 0, "ef", "x" * 5000, "stop") for i in range(8))
            print(batch, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    problems = [r.problem for r in read_log(path)[1]]
    assert problems == list(range(len(problems)))
    assert len(problems) >= 8 * len(said) >= 40


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Log.open(path, HEADER) as log:
        log.append([record(0)])
        kept = path.read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
            with pytest.raises(OSError, match="log.jsonl"):
                log.append([record(1, "x" * 500), record(2, "x" * 3000)])
            assert path.read_bytes() == kept
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        log.append([record(1)])
    assert [r.problem for r in read_log(path)[1]] == [0, 1]


def test_nothing_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log.open(path, HEADER) as log:
        log.append([record(0), record(0, sample=1), record(0, language="bn")])
        kept = path.read_bytes()
        for batch in ([record(1), record(0)], [record(1), record(1)]):
            with pytest.raises(ValueError, match="twice"):
                log.append(batch)
        assert path.read_bytes() == kept
    path.write_bytes(kept + kept.split(b"\n")[1] + b"\n")
    with pytest.raises(FormatError, match="log.jsonl: line 5 has language 'sw', problem 0, sample 0 again, which line 2 has"):
        read_log(path)
    with pytest.raises(FormatError, match="line 5"):
        Log.open(path, HEADER, resume=True)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (replace(HEADER, model={"identity": "ff" * 32, "name": "n"}), "log of another model, 'm' .abababababab., not of 'n'"),
        (replace(HEADER, data_sha256="00"), "other problems"),
        (replace(HEADER, settings={**HEADER.settings, "temperature": 0.5}), "temperature 0.0 there, 0.5 now"),
        (replace(HEADER, settings={**HEADER.settings, "seed": None}), "seed None there, None now"),
        (replace(HEADER, settings={"prompt": "native_cot", "stop": ["\n\n"]}), "temperature 0.0 there"),
    ],
)
def test_the_log_of_another_run_is_refused_and_untouched(tmp_path: Path, other: Header, match: str) -> None:
    path = tmp_path / "log.jsonl"
    Log.open(path, HEADER).close()
    path.write_bytes(path.read_bytes() + b'{"torn')
    raw = path.read_bytes()
    with pytest.raises(RecipeError, match=match):
        Log.open(path, other, resume=True)
    assert path.read_bytes() == raw


def test_a_resumed_model_may_be_described_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Log.open(path, HEADER).close()
    same = Header({"identity": "ab" * 32, "name": "elsewhere"}, {**HEADER.settings, "stop": ("\n\n",)}, HEADER.data_sha256)
    Log.open(path, same, resume=True).close()
    assert read_log(path) == (HEADER, [])


def test_a_log_is_not_written_over_and_not_by_two(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log.open(path, HEADER) as log:
        with pytest.raises(RecipeError, match="is there already; continue it with --resume"):
            Log.open(path, HEADER)
        with pytest.raises(RecipeError, match="written by another process"):
            Log.open(path, HEADER, resume=True)
        log.close()
    with pytest.raises(OSError, match="nowhere"):
        Log.open(tmp_path / "nowhere" / "log.jsonl", HEADER)
    assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: [], "no complete first line"),
        (lambda lines: [b"problem\tanswer"], "line 1: not valid JSON"),
        (lambda lines: [b'{"format": "other/1"}'], "line 1: not a log of lswap_eval"),
        (lambda lines: [lines[0].replace(b'"identity"', b'"id"')], "line 1: model: 'identity' is missing"),
        (lambda lines: [lines[0], b"[]"], "line 2: expected a JSON object"),
        (lambda lines: [lines[0], b"\xff"], "line 2: not UTF-8"),
        (lambda lines: [*lines, lines[1].replace(b'"problem":0', b'"problem":-1')], "line 3: problem: expected a whole number"),
        (lambda lines: [*lines, lines[1].replace(b'"problem":0', b'"problem":1,"note":""')], "line 3: 'note' is no member"),
        (lambda lines: [lines[0], lines[1].replace(b'"output":"11",', b"")], "line 2: 'output' is missing"),
    ],
)
def test_what_is_no_log_is_refused_by_line_and_untouched(tmp_path: Path, change, match: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "log.jsonl"
    with Log.open(path, HEADER) as log:
        log.append([record(0)])
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in change(lines)) or b"one line, no newline")
    raw = path.read_bytes()
    with pytest.raises(FormatError, match=match):
        read_log(path)
    with pytest.raises(FormatError, match=match):
        Log.open(path, HEADER, resume=True)
    assert path.read_bytes() == raw
