"""The command line by hand, in process and as a process of its own."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from lswap_core import Draft, execute, lay_out, layers, open_checkpoint
from lswap_core.cli.main import main
from tests.build import HANG_SECONDS, Pair, llama_pair, read_model, tree, unmeasured, write_model

COMMAND = [sys.executable, "-m", "lswap_core"]
SWAP = ["--bottom", "2", "--top", "1", "--transition", "1"]
SOURCES = ["--math", "math", "--lang", "lang"]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Two experts in the working directory."""
    monkeypatch.chdir(tmp_path)
    return llama_pair(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def test_merge_and_verify(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "merge", "--math", "math", "--lang", "lang", *SWAP)
    assert (status, err) == (0, "")
    assert "layers 0-1" in out
    assert "math+lang-b2u1t1: 8 layers: 3 lang, 2 blended, 3 math" in out
    assert (pair.math.parent / "math+lang-b2u1t1" / "lswap_manifest.json").exists()
    for extra in ([], ["--math", "math", "--lang", "lang"]):
        status, out, err = run(capsys, "verify", "math+lang-b2u1t1", *extra)
        assert (status, err) == (0, "")
        assert "27 tensors" in out


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--bottom", "2", "--top", "1"], "math+lang-b2u1t0"),
        (["--bottom", "2", "--transition", "1", "--transition-bottom", "2"], "math+lang-b2u0t2-1"),
        (["--lang-layers", "0-2,7"], "math+lang-custom"),
        (["--bottom", "1", "--math-name", "org/mathy", "--lang-name", "org/swahili"], "mathy+swahili-b1u0t0"),
    ],
)
def test_outputs_without_a_name_get_one(pair: Pair, capsys: pytest.CaptureFixture[str], argv: list[str], name: str) -> None:
    assert run(capsys, "merge", "--math", "math", "--lang", "lang", *argv, "--quiet") == (0, "", "")
    assert Path(name).is_dir()


def test_experts_of_one_name_are_pointed_out(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "--math", "math", "--lang", "lang", "--bottom", "1"]
    assert "both experts are called 'x'" in run(capsys, *argv, "--math-name", "x", "--lang-name", "x")[1]
    assert "both experts" not in run(capsys, *argv)[1]


def test_plan_and_apply_are_merge(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["--math", "math", "--lang", "lang"]
    assert run(capsys, "merge", *sources, *SWAP, "--out", "one", "--quiet")[0] == 0
    assert run(capsys, "plan", *sources, *SWAP, "--out", "plan.json", "--quiet")[0] == 0
    assert run(capsys, "apply", "plan.json", "--out", "two", "--quiet")[0] == 0
    one, two = tree(Path("one")), tree(Path("two"))
    assert one == two


def test_a_plan_applies_where_the_sources_lie_now(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "plan", "--math", "math", "--lang", "lang", *SWAP, "--out", "plan.json", "--quiet")[0] == 0
    shutil.copytree("math", "moved")
    shutil.rmtree("math")
    status, _, err = run(capsys, "apply", "plan.json", "--out", "out")
    assert status == 1
    assert err.startswith("lswap-core: error: ")
    assert run(capsys, "apply", "plan.json", "--out", "out", "--math", "moved", "--quiet") == (0, "", "")
    assert run(capsys, "apply", "plan.json", "--out", "out2", "--math", "lang")[0] == 5


def test_dry_run_shows_the_plan_and_writes_nothing(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(Path())
    status, out, err = run(capsys, "merge", "--math", "math", "--lang", "lang", *SWAP, "--dry-run")
    assert (status, err) == (0, "")
    for words in (
        "layers 0-1",
        "blend of math and lang",
        "embeddings",
        "head",
        "reads",
        "writes",
        "needs",
        "3 shards",
        "model.layers.0 to",
    ):
        assert words in out
    assert tree(Path()) == before


def test_json_everywhere(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["--math", "math", "--lang", "lang"]

    def result(*argv: str, status: int = 0) -> Any:
        found = run(capsys, *argv, "--json")
        assert found[0] == status
        return json.loads(found[1])

    plan = result("merge", *sources, *SWAP, "--dry-run")
    assert plan == result("plan", *sources, *SWAP)
    manifest = result("merge", *sources, *SWAP, "--out", "out")
    assert manifest == json.loads(Path("out/lswap_manifest.json").read_text())
    assert result("verify", "out", *sources) == {"verified": 27, "against": ["manifest", "math", "lang"], "unread": []}
    assert result("inspect", "math")["stack"] == {"prefix": "model.layers", "count": 8}
    assert result("diff", "math", "math")["bytes"] == []
    assert len(result("diff", "math", "out", status=1)["bytes"]) == 15
    error = result("merge", *sources, *SWAP, "--out", "out", status=4)["error"]
    assert (error["type"], error["exit"]) == ("RecipeError", 4)
    assert result("plan", "--math", "math", "--lang", "lang", "--bottom", "1", "--embed", "lang", "--shard-size", "x", status=4)


def test_inspect(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "inspect", "math", "--tensors")
    assert status == 0
    for words in (
        "27 tensors in 3 shards",
        "8 layers: model.layers.0 to model.layers.7",
        "BF16",
        "model.norm.weight",
        "24x8",
        "head: lm_head.weight",
    ):
        assert words in out
    write_model(Path("flat"), {"scale": read_model(pair.math)["model.norm.weight"]})
    status, out, _ = run(capsys, "inspect", "flat")
    assert status == 0
    assert "no stack of layers" in out


def test_diff(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    model = dict(pair.math_model)
    a, b, c, d = sorted(model)[:4]
    changed = dict(model)
    flipped = bytearray(model[a].data)
    flipped[-1] ^= 1
    changed[a] = type(model[a])("BF16", model[a].shape, bytes(flipped))
    changed[b] = type(model[b])("F16", model[b].shape, model[b].data)
    changed[c] = type(model[c])("BF16", (*model[c].shape, 1), model[c].data)
    del changed[d]
    changed["new"] = model[d]
    write_model(Path("changed"), changed)
    status, out, _ = run(capsys, "diff", "math", "changed")
    assert status == 1
    for line in (
        f"other bytes: {a}",
        f"other dtype: {b}",
        f"other shape: {c}",
        f"only in a: {d}",
        "only in b: new",
        "23 tensors are equal, 5 differ",
    ):
        assert line in out.splitlines()
    assert run(capsys, "diff", "math", "math")[:2] == (0, "27 tensors are equal\n")


def corrupt(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


def test_verify_names_what_rotted(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "merge", "--math", "math", "--lang", "lang", *SWAP, "--out", "out", "--quiet")
    first, second, third = sorted(Path("out").glob("*.safetensors"))
    corrupt(first)
    corrupt(second, 20)
    third.unlink()
    corrupt(Path("out/tokenizer.json"))
    Path("out/config.json").unlink()
    shutil.copy("math/model-00001-of-00003.safetensors", "out/stray.safetensors")
    status, out, err = run(capsys, "verify", "out", "--json")
    assert status == 6
    assert len(err.splitlines()) == 1
    issues = json.loads(out)["error"]["issues"]
    last = list(read_model(pair.math))[-1]  # a name, to compare with
    assert last
    for words in ("tokenizer.json: has SHA-256", "config.json: No such file", "stray.safetensors: is not in the manifest",
                  f"shard {second.name}: ", f"shard {third.name}: ", f"in {first.name} has digest"):  # fmt: skip
        assert sum(words in issue for issue in issues) == 1, words
    assert len(issues) == 6


def test_verify_against_sources(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "merge", "--math", "math", "--lang", "lang", *SWAP, "--out", "out", "--quiet")
    manifest = json.loads(Path("out/lswap_manifest.json").read_text())

    def forge(name: str, **changes: object) -> None:
        shutil.rmtree("forged", ignore_errors=True)
        shutil.copytree("out", "forged")
        record = manifest["tensors"][name]
        with Path("forged", record["file"]).open("r+b") as file:
            file.seek(record["begin"])
            data = bytearray(file.read(record["end"] - record["begin"]))
            data[5] ^= 1
            if "statistics" not in changes:
                file.seek(record["begin"])
                file.write(data)
                changes["digest"] = f"xxh3-128:{xxhash.xxh3_128_hexdigest(bytes(data))}"
        forged = manifest | {"tensors": manifest["tensors"] | {name: record | changes}}
        Path("forged/lswap_manifest.json").write_text(json.dumps(forged))

    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"):
        forge(name)
        assert run(capsys, "verify", "forged")[0] == 0  # a manifest that agrees with the data
        status, _, err = run(capsys, "verify", "forged", "--math", "math", "--lang", "lang")
        assert (status, f"tensor {name!r}" in err, "is not what its sources give from byte 5 of it on" in err) == (6, True, True)
    blended = "model.layers.2.mlp.up_proj.weight"
    forge(blended, statistics=manifest["tensors"][blended]["statistics"] | {"sum_abs": 1.5})
    status, _, err = run(capsys, "verify", "forged", "--math", "math", "--lang", "lang")
    assert (status, "has other statistics" in err) == (6, True)

    Path("out/config.json").write_text("{}")
    forged = manifest | {
        "sidecars": [
            r | ({"sha256": hashlib.sha256(b"{}").hexdigest(), "size": 2} if r["name"] == "config.json" else {})
            for r in manifest["sidecars"]
        ]
    }
    Path("out/lswap_manifest.json").write_text(json.dumps(forged))
    assert run(capsys, "verify", "out")[0] == 0
    status, _, err = run(capsys, "verify", "out", "--math", "math", "--lang", "lang")
    assert (status, "config.json: is not that of math" in err) == (6, True)


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--math", "math"], 4, "give --lang too"),
        (["--math", "math", "--lang", "lang", "--base", "math"], 4, "--base is given, but nothing was made from base"),
        (["--math", "lang", "--lang", "math"], 6, "is not the file that was merged"),  # same names, same headers
        (["--math", "math", "--lang", "other/lang"], 6, "is not the file that was merged"),
        (["--workers", "0"], 4, "--workers is 0"),
        (["--workers", "-1"], 4, "--workers is -1"),
    ],
)
def test_sources_that_do_not_fit_the_output(
    pair: Pair, capsys: pytest.CaptureFixture[str], argv: list[str], status: int, words: str
) -> None:
    run(capsys, "merge", "--math", "math", "--lang", "lang", *SWAP, "--out", "out", "--quiet")
    llama_pair(Path("other"), layers=9)
    found, out, err = run(capsys, "verify", "out", *argv)
    assert (found, out, words in err, len(err.splitlines())) == (status, "", True, 1)


def test_verify_of_what_is_no_output(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "verify", "math")
    assert (status, "there is no lswap_manifest.json in it" in err) == (1, True)


def test_a_plan_is_not_written_over_anything(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(Path())
    for place, words in (
        ("lang/config.json", "is inside the source"),
        ("math/plan.json", "is inside the source"),
        ("no/plan.json", "does not exist"),
    ):
        status, _, err = run(capsys, "plan", *SOURCES, *SWAP, "--out", place)
        assert (status in (1, 4), words in err) == (True, True)
    assert tree(Path()) == before
    assert run(capsys, "plan", *SOURCES, *SWAP, "--out", "p.json", "--quiet")[0] == 0
    assert "exists" in run(capsys, "plan", *SOURCES, *SWAP, "--out", "p.json")[2]


@pytest.mark.parametrize("change", [{"bottom": "/../../escaped"}, {"bottom": 3}, {"weight": "abc"}, {"other": 1}])
def test_a_plan_whose_recipe_is_not_its_own_is_refused(
    pair: Pair, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    run(capsys, "plan", *SOURCES, *SWAP, "--out", "p.json", "--quiet")
    document = json.loads(Path("p.json").read_text())
    document["swap"]["options"] |= change
    Path("p.json").write_text(json.dumps(document))
    status, out, err = run(capsys, "apply", "p.json")
    assert (status, out, "p.json: swap." in err) == (3, "", True)


def test_a_dry_run_looks_at_the_destination_too(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "merge", *SOURCES, *SWAP, "--out", "math", "--dry-run")[0] == 4
    assert run(capsys, "merge", *SOURCES, *SWAP, "--out", "fine", "--dry-run")[0] == 0


def test_a_merge_says_what_it_took_for_which(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "merge", *SOURCES, "--top", "1", "--transition", "1", "--out", "out")
    assert "no seam at the bottom" in out
    assert "embed: model.embed_tokens.weight (math)" in out


def test_names_cannot_drive_the_terminal(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    one = pair.math_model["lm_head.weight"]
    write_model(Path("evil"), {"\x1b[2J\nall is well": one, "a": one})
    for argv in (["inspect", "evil", "--tensors"], ["diff", "evil", "math"], ["diff", "math", "evil"]):
        out = run(capsys, *argv)[1]
        assert "\x1b" not in out
        assert "\\x1b[2J\\nall is well" in out


def test_asking_for_layers_that_are_not_there(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "inspect", "math", "--layer-prefix", "nonsense")
    assert (status, "no layers at 'nonsense'" in err) == (4, True)
    assert run(capsys, "inspect", "math", "--quiet") == (0, "", "")
    assert len(json.loads(run(capsys, "inspect", "math", "--json", "--tensors")[1])["list"]) == 27


def test_single_files_are_experts(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(Path("a"), pair.math_model)
    write_model(Path("b"), pair.lang_model)
    Path("a/model.safetensors").rename("A.safetensors")
    Path("b/model.safetensors").rename("B.safetensors")
    status, out, _ = run(capsys, "merge", "--math", "A.safetensors", "--lang", "B.safetensors", *SWAP)
    assert (status, "A+B-b2u1t1: 8 layers" in out) == (0, True)
    assert sorted(path.name for path in Path("A+B-b2u1t1").iterdir()) == ["README.md", "lswap_manifest.json", "model.safetensors"]
    Path("pytorch_model.bin").write_bytes(b"\x80\x02")
    status, _, err = run(capsys, "inspect", "pytorch_model.bin")
    assert (status, "which run code when read; convert them" in err) == (3, True)


def test_surgery_does_not_call_itself_layer_swapping(pair: Pair) -> None:
    math = open_checkpoint("math", role="math")
    execute(lay_out(Draft.of(math).drop(layers(7, 8))), into="out")
    card = Path("out/README.md").read_text()
    assert "by surgery on its tensors" in card
    assert "lswap-core merge" not in card
    base = open_checkpoint("lang", role="base")
    execute(lay_out(Draft.of(base)), into="copy")  # config and tokenizer are the host's, whatever its role
    assert Path("copy/tokenizer_config.json").read_text() == Path("lang/tokenizer_config.json").read_text()


def test_a_second_interruption_does_not_stop_the_clearing(tmp_path: Path) -> None:
    big_pair(tmp_path)
    argv = [*COMMAND, "merge", *SOURCES, "--bottom", "1", "--transition", "6", "--out", "out"]
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unmeasured())
    partial = tmp_path / ".out.partial" / "model.safetensors"
    while not partial.exists():
        assert process.poll() is None
        time.sleep(0.005)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lang", "math"]


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        ([*SOURCES, "--bottom", "5", "--top", "4"], 4, "bottom 5 + transition 0 + transition 0 + top 4 = 9 layers, but the model has 8"),
        ([*SOURCES, "--bottom", "3", "--top", "3", "--transition", "2"], 4, "= 10 layers, but the model has 8"),
        ([*SOURCES, "--bottom", "-1"], 4, "--bottom is -1"),
        ([*SOURCES, "--bottom", "2", "--weight", "nan"], 4, "--weight is nan"),
        ([*SOURCES], 4, "nothing to swap: say how many layers"),
        ([*SOURCES, "--top", "1", "--transition-bottom", "1"], 4, "--bottom is 0"),
        ([*SOURCES, "--lang-layers", "0-2,9"], 4, "layers 9 do not exist"),
        ([*SOURCES, "--lang-layers", "two"], 4, "'two' is no list of layers"),
        ([*SOURCES, "--bottom", "1", "--layer-prefix", "x"], 4, "no layers at 'x'; numbered stacks: model.layers (8 layers)"),
        ([*SOURCES, "--bottom", "1", "--shard-size", "5 apples"], 4, "'5 apples' is not a size"),
        ([*SOURCES, "--bottom", "1", "--workers", "0"], 4, "--workers is 0"),
        ([*SOURCES, "--bottom", "1", "--out", "math"], 4, "is, contains or is inside the source"),
        ([*SOURCES, "--bottom", "1", "--out", "math/out"], 4, "is, contains or is inside the source"),
        ([*SOURCES, "--bottom", "1", "--out", "."], 4, "is, contains or is inside the source"),
        ([*SOURCES, "--bottom", "1", "--out", "taken"], 4, "taken exists"),
        ([*SOURCES, "--bottom", "1", "--out", "dangling"], 4, "exists"),
        ([*SOURCES, "--bottom", "1", "--out", "no/such/place"], 1, "parent directory does not exist"),
        (["--math", "nowhere", "--lang", "lang", "--bottom", "1"], 1, "nowhere: No such file or directory"),
        (["--math", "pickles", "--lang", "lang", "--bottom", "1"], 3, "holds only pickled weights (pytorch_model.bin)"),
        (["--math", "math", "--lang", "wide", "--bottom", "1"], 4, "has shape [8, 8] in math, [9, 9] in lang"),
        (["--math", "math", "--lang", "short", "--bottom", "1"], 4, "tensor 'model.layers.7.input_layernorm.weight' is in math only"),
        (["--math", "none", "--lang", "none", "--bottom", "1"], 4, "num_hidden_layers is 0; expected a positive number"),
    ],
)  # fmt: skip
def test_bad_requests(pair: Pair, capsys: pytest.CaptureFixture[str], argv: list[str], status: int, words: str) -> None:
    Path("taken").mkdir()
    Path("dangling").symlink_to("nothing")
    Path("pickles").mkdir()
    Path("pickles/pytorch_model.bin").write_bytes(b"\x80")
    wide = {n: type(t)(t.dtype, (9, 9), bytes(162)) if n.endswith("q_proj.weight") else t for n, t in pair.lang_model.items()}
    write_model(Path("wide"), wide)
    write_model(Path("short"), {n: t for n, t in pair.lang_model.items() if ".7." not in n})
    write_model(Path("none"), pair.math_model, config={"num_hidden_layers": 0})
    before = tree(Path())
    found, out, err = run(capsys, "merge", *argv)
    assert (found, out) == (status, "")
    assert err.startswith("lswap-core: error: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert tree(Path()) == before
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize(
    "argv", [["merge", "--bottm", "4"], ["merge", "--math", "m", "--lang", "l", "--tran", "2"], ["mrege"], []]
)
def test_misspelt_words_are_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: lswap-core" in capsys.readouterr().err


def test_a_disk_that_is_too_small(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("math", "lang"):  # sparse: sizes without data
        header = {
            f"model.layers.{n}.w": {"dtype": "U8", "shape": [1 << 43], "data_offsets": [n << 43, (n + 1) << 43]} for n in range(1)
        }
        text = json.dumps(header).encode()
        Path("huge" + role).mkdir()
        with Path(f"huge{role}/model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + (1 << 43))
    status, out, err = run(capsys, "merge", "--math", "hugemath", "--lang", "hugelang", "--bottom", "1", "--out", "out")
    assert (status, out) == (1, "")
    assert "8.8 TB are to be written, the disk has" in err
    assert not list(Path().glob("*out*")) + list(Path().glob(".*"))


def test_an_unreadable_file(pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith("lang/model-00002-of-00003.safetensors"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)  # the superuser may read anything, so the mode bits would not do
    status, out, err = run(capsys, "merge", "--math", "math", "--lang", "lang", *SWAP, "--out", "out")
    assert (status, out) == (1, "")
    assert err.rstrip().endswith("lang/model-00002-of-00003.safetensors: Permission denied")


def test_a_source_that_changes_while_it_is_merged(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "plan", "--math", "math", "--lang", "lang", *SWAP, "--out", "plan.json", "--quiet")
    os.utime("math/model-00002-of-00003.safetensors", ns=(1, 1))
    status, out, err = run(capsys, "apply", "plan.json", "--out", "out")
    assert (status, out) == (5, "")
    assert "model-00002-of-00003.safetensors: not the math file that was planned; plan again" in err
    run(capsys, "plan", "--math", "math", "--lang", "lang", *SWAP, "--out", "again.json", "--quiet")
    Path("math/generation_config.json").write_text("{}")
    status, _, err = run(capsys, "apply", "again.json", "--out", "out")
    assert (status, "generation_config.json: changed after it was planned" in err) == (5, True)
    assert not Path("out").exists()


def big_pair(root: Path) -> None:
    """Sources large enough that a merge of them can be interrupted."""
    for role in ("math", "lang"):
        header, size = {}, 1 << 26
        for n in range(8):
            header[f"model.layers.{n}.w"] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [n * size, (n + 1) * size]}
        text = json.dumps(header).encode()
        (root / role).mkdir()
        with (root / role / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 8 * size)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_cleanly(tmp_path: Path, number: int, status: int) -> None:
    big_pair(tmp_path)
    argv = [*COMMAND, "merge", "--math", "math", "--lang", "lang", "--bottom", "1", "--transition", "6", "--out", "out"]
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unmeasured())
    partial = tmp_path / ".out.partial" / "model.safetensors"
    while not partial.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == status
    assert out == ""
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lang", "math"]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    big_pair(tmp_path)
    code = (
        "import sys; from lswap_core.cli.main import main; status = main(sys.argv[1:])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
        "sys.exit(status)"
    )
    argv = [
        "merge",
        "--math",
        "math",
        "--lang",
        "lang",
        "--bottom",
        "1",
        "--transition",
        "2",
        "--out",
        "out",
        "--workers",
        "4",
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True, check=True, env=unmeasured()
    )
    assert int(done.stdout) * 1024 < 300e6  # a model of 1 GB; not ru_maxrss, which counts the parent before exec


def test_help_is_cheap_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['lswap_core', '--help']\n"
        "import lswap_core\n"
        "from lswap_core.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'triton', 'transformers', 'huggingface_hub', 'safetensors', 'xxhash'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"
    # Alternately, so that both have the same machine: help costs less than what it may load does, were it all loaded.
    plain = [sys.executable, "-c", "import argparse, dataclasses, importlib.metadata, json, pathlib, subprocess, typing"]
    costs = [(cpu_seconds([*COMMAND, "--help"]), cpu_seconds(plain)) for _ in range(5)]
    of_help, of_plain = map(min, zip(*costs, strict=True))
    assert of_help < 2.5 * of_plain, costs  # 0.9 on an idle AMD EPYC; with numpy loaded 2.5 and more


def cpu_seconds(argv: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, capture_output=True, check=True, env=unmeasured())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_terminal_gets_a_bar_and_a_pipe_does_not(pair: Pair) -> None:
    main_fd, terminal = pty.openpty()
    argv = [*COMMAND, "merge", "--math", "math", "--lang", "lang", *SWAP, "--out"]
    subprocess.run([*argv, "one"], stderr=terminal, stdout=subprocess.DEVNULL, check=True)
    subprocess.run([*argv, "two", "--quiet"], stderr=subprocess.PIPE, check=True)
    os.set_blocking(main_fd, False)
    shown = os.read(main_fd, 1 << 16).decode()
    os.close(main_fd)
    os.close(terminal)
    assert "writing one" in shown
    done = subprocess.run([*argv, "three"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_reader_that_has_seen_enough(pair: Pair) -> None:
    argv = [*COMMAND, "plan", "--math", "math", "--lang", "lang", *SWAP, "--json"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=HANG_SECONDS)
    process.stderr.close()
    assert process.returncode in (0, 1)
