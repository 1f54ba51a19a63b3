"""Tiny models that speak, made on the spot: a tokenizer trained on the texts at hand, a base, and experts tuned from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY = 600
LAYERS = 12
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}<|assistant|>"
STEPS = 6


@dataclass(frozen=True)
class Experts:
    """Directories of checkpoints with tokenizers."""

    base: Path
    math: Path
    lang: Path


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that every text has tokens and characters beyond ASCII are often several."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def config(*, tied: bool = False, layers: int = LAYERS) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=tied, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def make_experts(
    root: Path,
    texts: Sequence[str],
    *,
    names: Sequence[str] = ("math", "lang"),
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Path]:
    """A base and, from it, an expert for each name, fine-tuned on texts of its own."""
    tokenizer = train_tokenizer(texts)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config(tied=tied), dtype=torch.float32)
    made = {"base": _save(model, tokenizer, root / "base", dtype)}
    start = {name: tensor.clone() for name, tensor in model.float().state_dict().items()}
    for number, name in enumerate(names):
        model.load_state_dict(start)
        tune(model.float(), tokenizer, texts[number :: len(names)], seed=number)
        made[name] = _save(model, tokenizer, root / name, dtype)
    return made


def tune(model: Any, tokenizer: Any, texts: Sequence[str], *, seed: int) -> None:
    """A few steps on random windows of the texts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(tokenizer("\n".join(texts))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(STEPS):
        starts = torch.randint(0, len(ids) - 33, (8,), generator=generator).tolist()
        batch = torch.stack([ids[start : start + 32] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def own_memory(model: Any) -> Any:
    """The same model, with weights that torch allocated. Those of a file stay mapped where they are in it, and libraries of
    matrix products may add up in another order where memory is not aligned.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _save(model: Any, tokenizer: Any, path: Path, dtype: torch.dtype) -> Path:
    model.to(dtype).save_pretrained(path, max_shard_size="100KB")
    tokenizer.save_pretrained(path)
    return path
