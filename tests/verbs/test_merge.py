"""Merges on disk: laws, and an independent oracle over odd checkpoints."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lswap_core import Draft, LayerSwap, execute, lay_out, layers, merge, named, open_checkpoint, verify
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.plan.plan import Plan
from tests import oracle
from tests.build import BITS, Model, Tensor, llama_pair, normal, read_file, read_model, tensor, tree, write_model

COPYABLE = [name for name, bits in BITS.items() if bits % 8 == 0]
SWAP = LayerSwap(bottom=2, top=1, transition=1)
ALL_LANG: dict[str, Any] = {"embed": "lang", "norm": "lang", "head": "lang"}
WEIGHTS = {"model.safetensors.index.json", "config.json"}


def weights(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(root).items() if name.endswith(".safetensors") or name in WEIGHTS}


def test_merging_an_expert_with_itself_gives_it_back_byte_for_byte(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    merge(SWAP, math=pair.math, lang=pair.math, into=tmp_path / "out")
    assert weights(tmp_path / "out") == weights(pair.math)


def test_no_zones_give_math(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    merge(LayerSwap(), math=pair.math, lang=pair.lang, into=tmp_path / "out")
    assert weights(tmp_path / "out") == weights(pair.math)


def test_all_zones_give_lang(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    merge(LayerSwap(bottom=8, **ALL_LANG), math=pair.math, lang=pair.lang, into=tmp_path / "out")
    assert weights(tmp_path / "out") == weights(pair.lang)


def test_what_comes_from_math_beside_the_weights_is_byte_for_byte_maths(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    for name in (
        "additional_chat_templates/tool.jinja",
        "modeling_x.py",
        "sub/part.py",
        "LICENSE",
        "vocab.txt",
        "chat_template.jinja",
    ):
        (pair.math / name).parent.mkdir(exist_ok=True)
        (pair.math / name).write_bytes(name.encode() + b"\r\n\xff")
    for name in (
        "README.md",
        "trainer_state.json",
        "optimizer.pt",
        ".gitattributes",
        ".cache/x.py",
        "pytorch_model.bin.index.json",
    ):
        (pair.math / name).parent.mkdir(exist_ok=True)
        (pair.math / name).write_text("not to be copied")
    merge(SWAP, math=pair.math, lang=pair.lang, into=tmp_path / "out")
    out, theirs = tree(tmp_path / "out"), tree(pair.math)
    beside = {name for name in out if not name.endswith(".safetensors")} - {"README.md", "lswap_manifest.json"}
    assert beside == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json",
        "additional_chat_templates/tool.jinja", "modeling_x.py", "sub/part.py", "LICENSE", "vocab.txt", "chat_template.jinja",
    }  # fmt: skip
    for name in beside:
        assert out[name] == theirs[name]
    assert out["README.md"] != theirs["README.md"]


def test_the_order_of_steps_and_the_number_of_workers_do_not_matter(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path)
    plan = lay_out(SWAP.draft(math=open_checkpoint(pair.math, role="math"), lang=open_checkpoint(pair.lang, role="lang")))
    shuffled = Plan.from_json(plan.to_json(), path="p")
    order = list(plan.steps)
    random.Random(1).shuffle(order)
    shuffled.__dict__["steps"] = tuple(order)
    for name, one, workers in (("a", plan, 1), ("b", plan, 7), ("c", shuffled, 3)):
        (tmp_path / name).mkdir()
        execute(one, into=tmp_path / name / "out", workers=workers)
    first = tree(tmp_path / "a" / "out")
    assert first == tree(tmp_path / "b" / "out")
    third = tree(tmp_path / "c" / "out")
    assert json.loads(third.pop("lswap_manifest.json")) == json.loads(first.pop("lswap_manifest.json"))
    assert third == first


def test_the_same_experts_elsewhere_give_the_same_bytes(tmp_path: Path) -> None:
    for place in ("x", "y"):
        pair = llama_pair(tmp_path / place)
        merge(SWAP, math=pair.math, lang=pair.lang, into=tmp_path / place / "out")
    assert tree(tmp_path / "x" / "out") == tree(tmp_path / "y" / "out")


def test_nan_payloads_survive_a_copy(tmp_path: Path) -> None:
    patterns = {
        "BF16": np.arange(65536, dtype=np.uint16).tobytes(),
        "F32": (np.arange(4096, dtype=np.uint32) | 0x7F800000).tobytes(),
        "F64": (np.arange(4096, dtype=np.uint64) | np.uint64(0xFFF0 << 48)).tobytes(),
        "F8_E5M2": np.arange(256, dtype=np.uint8).tobytes(),
    }
    model = {f"layers.{n}.{k}": Tensor(k, (len(v) * 8 // BITS[k],), v) for n in range(3) for k, v in patterns.items()}
    write_model(tmp_path / "a", model)
    write_model(tmp_path / "b", {name: Tensor(t.dtype, t.shape, bytes(len(t.data))) for name, t in model.items()})
    merge(LayerSwap(bottom=1), math=tmp_path / "b", lang=tmp_path / "a", into=tmp_path / "out")
    found = read_file(tmp_path / "out" / "model.safetensors")
    for name, t in model.items():
        assert found[name].data == (t.data if name.startswith("layers.0.") else bytes(len(t.data)))


# --- an oracle over odd checkpoints --------------------------------------------------------------------------------

RESTS = ("w", "sub.experts.3.weight", "bias_é", "名", "with space", 'q"uote\\')
FLOATS = [name for name, dtype in DTYPES.items() if dtype.blendable]
odd_shapes = st.sampled_from([(), (0,), (1,), (3,), (7, 5), (2, 0, 4), (1025,), (33, 67), (1, 1, 1)])


@st.composite
def odd_pairs(draw: st.DrawFn) -> tuple[Model, Model, list[list[list[str]]], int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 6))
    prefix = draw(st.sampled_from(["model.layers", "transformer.h", "h", "blöcke"]))
    rests = draw(st.lists(st.sampled_from(RESTS), min_size=1, max_size=4, unique=True))
    kinds = {rest: (draw(st.sampled_from(FLOATS)), draw(odd_shapes)) for rest in rests}
    shapes = {f"{prefix}.{n}.{rest}": kinds[rest] for n in range(count) for rest in rests}
    for outside in draw(st.lists(st.sampled_from(["visión.weight", "pos_ids", "model.scale", "zero.norm.weight"]), unique=True)):
        shapes[outside] = (draw(st.sampled_from(COPYABLE)), draw(odd_shapes))
    models = []
    for _ in range(2):
        models.append({name: tensor(dtype, shape, rng) for name, (dtype, shape) in shapes.items()})
    layouts = []
    for _ in range(2):
        names = draw(st.permutations(list(shapes)))
        cuts = sorted(draw(st.sets(st.integers(1, max(1, len(names) - 1)), max_size=3)))
        layouts.append([part for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True) if (part := names[a:b])])
    return models[0], models[1], layouts, count


@settings(
    max_examples=2000 if os.environ.get("LSWAP_LONG") else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(odd_pairs(), st.data())
def test_odd_checkpoints_against_the_oracle(tmp_path_factory: pytest.TempPathFactory, made: Any, data: st.DataObject) -> None:
    math_model, lang_model, layouts, count = made
    root = tmp_path_factory.mktemp("odd")
    for role, model, files in (("m", math_model, layouts[0]), ("l", lang_model, layouts[1])):
        write_model(root / role, model, files=files)
    bottom = data.draw(st.integers(0, count))
    seam = data.draw(st.integers(0, count - bottom)) if bottom else 0
    weight = data.draw(st.sampled_from([0.5, 0.3, 1e-3, 0.9]))
    shard_size = data.draw(st.sampled_from([None, None, 1000, 10**9]))
    swap = LayerSwap(bottom=bottom, transition=seam, weight=weight)
    merge(swap, math=root / "m", lang=root / "l", into=root / "out", shard_size=shard_size, workers=2)
    shares = {}
    for name in math_model:
        number = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        if number is not None:
            shares[name] = 1.0 if number < bottom else weight if number < bottom + seam else 0.0
    assert read_model(root / "out") == oracle.swapped(math_model, lang_model, shares)
    verify(root / "out", locations={"math": root / "m", "lang": root / "l"})


def test_casting_lang_to_maths_dtype_against_the_oracle(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    names = [f"model.layers.{n}.w" for n in range(4)] + ["model.norm.weight"]
    for math_dtype, lang_dtype in (("BF16", "F32"), ("F16", "BF16"), ("F32", "F64"), ("F8_E4M3", "BF16")):
        root = tmp_path / (math_dtype + lang_dtype)
        wide = "F32" if math_dtype.startswith("F8") else math_dtype
        x = {name: normal(wide, (40, 50), rng) for name in names}
        x = {name: oracle.cast(t, math_dtype) for name, t in x.items()}
        y = {name: normal(lang_dtype, (40, 50), rng) for name in names}
        write_model(root / "m", x)
        write_model(root / "l", y)
        merge(LayerSwap(bottom=1, transition=1, cast=True), math=root / "m", lang=root / "l", into=root / "out")
        expected = oracle.swapped(x, y, {names[0]: 1.0, names[1]: 0.5})
        assert read_model(root / "out") == expected
        verify(root / "out", locations={"math": root / "m", "lang": root / "l"})


def test_tensors_larger_than_a_chunk(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    shape = (513, 1031)  # not a multiple of anything
    x, y = ({f"model.layers.{n}.w": normal("BF16", shape, rng) for n in range(3)} for _ in range(2))
    write_model(tmp_path / "m", x)
    write_model(tmp_path / "l", y)
    manifest = merge(LayerSwap(bottom=1, transition=1), math=tmp_path / "m", lang=tmp_path / "l", into=tmp_path / "out")
    assert read_model(tmp_path / "out") == oracle.swapped(x, y, {"model.layers.0.w": 1.0, "model.layers.1.w": 0.5})
    found = manifest.tensors["model.layers.1.w"].statistics
    assert found is not None
    d = oracle.values(y["model.layers.1.w"]) - oracle.values(x["model.layers.1.w"])
    assert found.count == math.prod(shape)
    assert found.sum_abs == pytest.approx(np.abs(d).sum(), rel=1e-6)
    assert found.max_abs == np.abs(d).max()


def test_surgery_by_hand(tmp_path: Path) -> None:
    pair = llama_pair(tmp_path, layers=4)
    base = open_checkpoint(pair.math, role="math")
    lang = open_checkpoint(pair.lang, role="lang")
    draft = (
        Draft.of(base)
        .drop(layers(3, 4))
        .rename(named("lm_head.*"), lambda name: "output.weight")
        .replace(named("*.norm.weight"), lang)
        .cast(layers(0, 1), DTYPES["F32"])
        .tag(made_by="hand")
    )
    execute(lay_out(draft), into=tmp_path / "out")
    found = read_file(tmp_path / "out" / "model.safetensors")
    expected = {name: t for name, t in pair.math_model.items() if ".3." not in name}
    expected["output.weight"] = expected.pop("lm_head.weight")
    expected["model.norm.weight"] = pair.lang_model["model.norm.weight"]
    for name in [name for name in expected if ".layers.0." in name]:
        expected[name] = oracle.cast(expected[name], "F32")
    assert found == expected
    verify(tmp_path / "out", locations={"math": pair.math, "lang": pair.lang})
