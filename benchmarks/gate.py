"""Is a merged checkpoint right? Every tensor, computed anew with numpy from the two experts; nothing of lswap_core is used.

For BF16 models whose blocks are `model.layers.N.`. Shares are exact in binary and weights finite, so that any careful
fp32 formula gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint16]
_CHUNK_BYTES = 512 * 1024


@dataclass(frozen=True)
class Swap:
    """How many layers come from lang and are blended; `outside` is lang's weight of what is in no layer."""

    bottom: int = 4
    top: int = 2
    transition: int = 2
    weight: float = 0.5
    outside: float = 0.0

    def share(self, name: str, layers: int) -> float:
        """lang's weight of a tensor: 0.0 and 1.0 are copies."""
        found = re.match(r"model\.layers\.(\d+)\.", name)
        if found is None:
            return self.outside
        layer = int(found[1])
        if layer < self.bottom or layer >= layers - self.top:
            return 1.0
        below = self.bottom and layer < self.bottom + self.transition
        above = self.top and layer >= layers - self.top - self.transition
        return self.weight if below or above else 0.0


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: `begin` (counted from the start of the file) and size in bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size_bytes: int

    def chunks(self) -> Iterator[Words]:
        """Its values as 16-bit words."""
        with open(self.path, "rb", buffering=0) as handle:
            for offset in range(0, self.size_bytes, _CHUNK_BYTES):
                handle.seek(self.begin + offset)
                yield np.fromfile(handle, np.uint16, min(_CHUNK_BYTES, self.size_bytes - offset) // 2)


def tensors(model: Path) -> dict[str, Place]:
    """Every tensor of a directory, in the order of files and bytes."""
    found: dict[str, Place] = {}
    for path in sorted(model.glob("*.safetensors")):
        with open(path, "rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            found[name] = Place(path, entry["dtype"], tuple(entry["shape"]), 8 + size + begin, end - begin)
    return found


def layer_count(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


def blend(x: Words, y: Words, share: float) -> Words:
    """`(1 - share) * x + share * y` in fp32, products and sum rounded one by one, then to bf16, ties to even."""
    a, b = ((side.astype(np.uint32) << 16).view(np.float32) for side in (x, y))
    w = np.float32(share)
    bits = ((np.float32(1) - w) * a + w * b).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1)) >> 16).astype(np.uint16)
    return np.where(x == y, x, rounded)


def problems(out: Path, math: Path, lang: Path, swap: Swap, *, exact: bool = True) -> list[str]:
    """What is wrong with `out`; nothing where it is right. Not `exact`: a value may be off by one unit in the last place."""
    sides, layers = (tensors(math), tensors(lang)), layer_count(math)
    made, found = tensors(out), []
    if missing := sides[0].keys() - made.keys():
        found.append(f"{len(missing)} tensors are missing, such as {min(missing)}")
    if extra := made.keys() - sides[0].keys():
        found.append(f"{len(extra)} tensors should not be there, such as {min(extra)}")
    for name in (name for name in sides[0] if name in made):
        x, y, z = sides[0][name], sides[1][name], made[name]
        if (z.dtype, z.shape, z.size_bytes) != (x.dtype, x.shape, x.size_bytes):
            found.append(f"{name} is {z.dtype} {z.shape}, expected {x.dtype} {x.shape}")
            continue
        if z.path.stat().st_size < z.begin + z.size_bytes:
            found.append(f"{name} is cut off by the end of {z.path.name}")
            continue
        share = swap.share(name, layers)
        off = sum(_off(*chunks, share, exact) for chunks in zip(x.chunks(), y.chunks(), z.chunks(), strict=True))
        if off:
            found.append(f"{name} has {off} wrong values of {x.size_bytes // 2}")
    return found


def _off(x: Words, y: Words, z: Words, share: float, exact: bool) -> int:
    """How many values of z are not what they should be."""
    wanted = {0.0: x, 1.0: y}.get(share)
    if wanted is None:
        wanted = blend(x, y, share)
    if exact:
        return int(np.count_nonzero(wanted != z))
    return int(np.count_nonzero(np.abs(_ordered(wanted) - _ordered(z)) > 1))


def _ordered(words: Words) -> NDArray[np.int32]:
    """Integers in the order of the values, one apart for neighbours, and one zero."""
    magnitude = (words & 0x7FFF).astype(np.int32)
    return np.where(words >> 15, -magnitude, magnitude)
