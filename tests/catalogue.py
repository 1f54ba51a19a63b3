"""Checkpoints as values, without a disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lswap_core.checkpoint.catalogue import Checkpoint, Role, Shard, Sidecar
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.checkpoint.header import build_header

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def llama(
    layers: int, *, dtype: str = "BF16", prefix: str = "model.layers", head: bool = True
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes of a small model."""
    shapes = {
        f"{prefix}.{n}.{part}": (dtype, (4, 4)) for n in range(layers) for part in ("attn.weight", "mlp.weight", "norm.weight")
    }
    shapes |= {"model.embed_tokens.weight": (dtype, (8, 4)), "model.norm.weight": (dtype, (4,))}
    return shapes | ({"lm_head.weight": (dtype, (8, 4))} if head else {})


def sidecar(name: str, text: str) -> Sidecar:
    raw = text.encode()
    return Sidecar(name, lambda: raw)


def checkpoint(
    shapes: Shapes,
    role: Role = "math",
    *,
    files: Sequence[Sequence[str]] | None = None,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    sidecars: Mapping[str, str] | None = None,
    total_size: object = None,
    location: str = "",
) -> Checkpoint:
    """A catalogue. `files`: names in each shard."""
    groups = [list(shapes)] if files is None else files
    shards, weight_map, total = [], {}, 0
    for number, names in enumerate(groups, 1):
        file = "model.safetensors" if files is None else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        header = build_header(
            {n: (DTYPES[shapes[n][0]], shapes[n][1]) for n in names}, {"format": "pt"} if metadata is None else metadata
        )
        shards.append(Shard(file, header, 17))
        weight_map |= dict.fromkeys(names, file)
        total += header.file_size - header.data_begin
    index = None
    if files is not None:
        size = total if total_size is None else total_size
        index = json.dumps({"metadata": {"total_size": size, "note": 1}, "weight_map": weight_map})
    where = location or f"/models/{role}"
    return Checkpoint(
        role, where, where, role, tuple(shards), index, config, tuple(sidecar(n, t) for n, t in (sidecars or {}).items())
    )
