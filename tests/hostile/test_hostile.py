"""Malformed checkpoints are refused: by the library, by the command line, without reading beyond or leaving anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lswap_core
from lswap_core import FormatError, open_checkpoint
from tests.build import HANG_SECONDS

from .conftest import Run, open_descriptors, picture
from .corpus import (
    CASES,
    CONFIG,
    DATA,
    EMBED,
    INDEX,
    NAMES,
    OS_CASES,
    SHARDS,
    SINGLE,
    TOKENIZER,
    VALID,
    Case,
    encode,
    entries,
    index,
    make_expert,
    to_bytes,
    with_length,
)

Refused = Callable[..., str]
BY_ID = {case.id: case for case in CASES}
_OTHER_ROLE = {"math": "lang", "lang": "math"}


def _sources(tmp_path: Path, experts: Path, case: Case, role: str) -> tuple[str, ...]:
    """The case in one role, a good expert in the other."""
    (tmp_path / "case").mkdir()
    other = _OTHER_ROLE[role]
    return (f"--{role}", str(case.make(tmp_path / "case")), f"--{other}", str(experts / other))


def _merge(sources: tuple[str, ...], out: Path) -> tuple[str, ...]:
    return ("merge", *sources, "--bottom", "1", "--transition", "1", "--out", str(out))


# The one thing that is wrong is what is refused: without it, everything works.


@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "single"])
def test_the_unspoilt_expert_opens_and_merges(tmp_path: Path, sharded: bool) -> None:
    math, lang = make_expert(tmp_path / "math", 1, sharded=sharded), make_expert(tmp_path / "lang", 2)
    assert sorted(open_checkpoint(math, role="math").tensors) == sorted(NAMES)
    sources = ("--math", str(math), "--lang", str(lang))
    assert lswap_core.cli.main.main(list(_merge(sources, tmp_path / "merged"))) == 0
    assert (tmp_path / "merged" / "config.json").read_bytes() == to_bytes(CONFIG)
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == to_bytes(TOKENIZER)


def test_the_unspoilt_file_opens_and_merges(tmp_path: Path) -> None:
    (tmp_path / "math.safetensors").write_bytes(VALID)
    assert list(open_checkpoint(tmp_path / "math.safetensors", role="math").tensors) == list(NAMES)
    sources = ("--math", str(tmp_path / "math.safetensors"), "--lang", str(make_expert(tmp_path / "lang", 2)))
    assert lswap_core.cli.main.main(list(_merge(sources, tmp_path / "merged"))) == 0


def test_the_links_of_a_hub_cache_open_and_merge(tmp_path: Path) -> None:
    real = make_expert(tmp_path / "real", 1)
    blobs, snapshot = tmp_path / "models--org--name" / "blobs", tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(real.iterdir())):
        file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    assert open_checkpoint(snapshot, role="math").name == "org/name"
    sources = ("--math", str(snapshot), "--lang", str(make_expert(tmp_path / "lang", 2)))
    assert lswap_core.cli.main.main(list(_merge(sources, tmp_path / "merged"))) == 0


def test_a_link_from_a_hub_cache_to_elsewhere_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = make_expert(cache / "snapshots" / "0123abcd", 1)
    (cache / "blobs").mkdir()
    (cache / "refs").mkdir()
    (snapshot / SHARDS[1]).rename(cache / "refs" / "x")
    (snapshot / SHARDS[1]).symlink_to("../../refs/x")
    with pytest.raises(FormatError, match="leads out of the checkpoint's directory"):
        open_checkpoint(snapshot, role="math")


def test_a_link_that_stays_inside_is_followed(tmp_path: Path) -> None:
    root = make_expert(tmp_path / "expert", 1)
    (root / "weights").mkdir()
    (root / SHARDS[1]).rename(root / "weights" / "x")
    (root / SHARDS[1]).symlink_to("weights/x")
    (tmp_path / "link").symlink_to("expert")
    assert sorted(open_checkpoint(tmp_path / "link", role="math").tensors) == sorted(NAMES)


# The corpus.


def test_cases_have_names_of_their_own() -> None:
    assert len(BY_ID) == len(CASES) >= 300


@pytest.mark.parametrize("case", [case for case in CASES if not case.late], ids=lambda case: case.id)
def test_opening_refuses(tmp_path: Path, case: Case) -> None:
    path = case.make(tmp_path)
    before, descriptors = picture(tmp_path), open_descriptors()
    with pytest.raises(FormatError) as caught:
        open_checkpoint(path, role="math")
    assert (picture(tmp_path), open_descriptors()) == (before, descriptors)
    error = caught.value
    assert error.tensor == case.tensor
    assert Path(error.path).is_relative_to(tmp_path)
    assert Path(error.path).name == case.file
    assert str(error).startswith(error.path)
    assert case.words in str(error)
    if case.tensor is not None:
        assert f"tensor {case.tensor!r}" in str(error)


@pytest.mark.parametrize("role", ["math", "lang"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_merging_refuses(tmp_path: Path, experts: Path, case: Case, role: str, refused: Refused) -> None:
    sources = _sources(tmp_path, experts, case, role)
    (tmp_path / "out").mkdir()
    line = refused(*_merge(sources, tmp_path / "out" / "merged"))
    assert f"/{case.file}:" in line
    assert " ".join(case.words.split()) in line
    if case.tensor is not None:
        assert f": tensor {case.tensor!r}: " in line


_BY_PROCESS = {
    "length-2^63-in-20-bytes": False,
    "deep-objects": False,
    "name-with-high-surrogate": True,
    "name-twice-one-escaped": True,
    "index-file-parent-there": False,
    "index-file-surrogate": True,
    "shard-fifo": False,
    "tokenizer-vocab-is-text": True,
}
"""Case -> with --json."""


@pytest.mark.parametrize(("id_", "json_too"), _BY_PROCESS.items(), ids=_BY_PROCESS)
def test_a_process_refuses(tmp_path: Path, experts: Path, id_: str, json_too: bool) -> None:
    case = BY_ID[id_]
    sources = _sources(tmp_path, experts, case, "math")
    (tmp_path / "work").mkdir()
    before = picture(tmp_path)
    argv = [sys.executable, "-m", "lswap_core", *_merge(sources, tmp_path / "work" / "merged"), *["--json"] * json_too]
    done = subprocess.run(argv, cwd=tmp_path / "work", capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 3, done
    assert len(done.stderr.splitlines()) == 1
    assert case.file in done.stderr
    assert picture(tmp_path) == before
    if json_too:
        said = json.loads(done.stdout)["error"]
        assert (said["type"], said["exit"]) == ("FormatError", 3)
    else:
        assert done.stdout == ""


@pytest.mark.parametrize("verb", ["inspect", "diff"])
@pytest.mark.parametrize("id_", ["name-twice", "cut-by-one-byte", "index-fifo", "shard-linked-to-parent", "pickled-model.pt"])
def test_other_commands_refuse(tmp_path: Path, experts: Path, id_: str, verb: str, refused: Refused) -> None:
    case = BY_ID[id_]
    (tmp_path / "case").mkdir()
    path = case.make(tmp_path / "case")
    line = refused(verb, path, *[experts / "lang"] * (verb == "diff"))
    assert f"/{case.file}:" in line


@pytest.mark.parametrize("role", ["math", "lang"])
@pytest.mark.parametrize("id_", OS_CASES)
def test_what_cannot_be_opened_is_an_os_error(tmp_path: Path, experts: Path, id_: str, role: str, refused: Refused) -> None:
    make, file = OS_CASES[id_]
    case = Case(id_, "", make, file)
    sources = _sources(tmp_path, experts, case, role)
    with pytest.raises(OSError, match=re.escape(file)):
        open_checkpoint(sources[1], role="math")
    assert file in refused(*_merge(sources, tmp_path / "merged"), status=1)


# Messages are one line and cannot drive a terminal.


@pytest.mark.parametrize(
    "name", ["\x1b[2J\x1b]0;owned\x07.safetensors", "a\nlswap-core: all is well.safetensors", "a\u202e.safetensors"]
)
def test_file_names_from_an_index_are_shown_escaped(tmp_path: Path, name: str, refused: Refused) -> None:
    root = make_expert(tmp_path / "bad", 1)
    (root / INDEX).write_bytes(to_bytes({"weight_map": dict.fromkeys(NAMES, name)}))
    line = refused("inspect", root)
    assert line.isprintable(), ascii(line)
    assert ascii(name)[1:-1] in line.encode("ascii", "backslashreplace").decode()


def test_tensor_names_are_shown_escaped(tmp_path: Path, refused: Refused) -> None:
    name = "\x1b[2J\n\u2028\x9b"
    (tmp_path / "bad.safetensors").write_bytes(encode({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 2]}}, b"ab"))
    line = refused("inspect", tmp_path / "bad.safetensors")
    assert line.isprintable()
    assert repr(name) in line


# Names that are valid, but that nobody expects.


@pytest.mark.parametrize("number", ["9" * 4300, "9" * 4301, "9" * 50_000, "0" * 5000, "٣", "1" * 30])
def test_no_layer_number_is_too_long(tmp_path: Path, number: str, command: Run) -> None:
    entry = {"dtype": "F16", "shape": [1], "data_offsets": [44, 46]}
    table = entries() | {f"model.layers.{number}.mlp.weight": entry}
    for role, seed in (("math", 1), ("lang", 2)):
        root = make_expert(tmp_path / role, seed, sharded=False)
        (root / SINGLE).write_bytes(encode(table, DATA + b"\0\0"))
    outcome = command("inspect", tmp_path / "math")
    assert outcome.status == 0, outcome
    sources = ("--math", str(tmp_path / "math"), "--lang", str(tmp_path / "lang"))
    planned = command("plan", *sources, "--bottom", "1", "--quiet")
    assert planned.status in (0, 4), planned
    assert len(planned.error.splitlines()) == (planned.status == 4)


@pytest.mark.parametrize("name", [b"\xff.json", b"a\\b.json"], ids=["not-utf-8", "backslash"])
def test_a_sidecar_whose_name_no_manifest_can_hold(tmp_path: Path, experts: Path, name: bytes, refused: Refused) -> None:
    root = make_expert(tmp_path / "bad", 1)
    Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_text("{}")
    assert f"{root}" in refused(*_merge(("--math", str(root), "--lang", str(experts / "lang")), tmp_path / "merged"))


# Nesting, up to and beyond what the interpreter can follow.


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
@pytest.mark.parametrize("where", ["entry", "dtype", "shape", "metadata"])
def test_no_depth_of_nesting_in_a_header_is_a_recursion_error(tmp_path: Path, where: str, before: str, after: str) -> None:
    path = tmp_path / "bad.safetensors"
    for depth in (1, 2, 100, 127, 128, 129, *range(700, 1020, 7), 5_000):
        nested = before * depth + "0" + after * depth
        text = {
            "entry": f'{{"a":{nested}}}',
            "dtype": f'{{"a":{{"dtype":{nested},"shape":[1],"data_offsets":[0,1]}}}}',
            "shape": f'{{"a":{{"dtype":"U8","shape":{nested},"data_offsets":[0,1]}}}}',
            "metadata": f'{{"__metadata__":{{"a":{nested}}}}}',
        }[where]
        path.write_bytes(with_length(text.encode(), b"\0"))
        with pytest.raises(FormatError):
            open_checkpoint(path, role="math")


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_no_depth_of_nesting_in_a_config_is_a_recursion_error(tmp_path: Path, before: str, after: str, command: Run) -> None:
    math, lang = make_expert(tmp_path / "math", 1), make_expert(tmp_path / "lang", 2)
    seen = set()
    for depth in (1, 100, *range(700, 1020, 9), 5_000):
        nested = before * depth + "0" + after * depth
        for root, last in ((math, ""), (lang, " ")):
            (root / "config.json").write_text(json.dumps(CONFIG)[:-1] + f',"extra":{nested}{last}}}')
        outcome = command("plan", "--math", math, "--lang", lang, "--bottom", "1", "--quiet")
        assert outcome.status in (0, 3), outcome
        assert len(outcome.error.splitlines()) == (outcome.status == 3)
        seen.add(outcome.status)
    assert seen == {0, 3}


# Nothing is read that need not be, and nothing allocated on a file's word.


@contextmanager
def _measured() -> Iterator[dict[str, int]]:
    """Peak of memory allocated by Python, and bytes asked of `read`, inside the block."""
    found: dict[str, int] = {}
    tracemalloc.start()
    before = _bytes_read()
    try:
        yield found
        found["read"] = _bytes_read() - before
        found["peak"] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _bytes_read() -> int:
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar: ")]
    return int(line.removeprefix("rchar: "))


def _sparse(path: Path, prefix: bytes, size: int) -> Path:
    with path.open("wb") as handle:
        handle.write(prefix)
        handle.truncate(size)
    return path


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**63 - 1, 2**31, 101_000_000, 100_000_000, 90_000_000])
def test_a_length_beyond_the_end_allocates_nothing(tmp_path: Path, length: int) -> None:
    path = _sparse(tmp_path / "bad.safetensors", length.to_bytes(8, "little"), 20)
    with _measured() as found, pytest.raises(FormatError):
        open_checkpoint(path, role="math")
    assert found["peak"] < 1 << 20
    assert found["read"] < 1 << 14


@pytest.mark.parametrize("length", [100_000_001, 101_000_000, 2**32])
def test_a_header_over_the_limit_is_not_read(tmp_path: Path, length: int) -> None:
    path = _sparse(tmp_path / "bad.safetensors", length.to_bytes(8, "little") + b"{", 2**33)
    with _measured() as found, pytest.raises(FormatError, match="more than the 100000000 allowed"):
        open_checkpoint(path, role="math")
    assert found["peak"] < 1 << 20
    assert found["read"] < 1 << 14


@pytest.mark.parametrize("file", [INDEX, "config.json"])
def test_a_small_file_over_the_limit_is_not_read(tmp_path: Path, file: str) -> None:
    root = make_expert(tmp_path / "bad", 1)
    with (root / file).open("r+b") as handle:
        handle.truncate(2**33)
    with _measured() as found, pytest.raises(FormatError, match="over 100000000 bytes"):
        open_checkpoint(root, role="math")
    assert found["peak"] < 1 << 20
    assert found["read"] < 1 << 14


def test_data_are_not_read(tmp_path: Path) -> None:
    table = {"a": {"dtype": "U8", "shape": [2**36], "data_offsets": [0, 2**36]}}
    text = to_bytes(table)
    path = _sparse(tmp_path / "large.safetensors", with_length(text, b""), 8 + len(text) + 2**36)
    with _measured() as found:
        assert open_checkpoint(path, role="math").tensors["a"].size_bytes == 2**36
    assert found["peak"] < 1 << 20
    assert found["read"] < 1 << 15  # a sample of 20 KiB among them


def test_a_huge_claim_in_a_small_file_allocates_nothing(tmp_path: Path) -> None:
    size = 2**62
    path = tmp_path / "bad.safetensors"
    path.write_bytes(encode({EMBED: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}))
    with _measured() as found, pytest.raises(FormatError, match=f"end at {size}, but the file has 44 bytes of data"):
        open_checkpoint(path, role="math")
    assert found["peak"] < 1 << 20


def test_the_table_of_a_valid_index_is_what_the_cases_start_from(tmp_path: Path) -> None:
    root = make_expert(tmp_path / "expert", 1)
    assert json.loads((root / INDEX).read_bytes()) == index()
    assert open_checkpoint(root, role="math").index == to_bytes(index()).decode()
