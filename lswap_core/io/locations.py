"""Decides what kind of place a location is, from how a user writes it. Every verb uses it, so all of them agree.

A source, or an output to verify, is a local path, a model on the hub, or a place in a store or on a web server. An existing
path always wins. An output to write is a path or a URL, never a hub id: `org/name` is a directory there.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Literal

from lswap_core.errors import RecipeError

if TYPE_CHECKING:
    from lswap_core.checkpoint.catalogue import Checkpoint

HUB_SCHEME = "hf://"
Kind = Literal["path", "hub", "store"]
_HUB_ID = r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^@\s]+))?"


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether it is written as a URL. For an output to write, this alone decides."""
    return "://" in os.fspath(location)


def kind_of(location: str) -> Kind:
    """Return the kind of a source. `store` includes web servers. Raises RecipeError for an `hf://` URL that names no model.

    >>> kind_of("acme/math@v2"), kind_of("./models/math"), kind_of("s3://models/math"), kind_of("hf://acme/math")
    ('hub', 'path', 'store', 'hub')
    """
    if os.path.lexists(location):
        return "path"
    if parse_hub_id(location) is not None:
        return "hub"
    return "store" if is_url(location) else "path"


def is_remote(location: str) -> bool:
    """Whether reading from there uses a network or the hub's cache."""
    return kind_of(location) != "path"


def are_remote(*checkpoints: Checkpoint | None) -> bool:
    """Whether any of these open checkpoints is remote. None stands for a checkpoint that is not used."""
    return any(checkpoint is not None and is_url(checkpoint.root) for checkpoint in checkpoints)


def parse_hub_id(location: str) -> tuple[str, str | None] | None:
    """The repository and revision of `org/name`, `org/name@revision` or `hf://...`. None for anything else.

    Raises RecipeError for an `hf://` URL that names no model.

    >>> parse_hub_id("hf://Qwen/Qwen2.5-7B@main"), parse_hub_id("./models/qwen")
    (('Qwen/Qwen2.5-7B', 'main'), None)
    """
    has_scheme = location.startswith(HUB_SCHEME)
    match = re.fullmatch(_HUB_ID, location.removeprefix(HUB_SCHEME).rstrip("/") if has_scheme else location, re.ASCII)
    if match is None and has_scheme:
        raise RecipeError(f"{location!r} names no model on the hub; write it like hf://org/name or hf://org/name@revision")
    return None if match is None else (match[1], match[2])
