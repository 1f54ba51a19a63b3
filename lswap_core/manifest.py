"""The manifest: what was done, tensor by tensor, as published beside the output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lswap_core.checkpoint import Role, parse_role
from lswap_core.difference import DifferenceStats
from lswap_core.draft import Expression, SwapRecord
from lswap_core.dtypes import DTYPES, DType
from lswap_core.errors import FormatError, RecipeError
from lswap_core.header import parse_json_object
from lswap_core.plan import (
    INDEX_FILE,
    Plan,
    PlanSource,
    expression_from_json,
    expression_to_json,
    plain_name,
    relative_path,
    swap_from_json,
    swap_to_json,
)  # fmt: skip

FORMAT = "lswap-manifest/1"
MANIFEST_FILE = "lswap_manifest.json"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What executing one step gave: the digest of the bytes it wrote (`algorithm:hex`) and, for a blend, statistics."""

    name: str
    digest: str
    statistics: DifferenceStats | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A published file: its size, and the SHA-256 of its header (a shard) or of all of it (any other file)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One output tensor: where it is, what it was made of, and its record."""

    file: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int
    made_of: Expression
    digest: str
    statistics: DifferenceStats | None


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A source as it was: its name and its shards with the SHA-256 of their headers. No location."""

    role: Role
    name: str
    files: tuple[FileRecord, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of one merge. Equal plans give equal manifests: it holds no time, host or location."""

    tool: str
    plan_digest: str
    swap: SwapRecord | None
    sources: tuple[SourceRecord, ...]
    shards: tuple[FileRecord, ...]
    sidecars: tuple[FileRecord, ...]
    tensors: Mapping[str, TensorRecord]

    def to_json(self) -> str:
        """The manifest as JSON text."""
        document = {
            "format": FORMAT,
            "tool": self.tool,
            "plan_sha256": self.plan_digest,
            "swap": None if self.swap is None else swap_to_json(self.swap),
            "sources": [{"role": s.role, "name": s.name, "files": _files(s.files)} for s in self.sources],
            "shards": _files(self.shards),
            "sidecars": _files(self.sidecars),
            "tensors": {name: _tensor_to_json(record) for name, record in self.tensors.items()},
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes, *, path: str) -> Manifest:
        """The inverse of `to_json`; FormatError names `path` for anything else."""
        document = parse_json_object(text, path=path)
        if document.get("format") != FORMAT:
            raise FormatError(
                f"not a manifest of this version: 'format' is {document.get('format')!r}, expected {FORMAT!r}", path=path
            )
        try:
            return cls(
                str(document["tool"]),
                str(document["plan_sha256"]),
                None if document["swap"] is None else swap_from_json(document["swap"]),
                tuple(SourceRecord(parse_role(s["role"]), str(s["name"]), _parse_files(s["files"])) for s in document["sources"]),
                _parse_files(document["shards"]),
                _parse_files(document["sidecars"]),
                {name: _tensor_from_json(entry) for name, entry in document["tensors"].items()},
            )
        except KeyError as error:
            raise FormatError(f"not a sound manifest: {error} is missing", path=path) from None
        except (TypeError, ValueError, AttributeError, RecipeError) as error:
            raise FormatError(f"not a sound manifest: {error}", path=path) from None


def compile_manifest(plan: Plan, records: Iterable[StepRecord], *, tool: str) -> Manifest:
    """The manifest of an executed plan. KeyError if a step has no record."""
    by_name = {record.name: record for record in records}
    sidecars = [FileRecord(s.name, s.size, s.sha256) for s in plan.sidecars]
    if plan.index is not None:
        index = plan.index.encode()
        sidecars.append(FileRecord(INDEX_FILE, len(index), hashlib.sha256(index).hexdigest()))
    return Manifest(
        tool,
        plan.digest,
        plan.swap,
        tuple(map(_source_record, plan.sources)),
        tuple(FileRecord(f.name, f.header.file_size, hashlib.sha256(f.header.encode()).hexdigest()) for f in plan.files),
        tuple(sidecars),
        {
            step.name: TensorRecord(
                step.file, step.dtype, step.shape, step.begin, step.end, step.made_of,
                by_name[step.name].digest, by_name[step.name].statistics,
            )
            for step in plan.steps
        },
    )  # fmt: skip


def _source_record(source: PlanSource) -> SourceRecord:
    return SourceRecord(source.role, source.name, tuple(FileRecord(f.name, f.size, f.header_sha256) for f in source.files))


def _files(records: tuple[FileRecord, ...]) -> list[dict[str, Any]]:
    return [{"name": r.name, "size": r.size, "sha256": r.sha256} for r in records]


def _parse_files(entries: Any) -> tuple[FileRecord, ...]:
    return tuple(FileRecord(relative_path(e["name"]), int(e["size"]), str(e["sha256"])) for e in entries)


def _tensor_to_json(record: TensorRecord) -> dict[str, Any]:
    entry = {
        "file": record.file,
        "dtype": record.dtype.name,
        "shape": list(record.shape),
        "begin": record.begin,
        "end": record.end,
        "made_of": expression_to_json(record.made_of),
        "digest": record.digest,
    }
    return entry if record.statistics is None else entry | {"statistics": record.statistics.to_json()}


def _tensor_from_json(entry: Mapping[str, Any]) -> TensorRecord:
    dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
    statistics = entry.get("statistics")
    return TensorRecord(
        plain_name(entry["file"]), dtype, shape, int(entry["begin"]), int(entry["end"]),
        expression_from_json(entry["made_of"], dtype, shape), str(entry["digest"]),
        None if statistics is None else DifferenceStats.from_json(statistics),
    )  # fmt: skip
