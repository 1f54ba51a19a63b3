"""A thousand headers, indexes and journals that no one wrote on purpose. tests/hostile has those that someone could."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lswap_core.sinks.journal import read_journal
from tests.build import unmeasured
from tests.hostile.corpus import NAMES, SHARDS, VALID, make_expert

from . import fuzz_header
from .fuzz_header import check_header, check_index
from .merging import LONG

MOST_BYTES = 32 << 20
"""Of memory, for a file of a few kilobytes."""
_SHARE = settings(
    max_examples=20_000 if LONG else 400,
    derandomize=not LONG,
    database=None,
    deadline=timedelta(seconds=10),  # nothing hangs
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """No more than a file's size makes plausible."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
DTYPES = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F8_E4M3": 8, "BF16": 16, "F32": 32, "I64": 64, "C64": 64}


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Safetensors files: sound ones, with up to three things in them replaced."""
    table: dict[str, Any] = {}
    at = 0
    for name in draw(st.lists(st.text(max_size=6), max_size=5, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(DTYPES))), draw(st.lists(st.integers(0, 5), max_size=3))
        count = 1
        for dim in shape:
            count *= dim
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at := at + -(-count * DTYPES[dtype] // 8)]}
    if draw(st.booleans()):
        table["__metadata__"] = draw(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2, 3)))):
        name = draw(st.sampled_from(sorted(table) or ["a"]))
        if isinstance(table.get(name), dict) and draw(st.booleans()):
            table[name][draw(st.sampled_from(("dtype", "shape", "data_offsets", "other")))] = draw(JSON)
        else:
            table[name] = draw(JSON)
    raw = json.dumps(table, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    raw += draw(st.sampled_from((b"", b" ", b"  \n", b"\0", b"}")))
    length = len(raw) + draw(st.sampled_from((0, 0, 0, 0, 0, -1, 1, 2**40, 2**63)))
    return length.to_bytes(8, "little") + raw + draw(st.binary(min_size=at, max_size=at + draw(st.sampled_from((0, 0, 0, 1)))))


def test_headers_mean_what_the_reference_says(tmp_path: Path) -> None:
    seen: Counter[bool] = Counter()

    @_SHARE
    @given(data=files())
    def check(data: bytes) -> None:
        with bounded_memory():
            seen[check_header(data, tmp_path / "fuzzed.safetensors")] += 1

    check()
    assert min(seen[True], seen[False]) > seen.total() // 10, seen


@st.composite
def indexes(draw: st.DrawFn) -> bytes:
    """The index of an expert, with up to three things in it replaced."""
    of_shard = [*[SHARDS[0]] * 3, *[SHARDS[1]] * 2]
    document: dict[str, Any] = {"metadata": {"total_size": 44}, "weight_map": dict(zip(NAMES, of_shard, strict=True))}
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2, 3)))):
        weight_map = document.get("weight_map")
        holder = weight_map if isinstance(weight_map, dict) and draw(st.booleans()) else document
        name = draw(st.sampled_from((*holder, "metadata", "other")) | st.text(max_size=8))
        odd = st.sampled_from((*SHARDS, "../x.safetensors", "/etc/passwd", ".", "", "x.safetensors", "a\0.safetensors"))
        if draw(st.booleans()):
            holder[name] = draw(JSON | odd)
        else:
            holder.pop(name, None)
    raw = json.dumps(document).encode()
    if draw(st.sampled_from((False, False, False, True))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=4)) + raw[at + draw(st.integers(0, 3)) :]
    return raw


def test_indexes_mean_what_they_say(tmp_path: Path) -> None:
    root = make_expert(tmp_path / "expert", 1)
    seen: Counter[bool] = Counter()

    @_SHARE
    @given(raw=indexes())
    def check(raw: bytes) -> None:
        with bounded_memory():
            seen[check_index(raw, root)] += 1

    check()
    assert min(seen[True], seen[False]) > seen.total() // 10, seen


@_SHARE
@given(
    events=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "journal": st.just("lswap-journal/1") | JSON,
                "plan": st.just("p") | JSON,
                "digest": st.just("auto") | JSON,
                "placed": st.dictionaries(st.text(max_size=4), st.just("write") | JSON, max_size=2) | JSON,
                "done": st.lists(st.tuples(st.text(max_size=4), st.none() | st.text(max_size=4), st.none()), max_size=3) | JSON,
                "synced": st.integers(-1, 4) | JSON,
            },
        ),
        max_size=6,
    )
)
def test_no_journal_is_too_odd_to_be_read(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    lines = [json.dumps(event).encode() for event in events]
    (tmp_path / "journal").write_bytes(b"".join(xxhash.xxh3_64_hexdigest(t).encode() + b" " + t + b"\n" for t in lines))
    with bounded_memory():
        found = read_journal(tmp_path / "journal")
    if found is not None:
        assert isinstance(found.plan, str)
        assert all(isinstance(how, str) for how in found.placed.values())


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_target_of_atheris_runs(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "valid").write_bytes(VALID)
    runs = f"-runs={200_000 if LONG else 2000}"
    argv = [sys.executable, fuzz_header.__file__, runs, "-max_len=1024", f"-seed={os.getpid() if LONG else 1}", "corpus"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=unmeasured(), check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done" in done.stderr
