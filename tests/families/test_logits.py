"""A merged model loads whole and computes what the model assembled in memory computes, to the bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors import safe_open

import lswap_core as library

from .models import FAMILIES, LAYERS, Experts, load, logits
from .oracle import (
    EMBED_BLEND,
    EMBED_LANG,
    EXPLICIT,
    HEAD_LANG,
    PARTS,
    RAMP,
    RAMP_TOP,
    STANDARD,
    WEIGHT,
    Setting,
    assemble,
    assembled_model,
    same_bits,
)

CASES = [
    *((name, setting) for name in FAMILIES for setting in (STANDARD, RAMP)),
    ("llama-tied", EMBED_LANG),
    ("llama-tied", EXPLICIT),
    ("llama-untied", PARTS),
    ("llama-untied", HEAD_LANG),
    ("llama-untied", RAMP_TOP),
    ("qwen2", WEIGHT),
    ("gemma", EMBED_BLEND),
    ("gemma", WEIGHT),
    ("mixtral", EXPLICIT),
    ("gpt2", EMBED_LANG),
    ("gpt2", RAMP_TOP),
    ("qwen3-vl", PARTS),
]
Header = dict[str, tuple[str, tuple[int, ...]]]


def headers(path: Path) -> dict[str, Header]:
    """Dtype and shape of every tensor of every shard, as safetensors itself reads them."""
    found: dict[str, Header] = {}
    for shard in sorted(path.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            found[shard.name] = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    return found


def whole(shards: dict[str, Header]) -> Header:
    return {name: what for header in shards.values() for name, what in header.items()}


def assert_computes_as_assembled(out: Path, experts: Experts, setting: Setting) -> None:
    """State and logits of the model at `out` are the assembled model's, and its logits are neither expert's."""
    family = experts.family
    merged, information = load(family, out)
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= information.keys()
    assert {kind: found for kind, found in information.items() if found} == {}
    assert merged.dtype == family.dtype
    expected = assemble(experts, setting)
    state = merged.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in expected if not bool(same_bits(state[name], expected[name]).all())] == []
    computed = logits(merged, experts.probe)
    assert computed.isfinite().all()
    assert torch.equal(computed, logits(assembled_model(experts, setting), experts.probe))
    assert not torch.equal(computed, experts.math_logits)
    assert not torch.equal(computed, experts.lang_logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_are_fine_tuned_apart_and_saved_in_several_shards(name: str, get_experts: Callable[[str], Experts]) -> None:
    experts = get_experts(name)
    family = experts.family
    base, math, lang = experts.base_state, experts.math_state, experts.lang_state
    trained = [tensor for tensor in base if not re.search(family.untrained, tensor)]
    assert sum(tensor.startswith(family.stack) for tensor in trained) >= 9 * LAYERS
    for x, y in ((base, math), (base, lang), (math, lang)):
        assert [tensor for tensor in trained if torch.equal(x[tensor], y[tensor])] == []
    for path, state in ((experts.math, math), (experts.lang, lang)):
        assert len(headers(path)) >= 4
        loaded = load(family, path)[0].state_dict()
        assert loaded.keys() == state.keys()
        assert [tensor for tensor in state if not bool(same_bits(loaded[tensor], state[tensor]).all())] == []


@pytest.mark.parametrize(("name", "setting"), CASES, ids=[f"{name}-{setting.name}" for name, setting in CASES])
def test_merged_by_the_command_line(
    name: str,
    setting: Setting,
    get_experts: Callable[[str], Experts],
    run_cli: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    experts = get_experts(name)
    out = tmp_path / "merged"
    done = run_cli(
        "merge", "--math", experts.math, "--lang", experts.lang, *setting.arguments, *experts.family.arguments, "--out", out
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert headers(out) == headers(experts.math)
    assert_computes_as_assembled(out, experts, setting)


@pytest.mark.parametrize("name", ["llama-untied", "mixtral", "qwen3-vl"])
def test_merged_into_shards_of_another_size(
    name: str, get_experts: Callable[[str], Experts], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    experts = get_experts(name)
    out = tmp_path / "merged"
    sources = ("--math", experts.math, "--lang", experts.lang)
    done = run_cli("merge", *sources, *STANDARD.arguments, "--shard-size", "100KB", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    shards = headers(out)
    assert whole(shards) == whole(headers(experts.math))
    assert shards != headers(experts.math)
    assert len(shards) > 1
    assert all((out / shard).stat().st_size <= 100_000 + 16_384 for shard in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {tensor: shard for shard, header in shards.items() for tensor in header}
    assert_computes_as_assembled(out, experts, STANDARD)


@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_merged_in_process(name: str, get_experts: Callable[[str], Experts], tmp_path: Path) -> None:
    experts = get_experts(name)
    recipe = library.LayerSwap(bottom=2, top=1, transition=1)
    library.merge(recipe, math=experts.math, lang=experts.lang, into=tmp_path / "merged")
    assert headers(tmp_path / "merged") == headers(experts.math)
    assert_computes_as_assembled(tmp_path / "merged", experts, STANDARD)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tied])
def test_tied_embeddings_are_one_tensor_and_stay_tied(name: str, get_experts: Callable[[str], Experts], tmp_path: Path) -> None:
    experts = get_experts(name)
    family = experts.family
    recipe = library.LayerSwap(bottom=1, embed="lang")
    library.merge(recipe, math=experts.math, lang=experts.lang, into=tmp_path / "merged")
    stored = whole(headers(tmp_path / "merged"))
    assert set(family.embed) <= stored.keys()
    assert not set(family.head) & stored.keys()
    merged, _ = load(family, tmp_path / "merged")
    for embeddings in (merged.get_input_embeddings(), merged.get_output_embeddings()):
        assert torch.equal(embeddings.weight, experts.lang_state[family.embed[0]])
    assert merged.get_input_embeddings().weight.data_ptr() == merged.get_output_embeddings().weight.data_ptr()
