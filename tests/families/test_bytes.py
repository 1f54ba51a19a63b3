"""Laws of a merge on real experts that need no arithmetic: whole directories, byte for byte."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

from lswap_core import LayerSwap, merge

from .models import FAMILIES, LAYERS, Experts
from .oracle import STANDARD

INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json")
OURS = {"README.md", "lswap_manifest.json"}


def contents(path: Path, pattern: str = "*") -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob(pattern) if file.is_file()}


def prefix_of(experts: Experts) -> str | None:
    arguments = experts.family.arguments
    return arguments[1] if arguments else None


@pytest.mark.parametrize("name", FAMILIES)
def test_configs_and_index_are_maths(name: str, get_experts: Callable[[str], Experts], tmp_path: Path) -> None:
    experts = get_experts(name)
    recipe = LayerSwap(bottom=2, top=1, transition=1, layer_prefix=prefix_of(experts))
    merge(recipe, math=experts.math, lang=experts.lang, into=tmp_path / "merged")
    math, lang, merged = contents(experts.math), contents(experts.lang), contents(tmp_path / "merged")
    assert merged.keys() == math.keys() | OURS
    for file in CONFIGS:
        assert math[file] != lang[file]
        assert merged[file] == math[file]
    assert merged[INDEX] == math[INDEX]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_expert_merged_with_itself_is_itself(name: str, get_experts: Callable[[str], Experts], tmp_path: Path) -> None:
    experts = get_experts(name)
    recipe = LayerSwap(bottom=2, top=1, transition=1, weight=0.3, embed="blend", norm="blend", layer_prefix=prefix_of(experts))
    merge(recipe, math=experts.math, lang=experts.math, into=tmp_path / "merged")
    merged = contents(tmp_path / "merged")
    assert {file: data for file, data in merged.items() if file not in OURS} == contents(experts.math)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_and_part_from_lang_is_lang(name: str, get_experts: Callable[[str], Experts], tmp_path: Path) -> None:
    experts = get_experts(name)
    recipe = LayerSwap(bottom=LAYERS, embed="lang", norm="lang", head="lang", layer_prefix=prefix_of(experts))
    merge(recipe, math=experts.math, lang=experts.lang, into=tmp_path / "merged")
    if experts.family.image_inputs is None:
        assert contents(tmp_path / "merged", "*.safetensors") == contents(experts.lang, "*.safetensors")
        return
    merged, math, lang = (_tensors(path) for path in (tmp_path / "merged", experts.math, experts.lang))
    of_vision = {tensor for tensor in math if "vision_tower" in tensor or "projector" in tensor or "visual" in tensor}
    assert {tensor for tensor in math if merged[tensor] != lang[tensor]} <= of_vision
    assert {tensor for tensor in math if merged[tensor] == math[tensor]} == of_vision


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_from_lang_is_math(name: str, get_experts: Callable[[str], Experts], tmp_path: Path) -> None:
    experts = get_experts(name)
    recipe = LayerSwap(layer_prefix=prefix_of(experts))
    merge(recipe, math=experts.math, lang=experts.lang, into=tmp_path / "merged")
    assert contents(tmp_path / "merged", "*.safetensors") == contents(experts.math, "*.safetensors")


def test_no_layer_from_lang_is_math_by_the_command_line_too(
    get_experts: Callable[[str], Experts], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    experts = get_experts("llama-untied")
    sources = ("--math", experts.math, "--lang", experts.lang)
    done = run_cli("merge", *sources, "--bottom", "0", "--top", "0", "--out", tmp_path / "merged")
    assert (done.returncode, done.stderr) == (0, "")
    merged = contents(tmp_path / "merged")
    assert {file: data for file, data in merged.items() if file not in OURS} == contents(experts.math)


@pytest.mark.parametrize("name", ["gemma", "qwen3-vl"])
def test_two_runs_give_the_same_directory(
    name: str, get_experts: Callable[[str], Experts], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    experts = get_experts(name)
    outputs = []
    for workers in ("1", "4"):
        out = tmp_path / workers / "merged"
        out.parent.mkdir()
        done = run_cli(
            "merge", "--math", experts.math, "--lang", experts.lang, *STANDARD.arguments, "--workers", workers, "--out", out
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.name for path in out.parent.iterdir()] == ["merged"]
        outputs.append(contents(out))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("name", ["llama-tied", "gemma", "mixtral", "qwen3-vl"])
def test_the_output_verifies_until_a_byte_of_it_changes(
    name: str, get_experts: Callable[[str], Experts], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    experts = get_experts(name)
    out = tmp_path / "merged"
    recipe = LayerSwap(bottom=2, top=1, transition=1, layer_prefix=prefix_of(experts))
    merge(recipe, math=experts.math, lang=experts.lang, into=out)
    sources = ("--math", experts.math, "--lang", experts.lang)
    done = run_cli("verify", out, *sources)
    assert (done.returncode, done.stderr) == (0, "")
    shard = sorted(out.glob("*.safetensors"))[-1]
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    done = run_cli("verify", out, *sources)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (6, "", 1)


def test_the_model_card_is_one_the_hub_reads(
    get_experts: Callable[[str], Experts], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    experts = get_experts("llama-untied")
    names = ["example-org/math-expert", "example-org/swahili-expert"]
    sources = ("--math", experts.math, "--lang", experts.lang, "--math-name", names[0], "--lang-name", names[1])
    done = run_cli("merge", *sources, *STANDARD.arguments, "--out", tmp_path / "merged")
    assert (done.returncode, done.stderr) == (0, "")
    card = tmp_path / "merged" / "README.md"
    opening, front, body = card.read_text().split("---\n", 2)
    assert opening == ""
    stated = yaml.safe_load(front)
    assert stated["base_model"] == names
    assert stated["library_name"] == "transformers"
    assert {"merge", "layer-swapping"} <= set(stated["tags"])
    loaded = ModelCard.load(card)
    assert loaded.data.base_model == names
    assert loaded.data.library_name == "transformers"
    assert {"merge", "layer-swapping"} <= set(loaded.data.tags)
    assert "# math-expert+swahili-expert-b2u1t1\n" in body
    assert " ".join(STANDARD.arguments) in body


def test_the_model_card_of_local_experts_names_their_directories_and_repeats_the_merge(
    get_experts: Callable[[str], Experts], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    experts = get_experts("llama-untied")
    recipe = LayerSwap(bottom=2, top=1, transition_bottom=2, ramp="linear", norm="lang")
    merge(recipe, math=experts.math, lang=experts.lang, into=tmp_path / "merged")
    card = tmp_path / "merged" / "README.md"
    assert ModelCard.load(card).data.base_model == ["math", "lang"]
    for file in OURS:
        assert str(experts.math.parent) not in (tmp_path / "merged" / file).read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", card.read_text(), re.DOTALL)
    program, *arguments = shlex.split(block)
    assert program == "lswap-core"
    again = tmp_path / "again" / "merged"
    again.parent.mkdir()
    done = run_cli(*arguments, "--out", again, cwd=experts.math.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(again) == contents(tmp_path / "merged")


def _tensors(path: Path) -> dict[str, bytes]:
    """Bytes of every tensor by its name in the files."""
    found: dict[str, bytes] = {}
    for shard in path.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                found[name] = file.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes()
    return found
