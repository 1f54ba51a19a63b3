"""The benchmarks run, measure what a process does, and refuse wrong outputs. No figure is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.build import HANG_SECONDS, unmeasured

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
MODULES = ("contenders", "gate", "harness", "pair", "make_experts", "scripts")
SLOW_PEERS = () if os.environ.get("LSWAP_LONG") else ("--skip", "transformers", "--skip", "safetensors")


def bench(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(BENCHMARKS / name), *map(str, options)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=unmeasured(), timeout=HANG_SECONDS)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The benchmarks' modules, which are scripts in a directory and no package; forgotten again after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = {}
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in MODULES:
        found[name] = __import__(name)
        monkeypatch.setitem(sys.modules, name, found[name])
    return found


def test_a_merge_is_measured(tmp_path: Path) -> None:
    done = bench(
        "bench_merge.py", "--dir", tmp_path, "--size", "2MB", "--rounds", 2, "--json", tmp_path / "found.json", *SLOW_PEERS
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "found.json").read_text())
    contenders = record["contenders"]
    assert "`cp -r`" in contenders
    assert "numpy script" in contenders
    swaps = [name for name in contenders if name.startswith("lswap_core")]
    assert swaps
    assert set(swaps) < set(record["gate"])
    assert contenders["`cp -r`"]["wall_of_cp"] == 1
    for name, figures in contenders.items():
        assert f"| {name} |" in done.stdout
        for figure in ("wall_s", "cpu_s", "peak_anonymous_bytes", "read_bytes", "written_bytes"):
            assert len(figures[figure]["runs"]) == 2
            assert figures[figure]["min"] <= figures[figure]["median"] <= figures[figure]["max"]
        assert figures["wall_s"]["min"] > 0
        assert figures["written_bytes"]["min"] >= (0 if figures["sync_s"]["max"] == 0 else record["size_bytes"])
    for name in swaps:
        assert contenders[name]["peak_anonymous_bytes"]["min"] > 1 << 20  # an interpreter at the least
    for name, reason in record["left_out"].items():
        assert f"{name}: {reason}" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"math", "lang", "pair.json", "found.json"}


def test_growth_is_measured(tmp_path: Path) -> None:
    options = ("--sizes", "2MB,10MB", "--workers", "1,2", "--tensors", 200, "--rounds", 1)
    done = bench("bench_scale.py", "--dir", tmp_path, *options, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "found.json").read_text())
    small, large = record["sizes"]
    assert small["size_bytes"] < large["size_bytes"]
    for size in (small, large):
        assert set(size["contenders"]) == {"`cp -r`", "lswap_core, --workers 1", "lswap_core, --workers 2"}
    assert record["plan"]["tensors"] == 22 * 9 + 2
    assert record["plan"]["wall_s"]["median"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_nothing_is_measured_where_the_output_is_wrong(tmp_path: Path) -> None:
    rotten = tmp_path / "rotten.py"
    rotten.write_text(
        "import pathlib, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'lswap_core', *sys.argv[1:]], check=True)\n"
        "if '--out' in sys.argv:\n"
        "    out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "    shard = max(out.glob('*.safetensors'))\n"
        "    data = bytearray(shard.read_bytes())\n"
        "    data[-1] ^= 1\n"
        "    shard.write_bytes(data)\n"
    )
    found = tmp_path / "found.json"
    options = ("--dir", tmp_path, "--size", "2MB", "--rounds", 1, "--json", found, *SLOW_PEERS)
    done = bench("bench_merge.py", *options, "--lswap-core", sys.executable, rotten)
    assert done.returncode == 1
    assert "has 1 wrong values" in done.stderr
    assert "no figures are given" in done.stderr
    assert done.stdout == ""
    assert not found.exists()


def test_the_gate_sees_every_kind_of_fault(tmp_path: Path, modules: dict[str, ModuleType]) -> None:
    gate, out = modules["gate"], tmp_path / "out"
    pair = modules["pair"].make(tmp_path, 2_000_000)
    modules["scripts"].with_numpy(pair.math, pair.lang, out)

    def problems(*, exact: bool = True) -> list[str]:
        return list(gate.problems(out, pair.math, pair.lang, gate.Swap(), exact=exact))

    assert problems() == []
    names = {f"model.layers.{layer}.mlp.up_proj.weight": layer for layer in (0, 4, 8, 13, 15)}
    for name in ("model.embed_tokens.weight", "model.norm.weight", *names):
        place = gate.tensors(out)[name]
        whole = place.path.read_bytes()
        for flipped, seen_by_all in ((0x01, False), (0x80, True)):  # the last bit of the fraction's low byte; its high bit
            spoilt = bytearray(whole)
            spoilt[place.begin] ^= flipped
            place.path.write_bytes(spoilt)
            assert problems() == [f"{name} has 1 wrong values of {place.size_bytes // 2}"]
            assert bool(problems(exact=False)) is seen_by_all
        place.path.write_bytes(whole)
    last = max(out.glob("*.safetensors"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    assert len(problems()) == 1
    assert "is cut off" in problems()[0]
    last.unlink()
    assert "are missing" in problems()[0]


def test_other_swaps_are_not_taken_for_this_one(tmp_path: Path, modules: dict[str, ModuleType]) -> None:
    gate = modules["gate"]
    pair = modules["pair"].make(tmp_path, 2_000_000)
    modules["scripts"].with_numpy(pair.math, pair.lang, tmp_path / "out")
    for swap in (gate.Swap(bottom=3), gate.Swap(top=1), gate.Swap(transition=1), gate.Swap(weight=0.25), gate.Swap(outside=1.0)):
        for exact in (True, False):
            assert gate.problems(tmp_path / "out", pair.math, pair.lang, swap, exact=exact)


def test_what_a_process_and_its_children_do_is_counted(tmp_path: Path, modules: dict[str, ModuleType]) -> None:
    harness = modules["harness"]
    work = tmp_path / "work.py"
    work.write_text(
        "import os, subprocess, sys, time\n"
        "if len(sys.argv) == 3:\n"
        "    sys.exit(subprocess.run([sys.executable, *sys.argv[:2]]).returncode)\n"
        "held = bytearray(os.urandom(1 << 20)) * 64\n"
        "os.mkdir(sys.argv[1])\n"
        "with open(sys.argv[1] + '/file', 'wb') as file:\n"
        "    file.write(held[: 8 << 20])\n"
        "while time.process_time() < 0.3:\n"
        "    pass\n"
    )
    for more in ([], ["in a child"]):
        contender = harness.Contender("work", lambda out, more=more: [sys.executable, work, out, *more], lambda out: [])
        found = harness.measure(contender, tmp_path / "out")
        harness.remove(tmp_path / "out")
        assert 64 << 20 <= found.peak_anonymous_bytes < 160 << 20
        assert found.peak_resident_bytes >= found.peak_anonymous_bytes
        assert 8 << 20 <= found.written_bytes < 16 << 20
        assert found.cpu_s >= 0.3
        assert found.wall_s > 0.3
        assert 0 < found.sync_s < found.wall_s


def test_a_run_that_fails_is_none(tmp_path: Path, modules: dict[str, ModuleType]) -> None:
    harness = modules["harness"]
    failing = harness.Contender("fails", lambda out: ["sh", "-c", "mkdir $0; echo no room >&2; exit 3", str(out)], lambda out: [])
    admitted, left_out = harness.admit([failing], tmp_path, [])
    assert admitted == []
    assert left_out == {"fails": "sh ended with 3: no room"}
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_is_measured(tmp_path: Path) -> None:
    done = bench("bench_analyze.py", "--dir", tmp_path, "--size", "2MB", "--rounds", 1, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["speed_of_cat"] > 0
    assert len(record["contenders"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_a_wrong_analysis_is_not_measured(tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(
        "import sys\nfrom lswap_core import kernels\nfrom lswap_core.cli.main import main\nright = kernels.stats_of_files\n"
        "import dataclasses\n"
        "def wrong(*given, **more):\n    return [dataclasses.replace(each, max_abs=0.5) for each in right(*given, **more)]\n"
        "kernels.stats_of_files = wrong\nsys.exit(main())\n"
    )
    done = bench("bench_analyze.py", "--dir", tmp_path, "--size", "2MB", "--rounds", 1, "--lswap-core", sys.executable, script)
    assert done.returncode == 1
    assert "max_abs" in done.stderr
