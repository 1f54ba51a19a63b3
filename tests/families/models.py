"""Tiny models of several families: a base each, and two experts really fine-tuned from it. Only transformers and torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3VLConfig,
)

State = dict[str, torch.Tensor]
Inputs = dict[str, torch.Tensor]

LAYERS = 6
VOCABULARY = 128
WORDS = 120
"""Ids below are plain words; those from here on are for images."""
IMAGE_BEGIN, IMAGE_END, VIDEO, IMAGE = 124, 125, 126, 127
IMAGE_TOKENS = 4
STEPS = 4

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """A kind of model. Names are those of `state_dict()`, which are not always those in the files.

    stack: what stands before a layer's number. embed, norm, head: tensors outside the layers; of a tied family `head` is
    the alias that `state_dict()` shows and no file holds. arguments: what the command line needs to know besides.
    """

    name: str
    config: Callable[[], PretrainedConfig]
    dtype: torch.dtype
    shard_size: str
    tied: bool
    stack: str = "model.layers."
    embed: tuple[str, ...] = ("model.embed_tokens.weight",)
    norm: tuple[str, ...] = ("model.norm.weight",)
    head: tuple[str, ...] = ("lm_head.weight",)
    image_inputs: Callable[[int, torch.Generator], Inputs] | None = None
    untrained: str = "nothing"
    arguments: tuple[str, ...] = ()

    @property
    def auto(self) -> Any:
        """The class of transformers that makes and loads it."""
        return AutoModelForImageTextToText if self.image_inputs else AutoModelForCausalLM

    def inputs(self, generator: torch.Generator, rows: int) -> Inputs:
        """Random words, and an image in every row where the family sees."""
        ids = torch.randint(3, WORDS, (rows, 16), generator=generator)
        if self.image_inputs is None:
            return {"input_ids": ids}
        ids[:, 1] = IMAGE_BEGIN
        ids[:, 2 : 2 + IMAGE_TOKENS] = IMAGE
        ids[:, 2 + IMAGE_TOKENS] = IMAGE_END
        return {"input_ids": ids, **self.image_inputs(rows, generator)}


@dataclass(frozen=True)
class Experts:
    """One base and two experts of it as saved, and their states as they were in memory when they were.

    probe: inputs to compare models by; math_logits and lang_logits: what the experts make of them once loaded again.
    """

    family: Family
    base: Path
    math: Path
    lang: Path
    base_state: State
    math_state: State
    lang_state: State
    probe: Inputs
    math_logits: torch.Tensor
    lang_logits: torch.Tensor


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**{**_SIZES, "tie_word_embeddings": False, **changes})


def _gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=LAYERS, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )  # fmt: skip


def _mixtral() -> MixtralConfig:
    return MixtralConfig(**{**_SIZES, "intermediate_size": 64}, num_local_experts=4, num_experts_per_tok=2)


def _qwen3_vl() -> Qwen3VLConfig:
    text = {**_SIZES, "head_dim": 16}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "deepstack_visual_indexes": [0, 1],
        "patch_size": 4,
        "num_position_embeddings": 16,
    }
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    ids |= {"vision_start_token_id": IMAGE_BEGIN, "vision_end_token_id": IMAGE_END}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def _qwen3_vl_images(rows: int, generator: torch.Generator) -> Inputs:
    kinds = torch.zeros(rows, 16, dtype=torch.int32)
    kinds[:, 2 : 2 + IMAGE_TOKENS] = 1
    return {
        "pixel_values": torch.randn(rows * 16, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * rows),
        "mm_token_type_ids": kinds,
    }


def _llava() -> LlavaConfig:
    """As many layers in the vision tower as in the language model, so that which is meant must be said."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=2, image_size=16, patch_size=8
    )
    return LlavaConfig(vision_config=vision, text_config=llama(), image_token_index=IMAGE, tie_word_embeddings=False)


def _llava_images(rows: int, generator: torch.Generator) -> Inputs:
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}


_NESTED: dict[str, Any] = {
    "stack": "model.language_model.layers.",
    "embed": ("model.language_model.embed_tokens.weight",),
    "norm": ("model.language_model.norm.weight",),
}

FAMILIES = {
    family.name: family
    for family in (
        Family("llama-tied", lambda: llama(tie_word_embeddings=True), torch.float32, "120KB", tied=True),
        Family("llama-untied", llama, torch.bfloat16, "60KB", tied=False),
        Family("qwen2", lambda: Qwen2Config(**_SIZES, tie_word_embeddings=False), torch.bfloat16, "60KB", tied=False),
        Family("gemma", lambda: GemmaConfig(**_SIZES, head_dim=12), torch.float16, "60KB", tied=True),
        Family("mixtral", _mixtral, torch.float32, "250KB", tied=False),
        Family(
            "gpt2", _gpt2, torch.float32, "150KB", tied=True, stack="transformer.h.",
            embed=("transformer.wte.weight", "transformer.wpe.weight"),
            norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
        ),
        Family("qwen3-vl", _qwen3_vl, torch.bfloat16, "80KB", tied=False, image_inputs=_qwen3_vl_images, **_NESTED),
        Family(
            "llava", _llava, torch.float32, "150KB", tied=False, image_inputs=_llava_images, **_NESTED,
            untrained=r"\.vision_tower\.(encoder\.layers\.5|post_layernorm)\.",  # it takes the last but one layer's output
            arguments=("--layer-prefix", "language_model.model.layers"),
        ),
    )
}  # fmt: skip


def new_model(config: PretrainedConfig, *, seed: int, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """A model with random weights in fp32."""
    torch.manual_seed(seed)
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    return model


def make_experts(family: Family, root: Path) -> Experts:
    """Base and experts under `root`, each in several shards."""
    base, math, lang = root / "base", root / "math", root / "lang"
    model = new_model(family.config(), seed=7, auto=family.auto)
    base_state = _save(model, family, base)
    math_state = _save(_fine_tuned(family, base, seed=11), family, math)
    tuned = _fine_tuned(family, base, seed=13)
    # What differs between two real experts, beside the weights, and says nothing of the network.
    tuned.config.get_text_config().use_cache = False
    tuned.generation_config.max_new_tokens = 17
    lang_state = _save(tuned, family, lang)
    probe = family.inputs(torch.Generator().manual_seed(99), rows=2)
    of_math, of_lang = (logits(load(family, path)[0], probe) for path in (math, lang))
    return Experts(family, base, math, lang, base_state, math_state, lang_state, probe, of_math, of_lang)


def load(family: Family, path: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model at `path`, and what transformers found amiss with its tensors."""
    model, information = family.auto.from_pretrained(path, dtype="auto", output_loading_info=True)
    return model, information


def logits(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Computed from weights that torch allocated. Those of a file stay mapped where they are in it, and libraries of matrix
    products may add up in another order where memory is not aligned.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(**inputs).logits
    return result


def _fine_tuned(family: Family, base: Path, *, seed: int) -> PreTrainedModel:
    """The base after a few steps on random text of this seed, in fp32 as mixed-precision training keeps it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model: PreTrainedModel = family.auto.from_pretrained(base, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        inputs = family.inputs(generator, rows=8)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _save(model: PreTrainedModel, family: Family, path: Path) -> State:
    model.to(family.dtype).save_pretrained(path, max_shard_size=family.shard_size)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
