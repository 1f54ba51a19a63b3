"""From a draft to a plan: which tensor goes into which output file, and where in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from lswap_core.arrangement import arrange, split
from lswap_core.checkpoint import Shard
from lswap_core.draft import Draft
from lswap_core.errors import RecipeError
from lswap_core.expressions import Copy
from lswap_core.header import Header, build_header, reference_order
from lswap_core.plan import SINGLE_FILE, OutputFile, Plan, PlanSidecar, PlanSource, SourceFile

DEFAULT_SHARD_BYTES = 5_000_000_000


def lay_out(draft: Draft, shard_size: int | None = None) -> Plan:
    """The plan for `draft`.

    Without `shard_size`, the host's own layout: same files, same order, same header bytes, so that a shard in which
    nothing is swapped equals the host's file. A draft whose names, dtypes or shapes are not the host's is laid out
    anew, in the reference serialiser's order: `model-0000k-of-0000n.safetensors`. So is any draft when `shard_size` (bytes
    of tensors per file, at most, unless one tensor is larger) is given; order and padding are then those that let
    filesystems share most with the sources, see `lswap_core.arrangement.arrange`. RecipeError for a size below 1.
    """
    if shard_size is not None and shard_size < 1:
        raise RecipeError(f"a shard size of {shard_size} bytes holds nothing")
    keeps_host = shard_size is None and _keeps_shapes(draft)
    files = tuple(_like_host(draft) if keeps_host else _anew(draft, shard_size))
    sources = tuple(
        PlanSource(role, source.name, source.location, tuple(_source_file(shard) for shard in source.files))
        for role, source in sorted(draft.sources.items(), reverse=True)
    )
    sidecars = tuple(PlanSidecar(s.name, s.size, s.sha256) for s in draft.host.sidecars)
    return Plan(draft.host.role, sources, files, sidecars, _index(draft, files), shard_size, draft.swap)


def _source_file(shard: Shard) -> SourceFile:
    return SourceFile(shard.name, shard.header.file_size, shard.fingerprint, shard.mtime_ns)


def _keeps_shapes(draft: Draft) -> bool:
    """Names, dtypes and shapes are the host's."""
    host, plain = draft.host, draft.host.adapter is None
    return draft.tensors.keys() == host.tensors.keys() and all(
        (plain and isinstance(made_of, Copy) and made_of.cast is None and made_of.ref is host.tensors[name])  # most are
        or (made_of.shape == host.tensors[name].shape and made_of.dtype == host.dtype_of(name))
        for name, made_of in draft.tensors.items()
    )


def _metadata(draft: Draft, of_file: Mapping[str, str]) -> dict[str, str]:
    # transformers 4 refuses a shard without this entry; it says "saved from torch".
    return {**of_file, **draft.tags, "format": "pt"}


def _like_host(draft: Draft) -> Iterator[OutputFile]:
    shards = draft.host.shards
    for shard in shards:
        header = shard.header
        if (metadata := _metadata(draft, header.metadata)) != header.metadata:
            header = build_header({n: (i.dtype, i.shape) for n, i in header.tensors.items()}, metadata)
        name = SINGLE_FILE if len(shards) == 1 and draft.host.index is None else shard.name
        yield _output(draft, name, header)


def _anew(draft: Draft, shard_size: int | None) -> Iterator[OutputFile]:
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
    return OutputFile(name, header, tuple(draft.tensors[tensor] for tensor in header.tensors))


def _index(draft: Draft, files: tuple[OutputFile, ...]) -> str | None:
    """The index in the form in which transformers writes it; the host's own text where that says the same."""
    if len(files) == 1 and files[0].name == SINGLE_FILE:
        return None
    weight_map = {tensor: file.name for file in files for tensor in file.header.tensors}
    total_size = sum(info.end - info.begin for file in files for info in file.header.tensors.values())
    if draft.host.index is not None:
        host = json.loads(draft.host.index)  # parsed and checked when the checkpoint was opened
        stated = (host.get("metadata") or {}).get("total_size")
        if host["weight_map"] == weight_map and type(stated) is int and stated == total_size:
            return draft.host.index
    return json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
