"""Lays out a draft: decides the output file of each tensor, and its offset in it. The result is a plan."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from lswap_core.checkpoint.catalogue import SINGLE_FILE, Shard, in_order
from lswap_core.checkpoint.header import Header, build_header, reference_order
from lswap_core.errors import RecipeError
from lswap_core.plan.plan import OutputFile, Plan, PlanSidecar, PlanSource, SourceFile
from lswap_core.plan.shareable_layout import arrange, split
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.expressions import Copy

DEFAULT_SHARD_BYTES = 5_000_000_000
_METADATA_FIRST = re.compile(r'\s*\{\s*"metadata"\s*:\s*')


def lay_out(draft: Draft, shard_size: int | None = None) -> Plan:
    """Return the plan for `draft`. Raises RecipeError for a `shard_size` below 1.

    Without `shard_size` the output has the primary source's layout: the same files, order and header bytes. A shard in which
    nothing is swapped then equals the primary source's file. Where the draft's names, dtypes or shapes are not those of the
    primary source, the output has files named `model-0000k-of-0000n.safetensors`, in the reference serialiser's order.

    With `shard_size`, a file has at most that many bytes of tensors, unless one tensor is larger. Order and padding then let
    the filesystem share as much as possible with the sources; see `lswap_core.plan.shareable_layout.arrange`.
    """
    if shard_size is not None and shard_size < 1:
        raise RecipeError(f"a shard size of {shard_size} bytes holds nothing")
    keeps_layout = shard_size is None and _keeps_shapes(draft)
    files = tuple(_like_primary(draft) if keeps_layout else _in_new_files(draft, shard_size))
    sources = tuple(
        PlanSource(role, source.name, source.location, tuple(map(_source_file, source.files)))
        for role in in_order(draft.sources)
        for source in (draft.sources[role],)
    )
    sidecars = tuple(PlanSidecar(s.name, s.size, s.sha256) for s in draft.primary.sidecars)
    return Plan(draft.primary.role, sources, files, sidecars, _index(draft, files), shard_size, draft.swap)


def _source_file(shard: Shard) -> SourceFile:
    return SourceFile(shard.name, shard.header.file_size, shard.fingerprint, shard.mtime_ns)


def _keeps_shapes(draft: Draft) -> bool:
    """Whether names, dtypes and shapes are the primary source's."""
    primary, refs, plain = draft.primary, draft.primary.tensors, draft.primary.adapter is None
    return draft.tensors.keys() == refs.keys() and all(
        (plain and isinstance(made_of, Copy) and made_of.cast is None and made_of.ref is refs[name])  # most tensors
        or (made_of.shape == refs[name].shape and made_of.dtype == primary.dtype_of(name))
        for name, made_of in draft.tensors.items()
    )


def _metadata(draft: Draft, of_file: Mapping[str, str]) -> dict[str, str]:
    # transformers 4 refuses a shard without this entry, which says "saved from torch".
    return {**of_file, **draft.tags, "format": "pt"}


def _like_primary(draft: Draft) -> Iterator[OutputFile]:
    shards = draft.primary.shards
    for shard in shards:
        header = shard.header
        if (metadata := _metadata(draft, header.metadata)) != header.metadata:
            header = build_header({n: (i.dtype, i.shape) for n, i in header.tensors.items()}, metadata)
        name = SINGLE_FILE if len(shards) == 1 and draft.primary.index is None else shard.name
        yield _output(draft, name, header)


def _in_new_files(draft: Draft, shard_size: int | None) -> Iterator[OutputFile]:
    groups = split(draft.tensors, DEFAULT_SHARD_BYTES if shard_size is None else shard_size)
    for number, group in enumerate(groups, 1):
        name = SINGLE_FILE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        if shard_size is not None:
            yield arrange(name, {tensor: draft.tensors[tensor] for tensor in group}, _metadata(draft, {}))
        else:
            shapes = {tensor: (draft.tensors[tensor].dtype, draft.tensors[tensor].shape) for tensor in group}
            ordered = {tensor: shapes[tensor] for tensor in reference_order(shapes)}
            yield _output(draft, name, build_header(ordered, _metadata(draft, {})))


def _output(draft: Draft, name: str, header: Header) -> OutputFile:
    return OutputFile(name, header, tuple(map(draft.tensors.__getitem__, header.tensors)))


def _index(draft: Draft, files: tuple[OutputFile, ...]) -> str | None:
    """The index as transformers writes it, or the primary source's own text where it says the same. None for a single file."""
    if len(files) == 1 and files[0].name == SINGLE_FILE:
        return None
    total_size = sum(file.header.file_size - file.header.data_begin for file in files)
    if draft.primary.index is not None:  # it was checked when the checkpoint was opened
        alike = {f.name: f.header.tensors.keys() for f in files} == {
            s.name: s.header.tensors.keys() for s in draft.primary.shards
        }
        stated = _stated_size(draft.primary.index)
        if alike and type(stated) is int and stated == total_size:
            return draft.primary.index
    weight_map: dict[str, str] = {}
    for file in files:
        weight_map |= dict.fromkeys(file.header.tensors, file.name)
    # What json.dumps gives with indent=2, but faster: the json module has no C code for indented text.
    entries = json.dumps(weight_map, sort_keys=True, separators=(",\n    ", ": "))[1:-1]
    return f'{{\n  "metadata": {{\n    "total_size": {total_size}\n  }},\n  "weight_map": {{\n    {entries}\n  }}\n}}\n'


def _stated_size(index: str) -> object:
    """The `total_size` that a valid index states, or None. In most indexes it comes first; parsing the rest would take long."""
    first = _METADATA_FIRST.match(index)
    metadata = json.loads(index).get("metadata") if first is None else json.JSONDecoder().raw_decode(index, first.end())[0]
    return (metadata or {}).get("total_size")
