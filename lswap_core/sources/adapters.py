"""Opens a checkpoint with a LoRA adapter, written `base+adapter`: two directories on a local or mounted disk."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

from lswap_core.checkpoint.catalogue import ADAPTER_FILE, Checkpoint, Role
from lswap_core.checkpoint.lora import read_adapter
from lswap_core.errors import FormatError, RecipeError
from lswap_core.sources.local import open_local, published_name, read_shard, read_small
from lswap_core.text.strict_json import Node, is_unicode, parse_object

CONFIG_FILE = "adapter_config.json"
_PICKLED_FILE = "adapter_model.bin"


def open_source(location: str | Path, role: Role, name: str | None = None) -> Checkpoint:
    """Open the source at `location`: a checkpoint as for `open_local`, or `base+adapter` as for `open_adapted`."""
    sides = _sides(str(location))
    return open_local(location, role, name) if sides is None else open_adapted(*sides, role, name)


def open_adapted(base_path: str | Path, adapter_path: str | Path, role: Role, name: str | None = None) -> Checkpoint:
    """Open the checkpoint at `base_path` with the LoRA adapter in the directory `adapter_path`, as PEFT writes it:
    adapter_config.json and adapter_model.safetensors. The files beside the weights are the base's.

    Reads headers and small files only. Raises FormatError for malformed files, RecipeError for anything but plain LoRA,
    MismatchError for an adapter that does not fit the base, and OSError for files that cannot be read.
    """
    if not str(adapter_path):
        raise RecipeError(f"{base_path}+: there is nothing after the plus; expected BASE+ADAPTER")
    base = open_local(base_path, role)
    root = Path(adapter_path)
    where = str(root.absolute())
    if not is_unicode(where):
        raise RecipeError(f"the path {where!r} is no Unicode text, which plans and manifests are; rename it")
    if not os.path.lexists(root):
        if (several := _sides(str(adapter_path))) is not None:
            what = f"{several[0]} and {several[1]} are two adapters over one base; expected one"
            raise RecipeError(f"{what}: merge {base_path}+{several[0]} first, and put the other over the output")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    if not os.path.lexists(root / CONFIG_FILE):
        raise FormatError(f"no adapter: there is no {CONFIG_FILE} in it", path=str(root))
    if not os.path.lexists(root / ADAPTER_FILE):
        pickled = f", only {_PICKLED_FILE}, which runs code when read; save it again with PEFT"
        what = pickled if os.path.lexists(root / _PICKLED_FILE) else ""
        raise FormatError(f"no adapter: there is no {ADAPTER_FILE} in it{what}", path=str(root))
    if any(shard.name == ADAPTER_FILE for shard in base.shards):
        raise RecipeError(f"{base.location}: a base's file cannot be called {ADAPTER_FILE}, as the adapter's is; rename it")
    path = str(root / CONFIG_FILE)
    config = Node(parse_object(read_small(root, CONFIG_FILE), path=path), path=path)
    adapter = read_adapter(config, read_shard(root, ADAPTER_FILE), base, root=where)
    called = name or f"{base.name}+{published_name(root)}"
    return replace(base, location=f"{base.location}+{where}", name=called, adapter=adapter)


def places_of(location: str) -> tuple[str, ...]:
    """The paths that a location names: itself, or base and adapter."""
    return _sides(location) or (location,)


def _sides(location: str) -> tuple[str, str] | None:
    """Split `base+adapter`, None where the location is one path. An existing path with a plus in it is one path.

    Else the last plus between two existing paths counts; without one, the last plus after an existing path.
    """
    if os.path.lexists(location):
        return None
    cuts = [at for at in range(len(location) - 1, 0, -1) if location[at] == "+" and os.path.exists(location[:at])]
    best = next((at for at in cuts if location[at + 1 :] and os.path.exists(location[at + 1 :])), None)
    at = best if best is not None else next(iter(cuts), None)
    return None if at is None else (location[:at], location[at + 1 :])
