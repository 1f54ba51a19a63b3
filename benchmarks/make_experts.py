"""Make a base model and two experts of it, Llama-shaped, to merge and to measure: no training, no torch.

    python benchmarks/make_experts.py models --shape tiny

writes models/base, models/math and models/lang. The experts are the base plus random changes shaped as the analysis of
layer swapping found them (arXiv 2410.01335): math tuning moves the middle layers, language tuning the first and last.
With --sparse the files have headers and sizes, but no data: shapes of hundreds of gigabytes to plan against.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.checkpoint.header import build_header, reference_order, size_in_bytes
from lswap_core.text.plain import parse_size

BF16 = DTYPES["BF16"]
Values = Callable[[str, str, int, "Shape", int], Iterator[bytes]]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model, as in its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    shard_size: str


SHAPES = {
    "tiny": Shape(64, 160, 12, 4, 2, 512, True, "300KB"),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, True, "5GB"),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, False, "5GB"),
    "405b": Shape(16384, 53248, 126, 128, 8, 128256, False, "4.3GB"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory to make the three models in")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--layers", type=int, help="another number of layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparse", action="store_true", help="headers and sizes only")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.layers:
        shape = Shape(**{**asdict(shape), "num_hidden_layers": arguments.layers})
    for expert in ("base", "math", "lang"):
        write_expert(arguments.out / expert, shape, expert, seed=arguments.seed, sparse=arguments.sparse)
        print(arguments.out / expert)


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, in the order in which transformers names them."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    keys = hidden // shape.num_attention_heads * shape.num_key_value_heads
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_hidden_layers):
        block = f"model.layers.{layer}"
        tensors |= {
            f"{block}.input_layernorm.weight": (hidden,),
            f"{block}.mlp.down_proj.weight": (hidden, inner),
            f"{block}.mlp.gate_proj.weight": (inner, hidden),
            f"{block}.mlp.up_proj.weight": (inner, hidden),
            f"{block}.post_attention_layernorm.weight": (hidden,),
            f"{block}.self_attn.k_proj.weight": (keys, hidden),
            f"{block}.self_attn.o_proj.weight": (hidden, hidden),
            f"{block}.self_attn.q_proj.weight": (hidden, hidden),
            f"{block}.self_attn.v_proj.weight": (keys, hidden),
        }
    tensors["model.norm.weight"] = (hidden,)
    if not shape.tie_word_embeddings:
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    return tensors


def change(expert: str, name: str, shape: Shape) -> float:
    """Size of an expert's change to a tensor, relative to the base's weights."""
    parts = name.split(".")
    if expert == "base":
        return 0.0
    if parts[1] != "layers":
        return 0.01
    depth = (int(parts[2]) + 0.5) / shape.num_hidden_layers
    middle = math.exp(-(((depth - 0.5) / 0.2) ** 2))
    return 0.002 + 0.05 * (middle if expert == "math" else 1 - middle)


def shards(shape: Shape) -> Iterator[dict[str, tuple[DType, tuple[int, ...]]]]:
    """Tensors of each file."""
    limit, filled = parse_size(shape.shard_size), 0
    group: dict[str, tuple[DType, tuple[int, ...]]] = {}
    for name, dims in tensor_shapes(shape).items():
        size = size_in_bytes(BF16, dims)
        if group and filled + size > limit:
            yield group
            group, filled = {}, 0
        group[name] = (BF16, dims)
        filled += size
    yield group


def write_expert(out: Path, shape: Shape, expert: str, *, seed: int, sparse: bool, values: Values | None = None) -> None:
    """One model directory, as transformers would lay it out. values: where its data come from (default: `weights`)."""
    values = values or weights
    out.mkdir(parents=True)
    config = {k: v for k, v in asdict(shape).items() if k != "shard_size"}
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
    config |= {
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    files = list(shards(shape))
    weight_map = {}
    for number, group in enumerate(files, 1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        ordered = {name: group[name] for name in reference_order(group)}
        weight_map |= dict.fromkeys(ordered, file)
        header = build_header(ordered, {"format": "pt"})
        with (out / file).open("wb") as handle:
            handle.write(header.encode())
            if sparse:
                handle.truncate(header.file_size)
                continue
            for name, (_, dims) in ordered.items():
                for chunk in values(expert, name, math.prod(dims), shape, seed):
                    handle.write(chunk)
    if len(files) > 1:
        total = sum(size_in_bytes(BF16, dims) for dims in tensor_shapes(shape).values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def weights(expert: str, name: str, count: int, shape: Shape, seed: int) -> Iterator[bytes]:
    """The base's values plus the expert's change, in bf16, about 1 M elements at a time."""
    key = list(name.encode())
    base = np.random.default_rng([seed, *key])
    delta = np.random.default_rng([seed, *key, *expert.encode()])
    size = np.float32(change(expert, name, shape))
    is_norm = name.endswith("norm.weight")
    for begin in range(0, count, _CHUNK):
        n = min(_CHUNK, count - begin)
        values = base.standard_normal(n, np.float32) * np.float32(0.02) + np.float32(is_norm)
        if size:
            values += delta.standard_normal(n, np.float32) * (size * np.float32(0.02))
        yield (values.view(np.uint32) + 0x8000 >> 16).astype("<u2").tobytes()


if __name__ == "__main__":
    main()
