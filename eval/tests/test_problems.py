"""Problems as they stand in the data; halves and limits that are the same in every language, today and tomorrow."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lswap_core.errors import FormatError, RecipeError, SourceError
from lswap_eval import load_problems, read_problems
from lswap_eval.mgsm.download import read_snapshot
from lswap_eval.mgsm.problems import LANGUAGES, fixed_numbers, half_of


def test_mgsm_is_read_whole(mgsm: Path) -> None:
    data = load_problems(mgsm)
    assert tuple(sorted(data.problems)) == LANGUAGES == tuple(sorted(data.exemplars))
    for language in LANGUAGES:
        assert len(data.problems[language]) == 250
        assert len(data.exemplars[language]) == 8
        assert data.golds()[language] == data.golds()["en"]
    assert (min(data.golds()["en"]), max(data.golds()["en"])) == (1, 276_000)
    assert sum(gold >= 1000 for gold in data.golds()["en"]) == 23
    assert data.sha256 == "94da7695a235d77fd8af9bd6533b44cd50ec50f029afcaccd7c68900e2d160f6"


def test_the_digest_changes_with_any_character(authored: Path) -> None:
    before = read_problems(authored).sha256
    assert read_problems(authored).sha256 == before
    path = authored / "mgsm_ja.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("？", "?", 1), encoding="utf-8")
    assert read_problems(authored).sha256 != before


def test_halves_are_halves_and_stay_so() -> None:
    halves = [half_of(number) for number in range(250)]
    assert halves.count("dev") == halves.count("test") == 125
    assert all({halves[n], halves[n + 1]} == {"dev", "test"} for n in range(0, 250, 2))
    assert [half_of(n)[0] for n in range(24)] == list(FIXED_HALVES)


FIXED_HALVES = "dttddttddtdttdtddtdttdtd"


def test_limits_are_nested_fixed_and_balanced() -> None:
    whole = [set(fixed_numbers(250, limit)) for limit in range(1, 251)]
    assert all(len(a) == limit for limit, a in enumerate(whole, 1))
    assert all(a < b for a, b in itertools.pairwise(whole))
    for numbers in whole:
        assert abs(sum(1 if half_of(n) == "dev" else -1 for n in numbers)) <= 1
    assert fixed_numbers(250, 10) == [14, 15, 44, 45, 128, 129, 168, 169, 214, 215]
    assert fixed_numbers(250) == fixed_numbers(250, 1000) == list(range(250))
    with pytest.raises(RecipeError, match="a limit of 0"):
        fixed_numbers(250, 0)


def test_problems_are_chosen_alike_in_every_language(authored: Path) -> None:
    data = read_problems(authored)
    chosen = data.choose(["sw", "te"])
    assert [(p.language, p.number, p.gold) for p in chosen] == [("sw", 0, 7), ("sw", 1, 1000), ("te", 0, 7), ("te", 1, 1000)]
    halves = [data.choose(["sw", "te"], half=half) for half in ("dev", "test")]
    assert sorted(p.number for half in halves for p in half) == [0, 0, 1, 1]
    assert {p.number for p in halves[0]}.isdisjoint(p.number for p in halves[1])
    assert len(data.choose(["sw", "te"], limit=1)) == 2


@pytest.mark.parametrize(
    ("languages", "match"),
    [
        (["sw", "xx"], "language 'xx' is not known; known are bn, de"),
        ([], "no language"),
        (["sw", "sw"], "twice"),
        (["te"], "the data have .*sw"),
    ],
)
def test_languages_that_are_not_there_are_refused(authored: Path, languages: list[str], match: str) -> None:
    (authored / "mgsm_te.tsv").unlink()
    with pytest.raises(RecipeError, match=match):
        read_problems(authored).choose(languages)


def test_a_wrong_directory_is_refused(tmp_path: Path, authored: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere is not a directory; expected one with mgsm_<language>.tsv"):
        load_problems(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="no MGSM data directory: it has no mgsm_<language>.tsv"):
        load_problems(tmp_path)
    (authored / "exemplars.json").unlink()
    with pytest.raises(RecipeError, match=r"it has no exemplars.json"):
        load_problems(authored)


@pytest.mark.parametrize(
    "line", ["question 18", "question\t", "\t18", "question\t18\t19", "question\t1.8", "question\t-1", "q\t1,23", "q\t১৮", ""]
)
def test_a_line_that_is_no_problem_is_refused(authored: Path, line: str) -> None:
    path = authored / "mgsm_sw.tsv"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(FormatError, match="mgsm_sw.tsv: line 3: expected a question, a tab and a whole number"):
        read_problems(authored)


@pytest.mark.parametrize(("raw", "match"), [(b"", "no problems"), (b"\xff\t1\n", "not UTF-8 at byte 0")])
def test_a_file_without_problems_is_refused(authored: Path, raw: bytes, match: str) -> None:
    (authored / "mgsm_sw.tsv").write_bytes(raw)
    with pytest.raises(FormatError, match=match):
        read_problems(authored)


@pytest.mark.parametrize("layout", ["{language}/{split}-00000-of-00001.parquet", "{language}/{split}/0000.parquet"])
def test_the_hubs_parquet_is_the_same_data(authored: Path, tmp_path: Path, layout: str) -> None:
    data = read_problems(authored)
    folder = tmp_path / "snapshot"
    for language in LANGUAGES:
        test = [{"question": p.question, "answer": None, "answer_number": p.gold} for p in data.problems[language]]
        train = [{"question": e.question, "answer": e.solution, "answer_number": e.gold} for e in data.exemplars[language]]
        for split, rows in (("test", test), ("train", train)):
            path = folder / layout.format(language=language, split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = pa.schema([("question", pa.string()), ("answer", pa.string()), ("answer_number", pa.int32())])
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    found = read_snapshot(folder)
    assert found == data
    assert found.sha256 == data.sha256


def test_a_snapshot_without_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="neither exemplars.json nor"):
        read_snapshot(tmp_path)


def test_a_hub_out_of_reach_is_one_clear_error(tmp_path: Path) -> None:
    import subprocess

    code = "from lswap_eval.cli.main import main; import sys; sys.exit(main(['score', 'none.jsonl', '--data', 'hub']))"
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == SourceError.exit_code
    assert done.stderr.count("\n") == 1
    assert "juletxara/mgsm cannot be had from the hub" in done.stderr
    assert json.dumps(done.stdout) == '""'
