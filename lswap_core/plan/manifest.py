"""The manifest: the record of a merge, tensor by tensor, which is published beside the output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lswap_core.checkpoint.catalogue import INDEX_FILE, Role
from lswap_core.checkpoint.dtypes import DType
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.json_form import (
    check_format,
    expression_from_json,
    expression_to_json,
    holds,
    parse_dtype,
    read_role,
    swap_from_json,
    swap_to_json,
    unique_by,
)
from lswap_core.plan.plan import Plan, PlanSource
from lswap_core.recipe.draft import SwapRecord
from lswap_core.recipe.expressions import Expression
from lswap_core.text.strict_json import Node, parse_object

FORMAT = "lswap-manifest/1"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The result of executing one step.

    digest: of the tensor's bytes, `algorithm:hex`. None where none was taken, as for bytes that are shared with the source.
    statistics: of a blend.
    """

    name: str
    digest: str | None
    statistics: DifferenceStats | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file and its size in bytes. sha256: of header and sample for a source's shard, of all bytes for a small file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A shard of the output: its size in bytes, the SHA-256 of its header and, where one was asked for, of the whole shard."""

    name: str
    size: int
    header_sha256: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One output tensor: its place, its expression, and the results of computing it."""

    file: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int
    made_of: Expression
    digest: str | None
    statistics: DifferenceStats | None


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A source as it was: its name and its shards, no location. revision: the commit of a source on the hub."""

    role: Role
    name: str
    files: tuple[FileRecord, ...]
    revision: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of one merge. Equal plans give equal manifests: it holds no time, machine or location.

    primary: the source that gave layout and sidecars. shard_size: bytes per shard that were asked for, None for the
    primary source's layout.
    """

    tool: str
    plan_digest: str
    primary: Role
    swap: SwapRecord | None
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]
    sidecars: tuple[FileRecord, ...]
    tensors: Mapping[str, TensorRecord]
    shard_size: int | None = None

    @property
    def undigested(self) -> tuple[str, ...]:
        """Tensors without a digest: their bytes are shared with the source, or no digest was asked for."""
        hashed = {shard.name for shard in self.shards if shard.sha256 is not None}
        return tuple(n for n, record in self.tensors.items() if record.digest is None and record.file not in hashed)

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        document = {
            "format": FORMAT,
            "tool": self.tool,
            "plan_sha256": self.plan_digest,
            "host": self.primary,
            **({} if self.shard_size is None else {"shard_size": self.shard_size}),
            "swap": None if self.swap is None else swap_to_json(self.swap),
            "sources": [_source_to_json(source) for source in self.sources],
            "shards": [_shard_to_json(shard) for shard in self.shards],
            "sidecars": _files(self.sidecars),
            "tensors": {name: _tensor_to_json(record) for name, record in self.tensors.items()},
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes, *, path: str) -> Manifest:
        """The inverse of `to_json`. Raises FormatError, which names `path`, for anything else."""
        document = Node(parse_object(text, path=path, blame=_tensor_to_blame), path=path)
        check_format(document, FORMAT)
        shards = tuple(_shard(entry) for entry in unique_by(document["shards"], "name"))
        sources = tuple(map(_source, unique_by(document["sources"], "role")))
        sizes = {shard.name: shard.size for shard in shards}
        readable = {(source.role, file.name): file.size for source in sources for file in source.files}
        tensors = {name: _tensor(entry.blaming(name), sizes, readable) for name, entry in document["tensors"].items()}
        swap = document["swap"].optional()
        return cls(
            document["tool"].text(),
            document["plan_sha256"].text(),
            read_role(document["host"]),
            None if swap is None else swap_from_json(swap, tensors),
            sources,
            shards,
            tuple(_file(entry) for entry in unique_by(document["sidecars"], "name")),
            tensors,
            document["shard_size"].integer(low=1) if "shard_size" in document else None,
        )


def compile_manifest(
    plan: Plan, records: Iterable[StepRecord], *, tool: str, shard_sha256: Mapping[str, str] = MappingProxyType({})
) -> Manifest:
    """Return the manifest of an executed plan. Raises KeyError where a step has no record.

    shard_sha256: SHA-256 of whole output shards by name, where one was taken.
    """
    by_name = {record.name: record for record in records}
    sidecars = [FileRecord(s.name, s.size, s.sha256) for s in plan.sidecars]
    if plan.index is not None:
        index = plan.index.encode()
        sidecars.append(FileRecord(INDEX_FILE, len(index), hashlib.sha256(index).hexdigest()))
    return Manifest(
        tool,
        plan.digest,
        plan.primary,
        plan.swap,
        tuple(map(_source_record, plan.sources)),
        tuple(
            ShardRecord(f.name, f.header.file_size, hashlib.sha256(f.header.encode()).hexdigest(), shard_sha256.get(f.name))
            for f in plan.files
        ),
        tuple(sidecars),
        {
            step.name: TensorRecord(
                step.file, step.dtype, step.shape, step.begin, step.end, step.made_of,
                by_name[step.name].digest, by_name[step.name].statistics,
            )
            for step in plan.steps
        },
        plan.shard_size,
    )  # fmt: skip


def _tensor_to_blame(trail: tuple[str, ...]) -> str | None:
    return trail[1] if trail[0] == "tensors" and len(trail) > 1 else None


def _source_record(source: PlanSource) -> SourceRecord:
    files = tuple(FileRecord(f.name, f.size, f.fingerprint) for f in source.files)
    return SourceRecord(source.role, source.name, files, source.revision)


def _source_to_json(record: SourceRecord) -> dict[str, Any]:
    revision = {} if record.revision is None else {"revision": record.revision}
    return {"role": record.role, "name": record.name, **revision, "files": _files(record.files)}


def _source(entry: Node) -> SourceRecord:
    revision = entry["revision"].text() if "revision" in entry else None
    files = tuple(map(_file, unique_by(entry["files"], "name")))
    return SourceRecord(read_role(entry["role"]), entry["name"].text(), files, revision)


def _files(records: tuple[FileRecord, ...]) -> list[dict[str, Any]]:
    return [{"name": r.name, "size": r.size, "sha256": r.sha256} for r in records]


def _shard_to_json(record: ShardRecord) -> dict[str, Any]:
    entry = {"name": record.name, "size": record.size, "header_sha256": record.header_sha256}
    return entry if record.sha256 is None else entry | {"sha256": record.sha256}


def _shard(entry: Node) -> ShardRecord:
    sha256 = entry["sha256"].text() if "sha256" in entry else None
    return ShardRecord(entry["name"].file_path(), entry["size"].integer(), entry["header_sha256"].text(), sha256)


def _file(entry: Node) -> FileRecord:
    return FileRecord(entry["name"].file_path(), entry["size"].integer(), entry["sha256"].text())


def _tensor_to_json(record: TensorRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "file": record.file,
        "dtype": record.dtype.name,
        "shape": list(record.shape),
        "begin": record.begin,
        "end": record.end,
        "made_of": expression_to_json(record.made_of),
    }
    if record.digest is not None:
        entry["digest"] = record.digest
    return entry if record.statistics is None else entry | {"statistics": record.statistics.to_json()}


def _tensor(entry: Node, sizes: Mapping[str, int], readable: Mapping[tuple[Role, str], int]) -> TensorRecord:
    dtype, shape = parse_dtype(entry["dtype"]), tuple(dim.integer() for dim in entry["shape"].elements())
    file, begin, end = entry["file"].file_name(), entry["begin"].integer(), entry["end"].integer()
    if not holds(dtype, shape, end - begin) or end > sizes.get(file, -1):
        raise entry.refuse(f"[{begin}, {end}) of {file!r} does not hold {dtype} {list(shape)}")
    made_of = expression_from_json(entry["made_of"], dtype, shape)
    for ref in made_of.refs:
        if ref.end > readable.get((ref.role, ref.file), -1):
            raise entry["made_of"].refuse(f"reads {ref.role} {ref.file!r} up to {ref.end}, beyond what that source has")
    statistics = parse_statistics(entry["statistics"]) if "statistics" in entry else None
    digest = entry["digest"].text() if "digest" in entry else None
    return TensorRecord(file, dtype, shape, begin, end, made_of, digest, statistics)


def parse_statistics(entry: Node) -> DifferenceStats:
    """The inverse of `DifferenceStats.to_json`. Raises FormatError for anything else."""
    counts = {name: entry[name].integer() for name in ("count", "differing", "x_nonfinite", "y_nonfinite")}
    names = ("sum_abs", "sum_squares", "max_abs", "dot", "x_squares", "y_squares")
    # a sum that overflowed is written as text, since JSON has no such numbers
    sums = {
        name: float(entry[name].value) if entry[name].value in ("inf", "-inf", "nan") else entry[name].number() for name in names
    }
    return DifferenceStats(**counts, **sums)  # type: ignore[arg-type]


def record_to_json(record: StepRecord) -> list[Any]:
    """Return a step's record as JSON: name, digest, statistics."""
    return [record.name, record.digest, None if record.statistics is None else record.statistics.to_json()]


def record_from_json(entry: Node) -> StepRecord:
    """The inverse of `record_to_json`. Raises FormatError for anything else."""
    name, digest, statistics = entry.elements(3)
    return StepRecord(
        name.text(),
        None if digest.value is None else digest.text(),
        None if statistics.value is None else parse_statistics(statistics),
    )
