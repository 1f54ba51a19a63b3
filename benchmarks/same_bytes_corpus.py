"""The experts and the commands of `same_bytes.py`: numpy alone, and nothing of the package."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
Shapes = dict[str, tuple[int, ...]]
MTIME_NS = 1_600_000_000_000_000_000
BITS = {"BOOL": 8, "F4": 4, "U8": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "I32": 32, "C64": 64, "F64": 64, "I64": 64}

# `@x` is `--math x/math --lang x/lang`, `@x+` has `--base x/base` as well. `!flip FILE` changes its last byte, `!cut FILE`
# removes it, `!touch FILE` gives it another time, `!drop FILE` removes the file. `<1000`: no file may grow beyond that.
LOCAL = """
plan @bf16 --bottom 2 --top 1 --transition 1 --out swap.json --json
plan @bf16 --bottom 2 --top 1 --ramp linear --transition 2 --shard-size 9KB --out sharded.json
plan @bf16+ --method ties --density 0.3 --out ties.json
plan @fp16 --bottom 2 --top 1 --out fp16.json
plan @bf16 --bottom 2 --top 1 --out swap.json
merge @bf16 --bottom 2 --top 1 --transition 1 --dry-run
merge @bf16 --bottom 2 --top 1 --transition 1
merge @bf16 --bottom 2 --top 1 --transition 1
merge @bf16 --bottom 3 --top 2 --out out/plain --math-name org/math --lang-name org/lang --json
merge @bf16 --bottom 2 --top 2 --transition-bottom 2 --transition-top 1 --weight 0.3 --out out/seams
merge @bf16 --bottom 1 --top 1 --transition 3 --ramp linear --out out/linear --workers 1
merge @bf16+ --bottom 2 --top 2 --transition 2 --ramp mav --out out/mav --workers 4
merge @bf16+ --auto --out out/auto
merge @bf16 --lang-layers 0-1,6 --blend-layers 2,5 --weight 0.25 --out out/sets
merge @bf16 --bottom 1 --embed lang --norm blend --head lang --out out/outside
merge @bf16 --bottom 2 --embed blend --head blend --weight 0.7 --out out/outside-blended
merge @bf16 --bottom 3 --top 2 --swap attn --out out/attn
merge @bf16 --bottom 3 --top 2 --transition 1 --swap mlp,norms --out out/mlp-norms
merge @bf16+ --bottom 2 --top 1 --revert-layers 3,4 --out out/revert
merge @bf16 --bottom 2 --top 1 --transition 1 --shard-size 5KB --out out/small-shards
merge @bf16 --bottom 2 --top 1 --transition 1 --shard-size 1GB --out out/one-shard
merge @bf16 --bottom 2 --top 1 --transition 1 --digest none --out out/digest-none
merge @bf16 --bottom 2 --top 1 --transition 1 --digest xxh3 --out out/digest-xxh3
merge @bf16 --bottom 2 --top 1 --transition 1 --digest sha256 --out out/digest-sha256
merge @bf16 --bottom 2 --top 1 --copy-method clone --digest none --out out/clone
merge @large --bottom 2 --top 1 --copy-method copy_file_range --digest none --out out/copy-file-range
merge @large --bottom 2 --top 1 --copy-method sendfile --digest none --out out/sendfile
merge @large --bottom 2 --top 1 --transition 1 --copy-method read_write --workers 4 --out out/read-write
merge @large --bottom 1 --transition 1 --link hard --out out/link
merge @large --method soup --weight 0.4 --device cpu --out out/soup-large --workers 4
merge @bf16 --method soup --out out/soup
merge @bf16+ --method task-arithmetic --out out/task-arithmetic
merge @bf16+ --method task-arithmetic --scale 0.7 --shard-size 9KB --out out/task-arithmetic-scaled
merge @bf16+ --method ties --out out/ties
merge @fp32+ --method ties --scale 0.8 --density 0.5 --out out/ties-fp32
merge @fp16 --bottom 2 --top 1 --transition 1 --ramp linear --out out/fp16
merge @fp32+ --bottom 2 --top 1 --transition 2 --ramp mav --out out/fp32
merge --math fp32/math/model.safetensors --lang fp32/lang --bottom 1 --top 1 --out out/file
merge @tied --bottom 2 --top 1 --embed blend --out out/tied
merge @gpt2 --bottom 1 --top 1 --transition 1 --out out/gpt2
merge @moe --bottom 1 --top 1 --transition 1 --swap mlp --out out/moe
merge @moe+ --method ties --out out/moe-ties
merge @vision --bottom 1 --top 1 --layer-prefix model.language_model.layers --out out/vision
merge @odd --bottom 2 --top 1 --out out/odd
merge --math bf16/math --lang fp32/lang --bottom 2 --top 1 --transition 1 --cast --out out/cast
merge --math fp32/math --lang bf16/lang --method soup --cast --out out/cast-soup
merge --math bf16/base+bf16/lora --lang bf16/lang --bottom 2 --top 1 --transition 1 --out out/lora
merge --math fp32/base+fp32/lora --lang fp32/base+fp32/lora2 --lang-layers 0-1 --blend-layers 4 --out out/two-loras --workers 4
merge --math acme/math --lang hf://acme/lang@main --bottom 2 --top 1 --transition 1 --out out/hub
apply swap.json --out out/applied --digest sha256
apply sharded.json --out out/applied-sharded --math bf16/math --lang bf16/lang --quiet
apply ties.json --json --out out/applied-ties
apply swap.json --part 1/1 --out out/one-part
publish swap.json --out out/one-part
apply sharded.json --part 2/3 --out out/many
publish sharded.json --out out/many
apply sharded.json --part 1/3 --out out/many --json
apply sharded.json --part 1/3 --out out/many
apply sharded.json --part 3/4 --out out/many
apply sharded.json --part 3/3 --out out/many --workers 4
apply sharded.json --part 2/3 --out out/many --restart
publish sharded.json --out out/many --json
<9000 merge @fp32 --bottom 2 --top 1 --transition 1 --workers 1 --shard-size 8KB --out out/x
inspect bf16/math --json
inspect bf16/base+bf16/lora --tensors
inspect odd/math --tensors
inspect vision/math --json --layer-prefix model.language_model.layers
diff bf16/math bf16/lang --json
diff bf16/math fp32/math
diff out/seams out/seams
verify out/seams --json
verify out/lora --math bf16/base+bf16/lora --lang bf16/lang
verify out/ties @bf16+ --workers 4
verify out/digest-none @bf16
analyze @bf16+ --suggest --csv changes.csv
analyze @bf16+ --json --profiles
analyze @large --workers 4 --json
report out/mav --json
report out/mav --changes changes.json --eval scores.json --html mav.html
report out/ties
merge @bf16 --bottom 2 --top 2 --auto --changes changes.json --out out/x
merge @bf16 --auto --changes changes.json --out out/auto-changes
merge @bf16
merge @bf16 --bottom 2 --top
merge @bf16 --bottom 20 --out out/x
merge @bf16 --bottom 1 --scale 2 --out out/x
merge @bf16 --revert-layers 3 --out out/x
merge @bf16 --bottom 1 --out bf16/math/x
merge @bf16 --bottom 1 --device cuda --out out/x
merge @bf16 --bottom 1 --push org/x --public --out out/plain
merge @vision --bottom 1 --out out/x
merge @odd --bottom 2 --transition 1 --out out/x
merge --math bf16/math --lang fp32/lang --bottom 1 --out out/x --json
merge --math bf16/math --lang moe/lang --bottom 1 --out out/x
merge --math bf16/math+bf16/lora --lang nowhere --bottom 1 --out out/x
merge --math acme/nothing --lang bf16/lang --bottom 1 --out out/x
apply swap.json --part 4/3 --out out/x
apply swap.json --part 1/3 --out gs://bucket/x
apply changes.json --out out/x
push bf16/math org/x
!flip out/seams/model-00002-of-00003.safetensors
verify out/seams --json
!flip out/linear/config.json
verify out/linear @bf16
!drop out/plain/model-00001-of-00003.safetensors
verify out/plain
inspect out/plain
!touch bf16/lang/model-00001-of-00003.safetensors
apply swap.json --out out/touched
!flip fp16/lang/model-00002-of-00002.safetensors
apply fp16.json --out out/flipped
verify out/fp16 @fp16
!cut bf16/math/model-00001-of-00003.safetensors
inspect bf16/math
"""
STORE = """
plan @large --bottom 2 --top 1 --transition 1 --out PLACE-large.json
plan --math s3://experts/math --lang s3://experts/lang --bottom 2 --top 1 --transition 1 --out PLACE-stored.json --json
apply PLACE-large.json --out s3://out/one
verify s3://out/one @large
apply PLACE-large.json --out s3://out/one
merge @large --bottom 1 --copy-method read_write --digest xxh3 --out s3://out/sent
merge @large --bottom 1 --digest sha256 --out s3://out/x
apply PLACE-large.json --part 1/3 --out s3://out/parts
publish PLACE-large.json --out s3://out/parts
apply PLACE-large.json --part 3/3 --out s3://out/parts --workers 1
apply PLACE-large.json --part 3/3 --out s3://out/parts --json
apply PLACE-large.json --part 2/3 --out s3://out/parts
publish PLACE-large.json --out s3://out/parts --json
apply PLACE-stored.json --out s3://out/copied
apply PLACE-stored.json --part 2/2 --out s3://out/copied-parts
apply PLACE-stored.json --part 1/2 --out s3://out/copied-parts
publish PLACE-stored.json --out s3://out/copied-parts
apply PLACE-stored.json --part 1/1 --copy-method read_write --out s3://out/sent-part
publish PLACE-stored.json --out s3://out/sent-part
verify s3://out/copied --math s3://experts/math --lang s3://experts/lang
merge --math s3://experts/math --lang large/lang --bottom 2 --out out/PLACE-from-store
merge --math ENDPOINT/experts/math --lang s3://experts/lang --bottom 2 --top 1 --out out/PLACE-from-web
inspect s3://experts/math --json
diff s3://out/one s3://out/copied --json
inspect s3://experts/none
merge @large --bottom 1 --out s3://nowhere/out
merge @large --bottom 1 --out s3://out
"""
CUT_OFF = """
!refuse experts/lang/model-00002
apply PLACE-stored.json --out out/PLACE-resumed --workers 1
merge --math s3://experts/math --lang large/lang --bottom 1 --out out/PLACE-resumed
apply PLACE-stored.json --out s3://out/resumed --workers 1 --copy-method read_write
apply PLACE-stored.json --out s3://out/restarted --workers 1 --copy-method read_write
!refuse
apply PLACE-stored.json --out out/PLACE-resumed --workers 1
apply PLACE-stored.json --out s3://out/resumed --workers 1 --copy-method read_write
merge @large --bottom 1 --out s3://out/restarted
merge @large --bottom 1 --out s3://out/restarted --restart
"""
"""Runs that are cut off as a source may no longer be read, and the runs after them. `!refuse` says at which paths, or at none."""


def llama(layers: int = 8, width: int = 8, inner: int = 24, vocabulary: int = 16, prefix: str = "model.") -> Shapes:
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (vocabulary, width)}
    for n in range(layers):
        shapes[f"{prefix}layers.{n}.input_layernorm.weight"] = (width,)
        shapes[f"{prefix}layers.{n}.mlp.up_proj.weight"] = (inner, width)
        shapes[f"{prefix}layers.{n}.self_attn.q_proj.weight"] = (width, width)
    return {**shapes, f"{prefix}norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def families() -> dict[str, tuple[Shapes, str, int]]:
    """Shapes, dtype and number of shards. `odd` has a dtype of its own in each layer."""
    tied = {name: shape for name, shape in llama(6).items() if name != "lm_head.weight"}
    moe: Shapes = {name: shape for name, shape in llama(4).items() if ".mlp." not in name}
    moe |= {f"model.layers.{n}.mlp.experts.{e}.{w}.weight": (12, 8) for n in range(4) for e in range(4) for w in ("w1", "w2")}
    moe |= {f"model.layers.{n}.mlp.gate.weight": (4, 8) for n in range(4)}
    gpt2: Shapes = {"wte.weight": (16, 8), "wpe.weight": (10, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    gpt2 |= {f"h.{n}.{w}": s for n in range(6) for w, s in (("attn.c_attn.weight", (8, 24)), ("ln_1.bias", (8,)))}
    vision = llama(4, prefix="model.language_model.") | {"model.projector.weight": (8, 6), "model.visual.patch": (6, 3, 2, 2)}
    vision |= {f"model.visual.blocks.{n}.attn.q.weight": (6, 6) for n in range(4)}
    odd: Shapes = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (), "model.größe": (0, 3)}
    odd |= {f"model.layers.{n}.{w}": s for n in range(10) for w, s in (("w.weight", (6, 4)), ("scale", (2,)))}
    return {
        "bf16": (llama(), "BF16", 3), "fp16": (llama(), "F16", 2), "fp32": (llama(), "F32", 1), "tied": (tied, "BF16", 2),
        "moe": (moe, "BF16", 2), "gpt2": (gpt2, "F32", 1), "vision": (vision, "BF16", 2), "odd": (odd, "", 2),
        "large": (llama(6, 512, 3600, 1500), "BF16", 2),
    }  # fmt: skip


def tensor(dtype: str, values: np.ndarray[Any, Any], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    if dtype == "BF16":
        return dtype, shape, (values.astype("<f4").view("<u4") + 0x8000 >> 16).astype("<u2").tobytes()
    return dtype, shape, values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def expert(role: str, shapes: Shapes, dtype: str) -> Tensors:
    """The base plus changes: math's are largest in the middle layers, lang's in the others."""
    made: Tensors = {}
    for name, shape in shapes.items():
        key, count = list(name.encode()), int(np.prod(shape))
        found = re.search(r"(?:layers|h)\.(\d+)\.", name)
        if not dtype:  # random bits, NaNs included
            kind = list(BITS)[int(found[1])] if found else "BF16"
            made[name] = kind, shape, np.random.default_rng([*key, *role.encode()]).bytes(count * BITS.get(kind, 16) // 8)
            made[name] = (kind, shape, bytes(b & 1 for b in made[name][2])) if kind == "BOOL" else made[name]
            continue
        values = np.random.default_rng(key).standard_normal(count)
        if role != "base":
            middle = found is not None and 2 <= int(found[1]) <= 4
            size = 0.2 if middle == (role == "math") else 0.02
            values += np.random.default_rng([*key, *role.encode()]).standard_normal(count) * size
        made[name] = tensor(dtype, values, shape)
    return made


def write_file(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at := at + len(data)]}
    text = json.dumps(table, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def write_model(root: Path, tensors: Tensors, shards: int, role: str) -> None:
    names, weight_map = sorted(tensors), {}
    cuts = [round(len(names) * k**1.3 / shards**1.3) for k in range(shards + 1)]
    for k in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        group = {name: tensors[name] for name in names[cuts[k] : cuts[k + 1]]}
        write_file(root / file, group)
        weight_map |= dict.fromkeys(group, file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(len(t[2]) for t in tensors.values())}, "weight_map": weight_map}
        (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    layers = {int(found[1]) for name in names if (found := re.search(r"(?:layers|h)\.(\d+)\.", name))}
    tied = "lm_head.weight" not in tensors
    (root / "config.json").write_text(json.dumps({"num_hidden_layers": len(layers), "tie_word_embeddings": tied}))
    (root / "generation_config.json").write_text(json.dumps({"eos_token_id": len(role)}))
    (root / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}))


def write_adapter(root: Path, shapes: Shapes, dtype: str, rank: int) -> None:
    made: Tensors = {}
    for name, shape in shapes.items():
        if name.endswith("_proj.weight"):
            for factor, dims in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                values = np.random.default_rng([rank, ord(factor), *name.encode()]).standard_normal(dims) * 0.3
                made[f"base_model.model.{name.removesuffix('.weight')}.lora_{factor}.weight"] = tensor(dtype, values, dims)
    write_file(root / "adapter_model.safetensors", made)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}
    (root / "adapter_config.json").write_text(json.dumps(config))


def make_experts(work: Path, cache: Path) -> None:
    """Every family below `work`, results of an evaluation, and two experts in the local cache of the hub."""
    for family, (shapes, dtype, shards) in families().items():
        for role in ("math", "lang", "base")[: 2 if family in ("large", "odd") else 3]:
            write_model(work / family / role, expert(role, shapes, dtype), shards, role)
    for family, dtype in (("bf16", "BF16"), ("fp32", "F32")):
        write_adapter(work / family / "lora", llama(), dtype, 4)
        write_adapter(work / family / "lora2", llama(), "F32", 1)
    for role in ("math", "lang"):
        write_model(cache / f"models--acme--{role}/snapshots" / ("ab" * 20), expert(role, llama(), "BF16"), 3, role)
        (cache / f"models--acme--{role}/refs").mkdir()
        (cache / f"models--acme--{role}/refs/main").write_text("ab" * 20)
    score = {"language": "sw", "answers": 250, "accuracy": 0.5, "low": 0.44, "high": 0.56}
    (work / "scores.json").write_text(json.dumps({"rule": "strict", "scores": [score]}))
    for path in [*work.rglob("*"), *cache.rglob("*")]:
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
