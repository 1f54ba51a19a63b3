"""The manifest as a value."""

from __future__ import annotations

import json
import math
import struct
import sys
from dataclasses import replace
from typing import Any

import pytest

from lswap_core.errors import FormatError
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.layout import lay_out
from lswap_core.plan.manifest import Manifest, StepRecord, compile_manifest
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.expressions import Blend
from lswap_core.recipe.layer_swap import LayerSwap
from tests.catalogue import checkpoint, llama


def manifest(files: Any = None) -> Manifest:
    math, lang = checkpoint(llama(3), files=files, sidecars={"config.json": "{}"}), checkpoint(llama(3), "lang")
    plan = lay_out(LayerSwap(bottom=1, transition=1).draft(math=math, lang=lang))
    done = [
        StepRecord(s.name, f"xxh3-128:{n:032x}", DifferenceStats(count=n, sum_abs=0.1) if isinstance(s.made_of, Blend) else None)
        for n, s in enumerate(plan.steps)
    ]
    return compile_manifest(plan, done, tool="lswap_core test")


def test_json_round_trip() -> None:
    one = manifest()
    text = one.to_json()
    again = Manifest.from_json(text.encode(), path="m")
    assert again == one
    assert again.to_json() == text


@pytest.mark.parametrize("value", [sys.float_info.max, -sys.float_info.max, 5e-324, math.inf, -math.inf, math.nan, 0.0])
def test_statistics_of_any_size_round_trip(value: float) -> None:
    plan = lay_out(Draft.of(checkpoint({"t": ("F64", (1,))})))
    one = compile_manifest(plan, [StepRecord("t", None, DifferenceStats(count=1, max_abs=value, dot=value))], tool="x")
    found = Manifest.from_json(one.to_json().encode(), path="m").tensors["t"]
    assert found.digest is None
    assert found.statistics is not None
    assert struct.pack("<2d", found.statistics.max_abs, found.statistics.dot) == struct.pack("<2d", value, value)


@pytest.mark.parametrize("value", [2 * 10**308, -(10**400), "1"])
def test_statistics_beyond_any_size_are_refused(value: object) -> None:
    document = json.loads(manifest().to_json())
    document["tensors"]["model.layers.1.mlp.weight"]["statistics"]["dot"] = value
    with pytest.raises(FormatError, match="expected a number"):
        Manifest.from_json(json.dumps(document).encode(), path="m.json")


def test_it_names_no_place() -> None:
    assert "/models" not in manifest().to_json()


def test_the_index_is_one_of_the_sidecars() -> None:
    names = list(llama(3))
    assert [record.name for record in manifest().sidecars] == ["config.json"]
    assert [r.name for r in manifest([names[:3], names[3:]]).sidecars] == ["config.json", "model.safetensors.index.json"]


def test_a_manifest_of_surgery_by_hand() -> None:
    plan = lay_out(Draft.of(checkpoint({"t": ("U8", (1,))})))
    one = compile_manifest(plan, [StepRecord("t", "d")], tool="x")
    assert Manifest.from_json(one.to_json().encode(), path="m") == one
    with pytest.raises(KeyError):
        compile_manifest(plan, [], tool="x")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "x", "'format' is 'x'"),
        (("tensors",), None, "tensors: expected an object, found None"),
        (("shards", 0, "name"), "../x", "'..' is not a plain file name"),
        (("tensors", "lm_head.weight", "file"), "a/b", "'a/b' is not a plain file name"),
        (("tensors", "lm_head.weight", "dtype"), "F99", "unknown dtype 'F99'"),
        (("tensors", "lm_head.weight", "made_of"), {}, "'copy' is missing"),
        (("tensors", "model.layers.1.mlp.weight", "statistics", "count"), "many", "statistics.count: expected a whole number"),
    ],
)
def test_an_unsound_manifest_is_refused(path: tuple[Any, ...], value: Any, words: str) -> None:
    document = json.loads(manifest().to_json())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(FormatError) as caught:
        Manifest.from_json(json.dumps(document).encode(), path="m.json")
    assert words in str(caught.value)


def test_the_shard_size_asked_for_is_kept() -> None:
    math, lang = checkpoint(llama(3)), checkpoint(llama(3), "lang")
    draft = LayerSwap(bottom=1).draft(math=math, lang=lang)
    for size in (None, 4096):
        plan = lay_out(draft, size)
        one = compile_manifest(plan, [StepRecord(step.name, None) for step in plan.steps], tool="x")
        again = Manifest.from_json(one.to_json().encode(), path="m")
        assert (one.shard_size, again.shard_size) == (size, size)
        assert ("shard_size" in json.loads(one.to_json())) == (size is not None)


def test_the_commit_of_a_source_on_the_hub_is_kept() -> None:
    commit = "0123456789" * 4
    math = replace(checkpoint(llama(3)), location=f"hf://acme/math@{commit}")
    lang = replace(checkpoint(llama(3), "lang"), location=f"/home/me@{commit}")
    plan = lay_out(LayerSwap(bottom=1).draft(math=math, lang=lang))
    text = compile_manifest(plan, [StepRecord(s.name, None) for s in plan.steps], tool="t").to_json()
    assert [source.revision for source in Manifest.from_json(text.encode(), path="m").sources] == [commit, None]
    assert Manifest.from_json(text.encode(), path="m").to_json() == text
