"""The command line on the real problems: a killed run resumed is the unbroken run, and an ablation answers its question."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from lswap_eval.ablate.pairs import CHECK_FILE
from lswap_eval.cli import main
from lswap_eval.log import read_log
from lswap_eval.mgsm.problems import half_of

LANGUAGES = "sw,te,bn,ja"
ASKING = ("--prompt", "direct", "--exemplars", "0", "--max-new-tokens", "6")


@pytest.fixture(scope="module")
def speakers(mgsm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, two math experts and a language expert whose tokenizer knows the four languages."""
    texts = [
        line.partition("\t")[0]
        for language in LANGUAGES.split(",")
        for line in (mgsm / f"mgsm_{language}.tsv").read_text().split("\n")[:60]
        if line
    ]
    root = tmp_path_factory.mktemp("speakers")
    return tiny.make_experts(root, texts, names=("math", "lang", "math-again"), dtype=tiny.torch.float32)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "lswap_eval", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*arguments: str | Path) -> int:
    """In this process, since a new one takes seconds to import what it needs."""
    return main.main([str(argument) for argument in arguments])


def test_resumed_after_kill_9_is_the_unbroken_run(speakers: dict[str, Path], mgsm: Path, tmp_path: Path) -> None:
    asked = (
        "run",
        "--model",
        speakers["math"],
        "--data",
        mgsm,
        "--languages",
        LANGUAGES,
        *ASKING,
        "--limit",
        "6",
        "--batch-size",
        "2",
    )
    assert run(*asked, "--out", tmp_path / "unbroken") == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(*asked, "--out", killed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment()
    )
    while not (killed.exists() and killed.read_bytes().count(b"\n") >= 1 + 5):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    unbroken, torn = (tmp_path / "unbroken").read_bytes(), killed.read_bytes()
    assert unbroken.startswith(torn)
    assert 6 <= torn.count(b"\n") < unbroken.count(b"\n")
    killed.write_bytes(unbroken[: torn.rindex(b"\n") + 40])  # as if it had been killed within a line
    assert run(*asked, "--out", killed, "--resume") == 0
    assert killed.read_bytes() == unbroken
    header, records = read_log(killed)
    assert len(records) == 24
    assert list(dict.fromkeys(record.language for record in records)) == LANGUAGES.split(",")
    lengths = [[r.prompt_tokens or 0 for r in records if r.language == language] for language in LANGUAGES.split(",")]
    assert [sorted(of_language, reverse=True) for of_language in lengths] == lengths
    assert str(tmp_path) not in json.dumps(header.to_json())
    assert str(speakers["math"].parent) not in json.dumps(header.to_json())


def test_what_is_another_run_is_refused(
    speakers: dict[str, Path], mgsm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--data", mgsm, "--languages", "sw", *ASKING, "--limit", "1", "--out", tmp_path / "log")
    assert run("run", "--model", speakers["math"], *asked) == 0
    before = (tmp_path / "log").read_bytes()
    said = {}
    for name, arguments in {
        "again": ("run", "--model", speakers["math"], *asked),
        "model": ("run", "--model", speakers["lang"], *asked, "--resume"),
        "batch": ("run", "--model", speakers["math"], *asked, "--resume", "--batch-size", "3"),
    }.items():
        capsys.readouterr()
        assert run(*arguments) == 4
        said[name] = capsys.readouterr().err
        assert said[name].count("\n") == 1
    assert "is there already; continue it with --resume" in said["again"]
    assert "is the log of another model" in said["model"]
    assert "batch_size 8 there, 3 now" in said["batch"]
    assert (tmp_path / "log").read_bytes() == before


def test_more_languages_are_added_to_a_log(speakers: dict[str, Path], mgsm: Path, tmp_path: Path) -> None:
    asked = ("run", "--model", speakers["math"], "--data", mgsm, *ASKING, "--limit", "3")
    assert run(*asked, "--languages", "sw,ja", "--out", tmp_path / "both") == 0
    assert run(*asked, "--languages", "sw", "--out", tmp_path / "log") == 0
    assert run(*asked, "--languages", "sw,ja", "--out", tmp_path / "log", "--resume") == 0
    assert (tmp_path / "log").read_bytes() == (tmp_path / "both").read_bytes()
    assert run(*asked, "--languages", "sw,ja", "--replay", tmp_path / "both", "--out", tmp_path / "replayed") == 0
    assert (tmp_path / "replayed").read_bytes() == (tmp_path / "both").read_bytes()


@pytest.mark.parametrize(
    ("case", "status", "expected"),
    [
        ("data", 4, "nowhere is not a directory"),
        ("empty data", 4, "is no MGSM data directory"),
        ("language", 4, "language 'xx' is not known; known are bn,"),
        ("no tokenizer", 4, "there is no tokenizer in it"),
        ("no model", 3, "no checkpoint"),
        ("missing", 1, "No such file or directory"),
        ("device", 4, "--device"),
    ],
)
def test_what_is_wrong_is_one_line(
    case: str,
    status: int,
    expected: str,
    experts: dict[str, Path],
    authored: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"--model": experts["math"], "--data": authored, "--languages": "sw", "--out": tmp_path / "log", "--exemplars": "0"}
    if case == "data":
        options["--data"] = tmp_path / "nowhere"
    elif case == "empty data":
        options["--data"] = experts["math"]
    elif case == "language":
        options["--languages"] = "sw,xx"
    elif case == "no tokenizer":
        options["--model"] = Path(shutil.copytree(experts["math"], tmp_path / "mute"))
        (options["--model"] / "tokenizer.json").unlink()
    elif case == "no model":
        options["--model"] = authored
    elif case == "missing":
        options["--model"] = tmp_path / "nowhere"
    else:
        options["--device"] = "cuda:77"
    assert run("run", *(part for option in options.items() for part in option)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lswap-eval: error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert not (tmp_path / "log").exists()


def test_an_ablation_of_two_pairs(
    speakers: dict[str, Path], mgsm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    maths = f"{speakers['math']},{speakers['math-again']}"
    asked = ("ablate", "--math", maths, "--lang", speakers["lang"], "--base", speakers["base"], "--data", mgsm)
    asked = (*asked, "--languages", "sw,ja", *ASKING, "--limit", "2", "--out", out)
    assert run(*asked, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "default: 1 1 0.5 0 0 0 0 0 0 0 0.5 1 (the method)" in shown
    assert "in every swap, outside the layers: embed math, norm math, head math" in shown
    assert not out.exists()
    assert run(*asked) == 0
    assert "math+lang default: merged to disk it gives the same 4 answers" in capsys.readouterr().err
    runs = json.loads((out / "runs.json").read_text())
    logs = [entry["log"] for pair in runs["pairs"] for entry in pair["settings"]]
    assert len(logs) == 32
    assert len(set(logs)) == 30  # base and lang are shared
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("logs/*")) == sorted(set(logs))
    headers = [read_log(out / log) for log in set(logs)]
    assert {len(records) for _, records in headers} == {4}
    assert len({header.identity for header, _ in headers}) == 30
    problems = {record.problem for _, records in headers for record in records}
    assert {half_of(problem) for problem in problems} == {"dev", "test"}
    table = (out / "results.md").read_text()
    for setting in ("base", "soup", "default", "no-zone-math", "no-zone-lang", "middle"):
        assert setting in table
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert {row["language"] for row in rows} == {"sw", "ja", "all"}
    assert {row["setting"] for row in rows if row["kind"] == "difference"} == {e["id"] for e in runs["pairs"][0]["settings"]} - {
        "default"
    }
    assert json.loads((out / "results.json").read_text())["pairs"] == ["math+lang", "math-again+lang"]
    for name in ("accuracy.svg", "flips.html"):
        assert (out / name).stat().st_size > 500
    # killed in the middle: a log is short, another is not there, the check has not been made
    before = {path.name: path.read_bytes() for path in out.glob("logs/*")}
    first, second = sorted(out.glob("logs/*default*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    assert run(*asked) == 4
    assert "continue them with --resume" in capsys.readouterr().err
    assert run(*asked, "--resume") == 0
    assert {path.name: path.read_bytes() for path in out.glob("logs/*")} == before
    # the check can fail
    changed = sorted(out.glob("logs/no-zone-math*"))[0]
    default = out / next(e["log"] for e in runs["pairs"][0]["settings"] if e["id"] == "default")
    lines = changed.read_bytes().splitlines(keepends=True)
    default.write_bytes(b"".join([*default.read_bytes().splitlines(keepends=True)[:1], *lines[1:]]))
    (out / CHECK_FILE).unlink()
    assert run(*asked, "--resume") == 6
    assert "merged to disk it answers otherwise than swapped in memory" in capsys.readouterr().err


def test_a_sweep(experts: dict[str, Path], authored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = ("sweep", "--math", experts["math"], "--lang", experts["lang"], "--data", authored, "--languages", "sw,ja")
    grid = ("--bottom", "0,2,11", "--top", "0-1", "--transition", "0,1")
    assert run(*asked, *grid, "--prompt", "direct", "--exemplars", "0", "--max-new-tokens", "4", "--out", out) == 0
    captured = capsys.readouterr()
    assert "left out, with more layers than the model has: b11u1t1" in captured.err
    assert "merged to disk it gives the same" in captured.err
    (pair,) = json.loads((out / "runs.json").read_text())["pairs"]
    ids = {entry["id"]: entry["identity"] for entry in pair["settings"]}
    assert len(ids) == 2 + 12 - 1
    assert ids["b0u0t0"] == ids["b0u0t1"] == ids["math"]
    assert len(set(ids.values())) == 2 + 9
    assert (out / "sweep.svg").stat().st_size > 500
    assert len(list(out.glob("logs/*"))) == 11
