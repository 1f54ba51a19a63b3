"""What one writes by hand to swap layers: three scripts to measure beside the package, each complete in itself.

    python benchmarks/scripts.py numpy|safetensors|transformers MATH LANG OUT

numpy: ranged pread and pwrite in pieces that stay in the L2 cache. safetensors: `safe_open` and `save_file`, shard by
shard of math's. transformers: load both models, swap, save. All with the recipe of `gate.Swap()`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import gate
import numpy as np

PIECE_BYTES = 128 * 1024
"""The fastest of 128 KiB, 512 KiB, 2 MiB and 8 MiB on a machine with 2 MB of L2."""
SHARDS = "500MB"


def with_numpy(math: Path, lang: Path, out: Path) -> None:
    """Math's files with some byte ranges from elsewhere."""
    swap, layers = gate.Swap(), gate.layer_count(math)
    theirs = gate.tensors(lang)
    copy_documents(math, out)
    fds = {path: os.open(path, os.O_RDONLY) for folder in (math, lang) for path in sorted(folder.glob("*.safetensors"))}
    targets = {path: os.open(out / path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666) for path in math.glob("*.safetensors")}
    for path, target in targets.items():
        size = 8 + int.from_bytes(os.pread(fds[path], 8, 0), "little")
        os.pwrite(target, os.pread(fds[path], size, 0), 0)
    for name, x in gate.tensors(math).items():
        y, share = theirs[name], swap.share(name, layers)
        for offset in range(0, x.size_bytes, PIECE_BYTES):
            count = min(PIECE_BYTES, x.size_bytes - offset)
            sides = [os.pread(fds[side.path], count, side.begin + offset) for side in ([x] * (share < 1) + [y] * (share > 0))]
            if len(sides) == 2:
                a, b = (np.frombuffer(side, np.uint16) for side in sides)
                piece = gate.blend(a, b, share).tobytes()
            else:
                (piece,) = sides
            os.pwrite(targets[x.path], piece, x.begin + offset)


def with_safetensors(math: Path, lang: Path, out: Path) -> None:
    """One shard of math's at a time in memory."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    swap, layers = gate.Swap(), gate.layer_count(math)
    files = {path: safe_open(path, "pt") for path in sorted(lang.glob("*.safetensors"))}
    theirs = {name: files[place.path] for name, place in gate.tensors(lang).items()}
    copy_documents(math, out)
    for path in sorted(math.glob("*.safetensors")):
        made = {}
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                share = swap.share(name, layers)
                x = file.get_tensor(name) if share < 1 else None
                y = theirs[name].get_tensor(name) if share > 0 else None
                if x is not None and y is not None:
                    made[name] = (x.float() * (1 - share) + y.float() * share).to(torch.bfloat16)
                else:
                    made[name] = y if x is None else x
        save_file(made, out / path.name, {"format": "pt"})


def with_transformers(math: Path, lang: Path, out: Path) -> None:
    """Both models in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    swap, layers = gate.Swap(), gate.layer_count(math)
    mine, theirs = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16) for path in (math, lang))
    other = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, x in mine.named_parameters():
            if share := swap.share(name, layers):
                y = other[name]
                x.copy_(y if share == 1 else (x.float() * (1 - share) + y.float() * share).to(torch.bfloat16))
    mine.save_pretrained(out, max_shard_size=SHARDS)


def copy_documents(math: Path, out: Path) -> None:
    """Everything but the weights."""
    out.mkdir()
    for path in math.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, out / path.name)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    {"numpy": with_numpy, "safetensors": with_safetensors, "transformers": with_transformers}[kind](*map(Path, paths))
