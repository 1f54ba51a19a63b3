"""Checkpoints for tests, written without the package under test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor as a file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Model = dict[str, Tensor]


def tensor(dtype: str, shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Random bits: NaN payloads, infinities and subnormals included."""
    bits = BITS[dtype] * int(np.prod(shape, dtype=np.int64))
    assert bits % 8 == 0
    data = rng.integers(0, 2, bits // 8, np.uint8) if dtype == "BOOL" else rng.integers(0, 256, bits // 8, np.uint8)
    return Tensor(dtype, tuple(shape), data.tobytes())


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, pad: int = 8) -> bytes:
    """A safetensors file with the tensors in the given order."""
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, t in tensors.items():
        table[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + len(t.data)]}
        at += len(t.data)
    text = json.dumps(table, ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % pad)
    return len(text).to_bytes(8, "little") + text + b"".join(t.data for t in tensors.values())


def read_file(path: Path) -> Model:
    """Every tensor of a file."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + size])
    table.pop("__metadata__", None)
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), raw[8 + size :][slice(*entry["data_offsets"])])
        for name, entry in table.items()
    }


def read_model(root: Path) -> Model:
    """Every tensor of a directory."""
    found: Model = {}
    for file in sorted(root.glob("*.safetensors")):
        part = read_file(file)
        assert not found.keys() & part.keys()
        found |= part
    return found


def write_model(
    root: Path,
    model: Model,
    *,
    files: Sequence[Sequence[str]] | None = None,
    config: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
    sidecars: Mapping[str, str] | None = None,
) -> Path:
    """A model directory. `files`: the names in each shard, in order; without, one model.safetensors."""
    root.mkdir(parents=True)
    said = {"format": "pt"} if metadata is None else metadata
    if files is None:
        (root / "model.safetensors").write_bytes(file_bytes(model, said))
    else:
        assert sorted(name for names in files for name in names) == sorted(model)
        weight_map = {}
        for number, names in enumerate(files, 1):
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            (root / file).write_bytes(file_bytes({name: model[name] for name in names}, said))
            weight_map |= dict.fromkeys(names, file)
        total = sum(len(t.data) for t in model.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if config is not None:
        (root / "config.json").write_text(json.dumps(config, indent=1))
    for name, text in (sidecars or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@dataclass(frozen=True)
class Pair:
    """Two experts on disk."""

    math: Path
    lang: Path
    math_model: Model = field(repr=False)
    lang_model: Model = field(repr=False)


def llama_like(layers: int, rng: np.random.Generator, *, dtype: str = "BF16", tied: bool = False) -> Model:
    """A small model with Llama's names. Values are finite and of ordinary size."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (16, 8)}
    for n in range(layers):
        shapes[f"model.layers.{n}.input_layernorm.weight"] = (8,)
        shapes[f"model.layers.{n}.mlp.up_proj.weight"] = (24, 8)
        shapes[f"model.layers.{n}.self_attn.q_proj.weight"] = (8, 8)
    shapes["model.norm.weight"] = (8,)
    if not tied:
        shapes["lm_head.weight"] = (16, 8)
    return {name: normal(dtype, shape, rng) for name, shape in shapes.items()}


def normal(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Normally distributed values (BF16, F16, F32 or F64)."""
    values = rng.standard_normal(shape)
    if dtype == "BF16":
        data = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).tobytes()
    return Tensor(dtype, shape, data)


def llama_pair(root: Path, layers: int = 8, *, seed: int = 0, shards: int = 3, dtype: str = "BF16", tied: bool = False) -> Pair:
    """Two experts of one shape in the same layout, with a config and a tokenizer."""
    models = {}
    for role in ("math", "lang"):
        rng = np.random.default_rng([seed, len(role), ord(role[0])])
        model = models[role] = llama_like(layers, rng, dtype=dtype, tied=tied)
        names = sorted(model)
        files = [names[k::shards] for k in range(shards)]
        config = {"num_hidden_layers": layers, "rope_theta": 10000.0, "tie_word_embeddings": tied}
        sidecars = {"tokenizer.json": json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []})}
        sidecars["generation_config.json"] = json.dumps({"eos_token_id": len(role)})
        sidecars["tokenizer_config.json"] = json.dumps({"made by": role})
        write_model(root / role, model, files=files, config=config, sidecars=sidecars)
    return Pair(root / "math", root / "lang", models["math"], models["lang"])


HANG_SECONDS = 900.0
"""What no test takes on any machine, however busy: who waits longer has found something that never ends."""


def unmeasured() -> dict[str, str]:
    """The environment for a process whose time or memory is measured, or that is interrupted: without coverage, which takes its
    share of both, and waits for ever for its own lock where a signal came while it held it.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
