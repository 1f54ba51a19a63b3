"""A pair of experts of any size to measure with, made fast: Llama-3.2-1B's shape, made wider or narrower.

16 layers, 32 heads (8 for keys), tied embeddings, BF16, at least five shards, none above 500 MB but for one tensor that
is larger. math and lang are a base plus a change each, as `make_experts.py` has it, but drawn from a pool of random
values at random offsets: good enough to copy, blend and compare, in seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path

import numpy as np
from make_experts import Shape, change, write_expert
from numpy.typing import NDArray

FULL_BYTES = 2_471_628_800
"""Weights of Llama-3.2-1B."""
_SHARD_BYTES = 500_000_000
_POOL, _CHUNK = 1 << 20, 1 << 18
_RECORD = "pair.json"


@dataclass(frozen=True)
class Pair:
    """Two model directories. size_bytes: of the weights of one."""

    math: Path
    lang: Path
    size_bytes: int

    @property
    def folders(self) -> list[Path]:
        return [self.math, self.lang]


def shape_of(size_bytes: int) -> Shape:
    """The shape that comes nearest to `size_bytes`: hidden size in steps of 64, so that heads stay even; at least 64."""
    hidden = max(64, 64 * round(32 * sqrt(size_bytes / FULL_BYTES)))
    return Shape(hidden, 4 * hidden, 16, 32, 8, 128256 * hidden // 2048, True, str(min(_SHARD_BYTES, size_bytes // 5)))


def make(root: Path, size_bytes: int, *, seed: int = 0) -> Pair:
    """The pair in `root`; one that is there already is used again. SystemExit where that has another size or no room is left."""
    wanted = {"size_bytes": size_bytes, "seed": seed}
    record = root / _RECORD
    if record.exists():
        if json.loads(record.read_text()) != wanted:
            raise SystemExit(f"{root} holds another pair than the one wanted; remove it or choose another --dir")
        return _found(root)
    root.mkdir(parents=True, exist_ok=True)
    needed, free = size_bytes * 7 // 2, shutil.disk_usage(root).free
    if free < needed:
        raise SystemExit(
            f"{root} has {free / 1e9:.1f} GB free; the pair and one output take {needed / 1e9:.1f}, choose another --dir"
        )
    for expert in ("math", "lang"):
        shutil.rmtree(root / expert, ignore_errors=True)  # half made, by a run that was killed
        write_expert(root / expert, shape_of(size_bytes), expert, seed=seed, sparse=False, values=drawn)
    record.write_text(json.dumps(wanted) + "\n")
    return _found(root)


def drop(root: Path) -> None:
    """Remove a pair, and nothing else that is in `root`."""
    for expert in ("math", "lang"):
        shutil.rmtree(root / expert)
    (root / _RECORD).unlink()


def _found(root: Path) -> Pair:
    math, lang = root / "math", root / "lang"
    return Pair(math, lang, sum(path.stat().st_size for path in math.glob("*.safetensors")))


def drawn(expert: str, name: str, count: int, shape: Shape, seed: int) -> Iterator[bytes]:
    """As `make_experts.weights`, from a pool of values."""
    base, delta = (_pool(f"{seed} {what}") for what in ("base", expert))
    key = list(name.encode())
    offsets = np.random.default_rng([seed, *key])
    size = np.float32(change(expert, name, shape))
    is_norm = name.endswith("norm.weight")
    for begin in range(0, count, _CHUNK):
        n = min(_CHUNK, count - begin)
        at, by = offsets.integers(0, _POOL - _CHUNK, 2)
        values = delta[by : by + n] * size
        values += base[at : at + n]
        if is_norm:
            values += np.float32(1)
        bits = values.view(np.uint32)
        bits += np.uint32(0x8000)
        bits >>= np.uint32(16)
        yield bits.astype("<u2").tobytes()


@cache
def _pool(key: str) -> NDArray[np.float32]:
    return np.random.default_rng(list(key.encode())).standard_normal(_POOL, np.float32) * np.float32(0.02)
