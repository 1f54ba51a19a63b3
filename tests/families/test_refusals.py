"""Experts that cannot be combined: exit 4, one line that lists every difference, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from transformers import PretrainedConfig

from .models import FAMILIES, LAYERS, Experts, llama, new_model
from .oracle import STANDARD
from .vocabularies import WORDS, save_tokenizer

Cli = Callable[..., CompletedProcess[str]]


def save(config: PretrainedConfig, path: Path, *, seed: int = 3, dtype: torch.dtype = torch.float32) -> Path:
    new_model(config, seed=seed).to(dtype).save_pretrained(path, max_shard_size="60KB")
    return path


def refusal(run_cli: Cli, math: Path, lang: Path, tmp_path: Path, *arguments: str) -> tuple[str, list[str]]:
    """The line on stderr, and the list of differences as `--json` has it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    command = ("merge", "--math", math, "--lang", lang, *(arguments or STANDARD.arguments), "--out", outside / "merged")
    done = run_cli(*command)
    assert (done.returncode, done.stdout) == (4, "")
    assert list(outside.iterdir()) == []
    assert done.stderr.endswith("\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("lswap-core: error: ")
    as_json = run_cli(*command, "--json")
    assert (as_json.returncode, as_json.stderr) == (4, done.stderr)
    assert list(outside.iterdir()) == []
    return line, json.loads(as_json.stdout)["error"]["issues"]


def mlp_names(layers: int) -> list[str]:
    return [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(layers) for part in ("down", "gate", "up")]


def test_other_shapes(run_cli: Cli, tmp_path: Path) -> None:
    math = save(llama(num_hidden_layers=3), tmp_path / "math")
    lang = save(llama(num_hidden_layers=3, intermediate_size=80), tmp_path / "lang")
    line, issues = refusal(run_cli, math, lang, tmp_path, "--bottom", "1")
    for name in mlp_names(3):
        (issue,) = [issue for issue in issues if repr(name) in issue]
        shapes = ("[48, 96]", "[48, 80]") if "down" in name else ("[96, 48]", "[80, 48]")
        assert all(shape in issue for shape in shapes)
    (about_config,) = [issue for issue in issues if "intermediate_size" in issue]
    assert "96" in about_config
    assert "80" in about_config
    assert len(issues) == 9 + 1
    assert all(issue in line for issue in issues)


def test_more_differences_than_a_line_holds_are_counted_there_and_listed_in_json(run_cli: Cli, tmp_path: Path) -> None:
    math = save(llama(), tmp_path / "math")
    lang = save(llama(intermediate_size=80), tmp_path / "lang")
    line, issues = refusal(run_cli, math, lang, tmp_path)
    assert len(issues) == len(mlp_names(LAYERS)) + 1
    assert [name for name in mlp_names(LAYERS) if not any(repr(name) in issue for issue in issues)] == []
    shown = [issue for issue in issues if issue in line]
    assert shown
    assert f"{len(issues) - len(shown)} more" in line


@pytest.mark.parametrize("math_is_tied", [True, False])
def test_tied_against_untied(math_is_tied: bool, run_cli: Cli, tmp_path: Path) -> None:
    math = save(llama(tie_word_embeddings=math_is_tied), tmp_path / "math")
    lang = save(llama(tie_word_embeddings=not math_is_tied), tmp_path / "lang")
    line, issues = refusal(run_cli, math, lang, tmp_path)
    assert len(issues) == 2
    assert "tie_word_embeddings" in issues[0]
    assert "'lm_head.weight'" in issues[1]
    assert f"in {'lang' if math_is_tied else 'math'} only" in issues[1]
    assert all(issue in line for issue in issues)


def test_another_rope_theta(run_cli: Cli, tmp_path: Path) -> None:
    math = save(llama(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}), tmp_path / "math")
    lang = save(llama(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), tmp_path / "lang")
    line, issues = refusal(run_cli, math, lang, tmp_path)
    assert len(issues) == 1
    assert "rope" in issues[0]
    assert "10000.0" in issues[0]
    assert "500000.0" in issues[0]
    assert issues[0] in line


def test_another_dtype(run_cli: Cli, tmp_path: Path) -> None:
    config = llama(num_hidden_layers=1, num_attention_heads=2)
    math = save(config, tmp_path / "math", dtype=torch.bfloat16)
    lang = save(config, tmp_path / "lang", dtype=torch.float32)
    line, issues = refusal(run_cli, math, lang, tmp_path, "--bottom", "1")
    assert len(issues) == 9 + 3
    assert all("BF16 in math, F32 in lang" in issue and issue in line for issue in issues)


def test_one_token_with_another_id(get_experts: Callable[[str], Experts], run_cli: Cli, tmp_path: Path) -> None:
    experts = get_experts("llama-tied")
    math = shutil.copytree(experts.math, tmp_path / "math")
    lang = shutil.copytree(experts.lang, tmp_path / "lang")
    save_tokenizer(math, WORDS)
    save_tokenizer(lang, {**WORDS, "word5": 127})
    line, issues = refusal(run_cli, math, lang, tmp_path)
    assert len(issues) == 1
    assert all(what in issues[0] for what in ("tokenizer.json", "'word5'", "5 in math", "127 in lang"))
    assert issues[0] in line


def test_another_vocabulary_size(run_cli: Cli, tmp_path: Path) -> None:
    math = save(llama(), tmp_path / "math")
    lang = save(llama(vocab_size=130), tmp_path / "lang")
    save_tokenizer(math, WORDS)
    save_tokenizer(lang, {**WORDS, "habari": 127, "dunia": 128})
    line, issues = refusal(run_cli, math, lang, tmp_path)
    named = ("'model.embed_tokens.weight'", "'lm_head.weight'", "vocab_size", "'habari'", "'dunia'")
    assert [sum(what in issue for issue in issues) for what in named] == [1] * len(named)
    assert len(issues) == len(named)
    assert all(issue in line for issue in issues)


def test_every_kind_of_difference_at_once(run_cli: Cli, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    math = save(llama(tie_word_embeddings=True), tmp_path / "math")
    lang = save(llama(tie_word_embeddings=False, vocab_size=130, rope_parameters=rope), tmp_path / "lang")
    save_tokenizer(math, WORDS)
    save_tokenizer(lang, {**WORDS, "word5": 127})
    line, issues = refusal(run_cli, math, lang, tmp_path)
    named = ("'model.embed_tokens.weight'", "'lm_head.weight'", "vocab_size", "tie_word_embeddings", "500000.0", "'word5'")
    assert [sum(what in issue for issue in issues) for what in named] == [1] * len(named)
    assert len(issues) == len(named)
    assert all(issue in line for issue in issues)


def test_another_family(get_experts: Callable[[str], Experts], run_cli: Cli, tmp_path: Path) -> None:
    """Qwen2 has Llama's names and shapes, and biases besides."""
    _, issues = refusal(run_cli, get_experts("llama-untied").math, get_experts("qwen2").lang, tmp_path)
    only_in_lang = [issue for issue in issues if "in lang only" in issue]
    assert len([issue for issue in only_in_lang if "_proj.bias'" in issue]) == len(only_in_lang) == 3 * LAYERS
    assert any("model_type" in issue for issue in issues)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tied])
def test_a_tied_head_cannot_go_another_way_than_the_embeddings(
    name: str, get_experts: Callable[[str], Experts], run_cli: Cli, tmp_path: Path
) -> None:
    experts = get_experts(name)
    line, _ = refusal(run_cli, experts.math, experts.lang, tmp_path, "--bottom", "1", "--head", "lang")
    assert "--head lang contradicts --embed math" in line
    assert "tied" in line


def test_two_stacks_of_as_many_layers_are_named_and_not_guessed_between(
    get_experts: Callable[[str], Experts], run_cli: Cli, tmp_path: Path
) -> None:
    experts = get_experts("llava")
    line, _ = refusal(run_cli, experts.math, experts.lang, tmp_path)
    assert "language_model.model.layers" in line
    assert "vision_tower.encoder.layers" in line
    assert "--layer-prefix" in line
