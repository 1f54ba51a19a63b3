"""Verifies an output against its manifest and its sources, and compares two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lswap_core import kernels
from lswap_core.checkpoint.catalogue import Checkpoint, Shard
from lswap_core.engine.verifier import Diff, differing_tensors, tensor_diff
from lswap_core.errors import FormatError, RecipeError, VerificationError
from lswap_core.io.locations import are_remote
from lswap_core.io.ports import Progress, Silence
from lswap_core.io.threads import threads_for
from lswap_core.plan.manifest import Manifest
from lswap_core.sources.outputs import intact_shard, manifest_of, open_output, shard_issues, sidecar_issues
from lswap_core.sources.places import Places
from lswap_core.text.plain import listed
from lswap_core.verbs.execute import StrPath, _given, option_of

if TYPE_CHECKING:
    pass
from lswap_core.checkpoint.catalogue import Role


def verify(
    output: StrPath,
    *,
    locations: Mapping[str, StrPath] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Manifest:
    """Verify the output against its manifest; with `locations` of its sources, by role, also compute every byte again.

    Returns the manifest. Raises VerificationError, which lists every difference, those of the sources first.
    """
    places = Places()
    opened = open_output(output, places)
    manifest = manifest_of(opened)
    sources = merged_sources(places, manifest, locations) if locations else {}
    issues = list(sidecar_issues(opened, manifest, sources.get(manifest.primary)))
    shards: list[Shard] = []
    for record in manifest.shards:
        try:
            shards.append(intact_shard(opened, record, manifest))
        except (FormatError, OSError) as error:
            issues.append(f"shard {record.name}: {error}")
    written = Checkpoint("math", opened.root, opened.root, Path(opened.root).name, tuple(shards))
    threads = threads_for(workers, remote=are_remote(written, *sources.values()))
    with places.source({"math": written}) as out, places.source(sources) as inputs:
        issues += differing_tensors(
            manifest,
            out,
            inputs if sources else None,
            kernels,
            files=frozenset(shard.name for shard in shards),
            progress=progress or Silence(),
            workers=threads,
        )
    issues += shard_issues(opened, manifest, frozenset(shard.name for shard in shards), workers=threads_for(workers))
    if issues:
        raise VerificationError(f"{opened.root} is not what its manifest says", issues)
    return manifest


def diff(a: StrPath, b: StrPath, *, progress: Progress | None = None, workers: int | None = None) -> Diff:
    """Compare two checkpoints: names, shapes, dtypes, and whether the bytes are equal. Of a checkpoint with an adapter, the
    bytes that a merge would take are compared.
    """
    places = Places()
    first, second = places.open(os.fspath(a), "math"), places.open(os.fspath(b), "lang")
    threads = threads_for(workers, remote=are_remote(first, second))
    with places.source({"math": first, "lang": second}) as source:
        return tensor_diff(first, second, source, kernels, progress=progress or Silence(), workers=threads)


def merged_sources(places: Places, manifest: Manifest, locations: Mapping[str, StrPath]) -> dict[Role, Checkpoint]:
    """Open the sources of a merge at `locations`. Raises RecipeError where one is missing, VerificationError for other
    sources.
    """
    given = _given(locations, {source.role for source in manifest.sources})
    if absent := [source.role for source in manifest.sources if source.role not in given]:
        raise RecipeError(f"to verify against the sources, give {listed(list(map(option_of, absent)))} too")
    opened = {source.role: places.open(given[source.role], source.role) for source in manifest.sources}
    issues = []
    for source in manifest.sources:
        now = {shard.name: (shard.header.file_size, shard.fingerprint) for shard in opened[source.role].files}
        where = opened[source.role].location
        issues += [
            f"{where}: {file.name} is not the file that was merged"
            for file in source.files
            if now.get(file.name) != (file.size, file.sha256)
        ]
    if issues:
        raise VerificationError("these are not the sources of the merge", issues)
    return opened
