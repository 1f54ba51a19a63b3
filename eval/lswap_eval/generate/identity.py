"""Identifies the weights that answered, by a digest. Two models share it exactly if they were made from the same in the same
way.

It covers no path, name or layout of an output. So a setting that was swapped in memory and the same setting merged to disk
are one model, which generates only once. It is computed from headers, manifests and samples of the data, not from all of it:

- a checkpoint: the fingerprints of its shards (header and a sample of the data);
- a layer swap: lang's weight in each layer, the source of each part outside them, and the two experts' fingerprints. A swap
  that takes everything from one expert is that expert;
- any other output of `lswap_core`: the digest of its plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lswap_core import Draft, open_checkpoint, read_manifest
from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.errors import VerificationError
from lswap_core.io.digests import Digest
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import MANIFEST_FILE
from lswap_core.recipe.draft import SwapRecord
from lswap_core.recipe.expressions import in_fp32
from lswap_core.sources.local import LocalSource

_CHECKED_BYTES = 64 << 20
"""The smallest tensors of an output, up to this many bytes, are checked against its manifest: all norms, and some matrices of
every large model, in well under a second."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A model in a log. weights: lang's weight in each layer. outside: the source of each part outside the layers. Both are
    None where the model is no layer swap.
    """

    digest: str
    name: str
    weights: tuple[float, ...] | None = None
    outside: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the `model` of a log's header."""
        described = {"shares": self.weights and list(self.weights), "outside": self.outside and dict(self.outside)}
        return {"identity": self.digest, "name": self.name, **{key: value for key, value in described.items() if value}}


def identify(path: str | os.PathLike[str], *, name: str | None = None) -> Identity:
    """Identify the checkpoint at `path`. Reads headers, the manifest and a sample.

    Raises VerificationError where a manifest contradicts the files beside it, and whatever `lswap_core.open_checkpoint` and
    `read_manifest` raise.
    """
    checkpoint = open_checkpoint(path, role="math", name=name)
    if not os.path.lexists(os.path.join(checkpoint.root, MANIFEST_FILE)) or checkpoint.location != checkpoint.root:
        return Identity(_of_shards(_fingerprints(checkpoint)), checkpoint.name)
    manifest = read_manifest(path)
    _check(checkpoint, manifest)
    if manifest.swap is None or not _is_plain(manifest.swap):
        return Identity(_digest({"plan": manifest.plan_digest}), checkpoint.name)
    experts = {source.role: [file.sha256 for file in source.files] for source in manifest.sources}
    return _of_swap(manifest.swap, experts["math"], experts["lang"], checkpoint.name)


def identify_name(name: str) -> Identity:
    """Identify weights by a unique name alone, such as a hub id with a revision."""
    return Identity(_digest({"name": name}), name)


def identify_draft(draft: Draft, *, name: str) -> Identity:
    """Identify the model of a layer swap's draft, or a whole checkpoint (`Draft.of`). Raises ValueError for other drafts."""
    if draft.swap is None:
        if any(draft.tensors[tensor].refs != (ref,) for tensor, ref in draft.primary.tensors.items()):
            raise ValueError("only the drafts of a LayerSwap and of a whole checkpoint have an identity before they are merged")
        return identify(draft.primary.location, name=name)
    if not _is_plain(draft.swap):
        raise ValueError("only plain layer swaps have an identity before they are merged")
    return _of_swap(draft.swap, _fingerprints(draft.sources["math"]), _fingerprints(draft.sources["lang"]), name)


def _is_plain(swap: SwapRecord) -> bool:
    """Whether weights, the policy outside the layers and the experts determine the model completely."""
    return bool(swap.weights) and not {"method", "swap", "revert_layers"} & swap.options.keys()


def _of_swap(swap: SwapRecord, math: Iterable[str], lang: Iterable[str], name: str) -> Identity:
    weight = swap.options.get("weight", 0.5)
    outside = {
        part: f"blend {in_fp32(weight)!r}" if giver == "blend" else giver
        for part, (giver, tensors) in swap.outside.items()
        if tensors
    }
    weights = tuple(in_fp32(weight) for weight in swap.weights)
    whole = {*(("math", "lang")[int(weight)] if weight in (0, 1) else "both" for weight in weights), *outside.values()}
    if whole == {"math"}:
        digest = _of_shards(math)
    elif whole == {"lang"} and not swap.options.get("cast"):
        digest = _of_shards(lang)
    else:
        made = {"shares": weights, "outside": outside, "prefix": swap.prefix, "math": sorted(math), "lang": sorted(lang)}
        digest = _digest({"swap": made})
    return Identity(digest, name, swap.weights, outside)


def _fingerprints(checkpoint: Checkpoint) -> list[str]:
    return [shard.fingerprint for shard in checkpoint.files]


def _of_shards(fingerprints: Iterable[str]) -> str:
    return _digest({"shards": sorted(fingerprints)})


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Raises VerificationError where shards, or the smallest tensors, are not the manifest's, as when a fine-tune was saved
    over a merge.
    """
    there = {shard.name: (shard.header.file_size, shard.header_sha256) for shard in checkpoint.shards}
    issues = [f"shard {file.name}" for file in manifest.shards if there.get(file.name) != (file.size, file.header_sha256)]
    issues += [f"shard {name}" for name in there.keys() - {file.name for file in manifest.shards}]
    if not issues:
        left = _CHECKED_BYTES
        with LocalSource({checkpoint.role: checkpoint}) as source:
            for name, ref in sorted(checkpoint.tensors.items(), key=lambda item: (item[1].size_bytes, item[0])):
                if manifest.tensors[name].digest is None:  # it shares its source's extents
                    continue
                if (left := left - ref.size_bytes) < 0:
                    break
                data = memoryview(bytearray(ref.size_bytes))
                source.read_into(ref, 0, data)
                digest = Digest()
                digest.update(data)
                if digest.text() != manifest.tensors[name].digest:
                    issues.append(f"tensor {name}")
    if issues:
        raise VerificationError(
            f"{checkpoint.location} was changed after it was merged; remove {MANIFEST_FILE}, or merge again", issues
        )
