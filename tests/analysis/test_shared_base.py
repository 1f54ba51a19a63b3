"""Pairs that are and are not fine-tunes of one base, and what is said of them: trained ones, and synthetic ones of realistic size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lswap_core import analyze, open_checkpoint
from lswap_core.analysis.shared_base import SharedBaseCheck, check_shared_base
from tests.build import Model, Tensor, write_model
from tests.maps import planted

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64,
)  # fmt: skip


def trained(model: LlamaForCausalLM, *, steps: int, seed: int, rate: float) -> LlamaForCausalLM:
    """Some steps of AdamW on a made-up language, whose next token follows from the last."""
    rng = torch.Generator().manual_seed(seed)
    follower = torch.randperm(64, generator=rng)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        rows = [torch.randint(0, 64, (8,), generator=rng)]
        for _ in range(15):
            rows.append(follower[rows[-1]])
        batch = torch.stack(rows, dim=1)
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def fresh(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(CONFIG)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, trained; two fine-tunes of it; and one of another seed, trained and tuned alike."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 0), ("stranger", 1)):
        trained(fresh(seed), steps=60, seed=0, rate=3e-3).save_pretrained(root / name)
    for name, origin, language in (("math", "base", 2), ("lang", "base", 3), ("other", "stranger", 3)):
        model = LlamaForCausalLM.from_pretrained(root / origin, dtype=torch.float32)
        trained(model, steps=10, seed=language, rate=1e-4).save_pretrained(root / name)
    return root


def kin(root: Path, math: str, lang: str, base: str | None = None) -> dict[tuple[str, str], SharedBaseCheck]:
    roles = {"math": math, "lang": lang} | ({"base": base} if base else {})
    maps = analyze(**{role: open_checkpoint(root / name, role=role) for role, name in roles.items()})
    return {(each.x, each.y): each for each in check_shared_base(maps)}


def test_fine_tunes_of_one_base_are_called_that(models: Path) -> None:
    found = kin(models, "math", "lang", "base")
    assert [each.verdict for each in found.values()] == ["one base"] * 3
    assert found["math", "lang"].cosine > 0.99
    assert found["math", "lang"].relative_distance < 0.1


def test_models_of_two_seeds_are_called_strangers(models: Path) -> None:
    found = kin(models, "math", "other", "base")
    assert {pair: each.verdict for pair, each in found.items()} == {
        ("math", "lang"): "different bases",
        ("base", "math"): "one base",
        ("base", "lang"): "different bases",
    }
    assert abs(found["math", "lang"].cosine) < 0.1
    assert found["math", "lang"].relative_distance > 1


@pytest.mark.parametrize(
    ("change", "verdict"), [(0.01, "one base"), (0.1, "one base"), (0.6, "unclear"), (None, "different bases")]
)
def test_synthetic_pairs(tmp_path: Path, change: float | None, verdict: str) -> None:
    """Weights of 0.02 in a 1,024-wide layer; the change relative to them, or weights of their own. Norms are near 1 in all."""
    rng = np.random.default_rng(4)
    start = rng.standard_normal((1024, 1024), np.float32) * np.float32(0.02)
    moved = rng.standard_normal((1024, 1024), np.float32) * np.float32(0.02)
    norm = Tensor("F32", (1024,), np.ones(1024, np.float32).tobytes())
    for role, weights in (("math", start), ("lang", moved if change is None else start + np.float32(change) * moved)):
        model: Model = {"h.0.w": Tensor("F32", (1024, 1024), weights.tobytes()), "h.0.norm.weight": norm}
        write_model(tmp_path / role, model)
    (found,) = kin(tmp_path, "math", "lang").values()
    assert found.verdict == verdict
    said = found.sentence()
    assert ("do NOT look like" in said) == (verdict == "different bases")
    assert ("unclear" in said) == (verdict == "unclear")


def test_sums_that_overflowed_prove_nothing() -> None:
    assert SharedBaseCheck("math", "lang", float("nan"), float("nan")).verdict == "different bases"


def test_without_matrices_there_is_no_evidence() -> None:
    assert check_shared_base(planted([1.0, 1.0], [1.0, 2.0], shape=(16,))) == ()
    assert len(check_shared_base(planted([1.0, 1.0], [1.0, 2.0]))) == 3
