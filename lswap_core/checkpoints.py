"""Opening checkpoints, wherever they lie."""

from __future__ import annotations

import os

from lswap_core.checkpoint.catalogue import Checkpoint, parse_role
from lswap_core.sources.places import Places


def open_checkpoint(path: str | os.PathLike[str], *, role: str, name: str | None = None) -> Checkpoint:
    """The catalogue of the checkpoint at `path`: a directory, one safetensors file, `base+adapter`, a checkpoint with a LoRA
    adapter over it, or, where there is no such path, `org/name[@revision]` on the hub or a URL; headers only, no data.

    role: `math`, `lang` or `base`. name: what to call it in what is published; by default its hub id where it lies on the hub
    or in its cache, else its directory's name. Raises FormatError, RecipeError (role), SourceError or OSError.
    """
    return Places().open(os.fspath(path), parse_role(role), name)
