"""Fuzzed headers, indexes, plans, manifests and journals: nothing crashes, hangs, or takes memory beyond its input's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lswap_core import LayerSwap, lay_out, open_checkpoint, read_manifest
from lswap_core.plan.plan import MANIFEST_FILE
from lswap_core.verbs.execute import execute
from tests.build import HANG_SECONDS, llama_pair

from .fuzz_header import KINDS, read

_FUZZED = settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
_SIZES = st.one_of(st.integers(0, 64), st.sampled_from([-1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, True, None, "8"]))
_NAMES = st.one_of(st.sampled_from(["a", "b", "model.layers.0.w", "__metadata__", "", "\0", "é"]), st.text(max_size=6))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _or_anything(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 9).flatmap(lambda n: _JSON if n == 0 else usual)


_ENTRY = st.fixed_dictionaries(
    {
        "dtype": _or_anything(st.sampled_from(["F32", "BF16", "F4", "F6_E2M3", "BOOL", "F99"])),
        "shape": _or_anything(st.lists(_SIZES, max_size=3)),
        "data_offsets": _or_anything(st.lists(_SIZES, min_size=2, max_size=2)),
    },
    optional={"more": _JSON},
)
_HEADER = st.dictionaries(_NAMES, _or_anything(_ENTRY), max_size=4)
_INDEX = st.fixed_dictionaries(
    {},
    optional={
        "metadata": _or_anything(st.dictionaries(st.just("total_size"), _SIZES)),
        "weight_map": _or_anything(
            st.dictionaries(_NAMES, st.sampled_from(["a.safetensors", "b.safetensors", "../x", "/x", "c", 3]), max_size=4)
        ),
    },
)


@_FUZZED
@given(_HEADER, st.binary(max_size=40), st.integers(0, 7), st.binary(max_size=3))
def test_headers(tmp_path: Path, table: dict[str, Any], data: bytes, padding: int, noise: bytes) -> None:
    text = json.dumps(table).encode() + b" " * padding + noise
    raw = len(text).to_bytes(8, "little") + text + data
    taken = read("file", raw, tmp_path)
    if taken:  # then the reference takes it, and finds the same
        found = {name: (view["dtype"], bytes(view["data"])) for name, view in safetensors.deserialize(raw)}
        refs = open_checkpoint(tmp_path / "model.safetensors", role="math").tensors
        assert {name: (ref.dtype.name, raw[ref.begin : ref.end]) for name, ref in refs.items()} == found


@_FUZZED
@given(_INDEX, st.binary(max_size=3))
def test_indexes(tmp_path: Path, table: dict[str, Any], noise: bytes) -> None:
    assert not read("index", json.dumps(table).encode() + noise, tmp_path)  # both shards are empty


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound plan, manifest and journal."""
    root = tmp_path_factory.mktemp("documents")
    pair = llama_pair(root, layers=3)
    sources = {role: open_checkpoint(getattr(pair, role), role=role) for role in ("math", "lang")}
    plan = lay_out(LayerSwap(bottom=1, transition=1).draft(**sources))
    execute(plan, into=root / "out")
    read_manifest(root / "out")
    lines = [b'{"journal":"lswap-journal/1","plan":"p","digest":"auto"}', b'{"placed":{"model.safetensors":"write"}}']
    lines += [b'{"done":[["a",null,null]]}', b'{"synced":1}']
    from xxhash import xxh3_64_hexdigest

    journal = b"".join(xxh3_64_hexdigest(line).encode() + b" " + line + b"\n" for line in lines)
    return {"plan": plan.to_json().encode(), "manifest": (root / "out" / MANIFEST_FILE).read_bytes(), "journal": journal}


@pytest.mark.parametrize("kind", ["plan", "manifest", "journal"])
def test_the_documents_to_be_spoilt_are_sound(tmp_path: Path, documents: dict[str, bytes], kind: str) -> None:
    assert read(kind, documents[kind], tmp_path)


@pytest.mark.parametrize("kind", ["plan", "manifest", "journal"])
@settings(_FUZZED, max_examples=150)
@given(data=st.data())
def test_spoilt_documents(tmp_path: Path, documents: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    whole = documents[kind]
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, min(len(whole), begin + 40)))
    scrap = data.draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b"-1", b"1e999", b"null", b'"', b"{", b"[", b"9" * 5000]))
    )
    read(kind, whole[:begin] + scrap + whole[end:], tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        (2**62).to_bytes(8, "little") + b"{}",
        (90_000_000).to_bytes(8, "little") + b"{}",
        (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,9]}}',
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_no_number_is_believed_before_it_is_checked(tmp_path: Path, data: bytes) -> None:
    read("file", data, tmp_path)  # modules are imported
    tracemalloc.start()
    try:
        assert not read("file", data, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzz_target_runs(tmp_path: Path) -> None:
    for number, kind in enumerate(KINDS):
        (tmp_path / kind).write_bytes(bytes([number]) + b"{}")
    runs = "200000" if os.environ.get("LSWAP_LONG") else "2000"
    argv = [
        sys.executable,
        "-m",
        "tests.faults.fuzz_header",
        f"-runs={runs}",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
        tmp_path,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
