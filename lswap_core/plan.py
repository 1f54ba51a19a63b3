"""The plan: byte-exact instructions for one merge, as a value with a JSON form.

An output file is its complete header and, for every tensor in that header, what it is made of; offsets are the
header's. So a plan whose tensors overlap or leave holes cannot be built: `parse_header` refuses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lswap_core.checkpoint import Role, TensorRef, parse_role
from lswap_core.draft import Blend, Copy, Expression, SwapRecord
from lswap_core.dtypes import DTYPES, DType
from lswap_core.errors import FormatError, RecipeError
from lswap_core.header import Header, parse_header, parse_json_object, size_in_bytes
from lswap_core.sizes import format_size

FORMAT = "lswap-plan/1"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source shard as it was when the plan was made."""

    name: str
    size: int
    header_sha256: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class PlanSource:
    """A source checkpoint: where it was, what it is called in what is published, its files."""

    role: Role
    name: str
    location: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True)
class PlanSidecar:
    """A small file copied from math."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the output: bytes [begin, end) of `file` (absolute) and what they are made of."""

    name: str
    file: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int
    made_of: Expression

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """What the step reads."""
        return (self.made_of.ref,) if isinstance(self.made_of, Copy) else (self.made_of.x.ref, self.made_of.y.ref)


@dataclass(frozen=True)
class OutputFile:
    """One output shard: its header and one expression per tensor of it, in the same order."""

    name: str
    header: Header
    made_of: tuple[Expression, ...]

    def steps(self) -> tuple[Step, ...]:
        start = self.header.data_begin
        return tuple(
            Step(name, self.name, info.dtype, info.shape, start + info.begin, start + info.end, made_of)
            for (name, info), made_of in zip(self.header.tensors.items(), self.made_of, strict=True)
        )


@dataclass(frozen=True)
class Plan:
    """Everything that a merge will do.

    index: the text of the output's index, None for a single file. shard_size: bytes per shard that were asked for, None
    for the host's own layout. swap: what a recipe decided, None for hand-made surgery.
    """

    sources: tuple[PlanSource, ...]
    files: tuple[OutputFile, ...]
    sidecars: tuple[PlanSidecar, ...]
    index: str | None
    shard_size: int | None
    swap: SwapRecord | None

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step, in the order of files and offsets. They are independent: any order gives the same output."""
        return tuple(step for file in self.files for step in file.steps())

    @cached_property
    def read_bytes(self) -> int:
        """Tensor bytes that executing reads."""
        return sum(ref.size_bytes for step in self.steps for ref in step.refs)

    @cached_property
    def write_bytes(self) -> int:
        """Bytes of the output's shards and sidecars."""
        return sum(file.header.file_size for file in self.files) + sum(sidecar.size for sidecar in self.sidecars)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan without what may differ between two machines: locations and modification times."""
        document = self._document()
        for source in document["sources"]:
            del source["location"]
            for file in source["files"]:
                del file["mtime_ns"]
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def summary(self) -> str:
        """One line: `28 layers: 6 lang, 4 blended, 18 math; reads 3.4 GB, writes 3.1 GB`."""
        what = f"{len(self.steps)} tensors"
        if self.swap is not None:
            lang = sum(share == 1 for share in self.swap.shares)
            maths = sum(share == 0 for share in self.swap.shares)
            blended = len(self.swap.shares) - lang - maths
            what = f"{len(self.swap.shares)} layers: {lang} lang, {blended} blended, {maths} math"
        return f"{what}; reads {format_size(self.read_bytes)}, writes {format_size(self.write_bytes)}"

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        return json.dumps(self._document(), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, path: str) -> Plan:
        """The inverse of `to_json`. `path` is named in the FormatError for anything that is not a sound plan."""
        document = parse_json_object(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, path=path)
        if document.get("format") != FORMAT:
            raise FormatError(
                f"not a plan of this version: 'format' is {document.get('format')!r}, expected {FORMAT!r}", path=path
            )
        try:
            plan = _parse_plan(document, path)
        except KeyError as error:
            raise FormatError(f"not a sound plan: {error} is missing", path=path) from None
        except (TypeError, ValueError, AttributeError, RecipeError) as error:
            raise FormatError(f"not a sound plan: {error}", path=path) from None
        _check_reads(plan, path)
        return plan

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "swap": None if self.swap is None else swap_to_json(self.swap),
            "sources": [
                {
                    "role": source.role,
                    "name": source.name,
                    "location": source.location,
                    "files": [{k: getattr(f, k) for k in SourceFile.__slots__} for f in source.files],
                }
                for source in self.sources
            ],
            "files": [
                {
                    "name": file.name,
                    "header": file.header.raw.decode(),
                    "tensors": {n: expression_to_json(e) for n, e in zip(file.header.tensors, file.made_of, strict=True)},
                }
                for file in self.files
            ],
            "sidecars": [{k: getattr(s, k) for k in PlanSidecar.__slots__} for s in self.sidecars],
            "index": self.index,
            "shard_size": self.shard_size,
        }


def expression_to_json(made_of: Expression) -> dict[str, Any]:
    """`{"copy": [role, file, dtype, begin, end]}`, with "cast" where it is rounded, or `{"blend": [x, y], "weight": w}`."""
    if isinstance(made_of, Blend):
        return {"blend": [expression_to_json(made_of.x), expression_to_json(made_of.y)], "weight": made_of.weight}
    ref = made_of.ref
    entry: dict[str, Any] = {"copy": [ref.role, ref.file, ref.dtype.name, ref.begin, ref.end]}
    return entry if made_of.cast is None else entry | {"cast": made_of.cast.name}


def expression_from_json(entry: Mapping[str, Any], dtype: DType, shape: tuple[int, ...]) -> Expression:
    """The inverse of `expression_to_json` for a tensor of that dtype and shape. Raises KeyError, TypeError or ValueError."""
    if "blend" in entry:
        x, y = (_copy_from_json(side, shape) for side in entry["blend"])
        weight = float(entry["weight"])
        if not 0 < weight < 1:
            raise ValueError(f"a blend's weight lies between 0 and 1, not {weight}")
        if x.dtype != y.dtype or not dtype.blendable:
            raise ValueError(f"{x.dtype} and {y.dtype} cannot be blended")
        made_of: Expression = Blend(x, y, weight)
    else:
        made_of = _copy_from_json(entry, shape)
    if made_of.dtype != dtype:
        raise ValueError(f"gives {made_of.dtype} where the header says {dtype}")
    return made_of


def _copy_from_json(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Copy:
    role, file, dtype_name, begin, end = entry["copy"]
    dtype = DTYPES[dtype_name]
    cast = DTYPES[entry["cast"]] if "cast" in entry else None
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end):
        raise ValueError(f"[{begin!r}, {end!r}) is no range of bytes")
    if end - begin != size_in_bytes(dtype, shape):
        raise ValueError(f"[{begin}, {end}) does not hold {dtype} {list(shape)}")
    if cast is not None and not (cast.blendable and dtype.blendable):
        raise ValueError(f"{dtype} cannot be cast to {cast}")
    return Copy(TensorRef(parse_role(role), str(file), dtype, shape, begin, end), cast)


def swap_to_json(swap: SwapRecord) -> dict[str, Any]:
    """The record as JSON."""
    return {
        "options": dict(swap.options),
        "prefix": swap.prefix,
        "shares": list(swap.shares),
        "outside": {part: {"from": who, "tensors": list(names)} for part, (who, names) in swap.outside.items()},
        "notes": list(swap.notes),
    }


def swap_from_json(entry: Mapping[str, Any]) -> SwapRecord:
    """The inverse of `swap_to_json`. Raises KeyError, TypeError or ValueError."""
    outside = {part: (str(value["from"]), tuple(map(str, value["tensors"]))) for part, value in entry["outside"].items()}
    shares = tuple(float(share) for share in entry["shares"])
    return SwapRecord(dict(entry["options"]), str(entry["prefix"]), shares, outside, tuple(map(str, entry["notes"])))


def plain_name(name: object) -> str:
    """`name` if it names a file in a directory and nothing else; ValueError otherwise."""
    if not isinstance(name, str) or not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def relative_path(name: object) -> str:
    """`name` if it is a path of plain names below a directory; ValueError otherwise."""
    return "/".join(map(plain_name, str(name).split("/")))


def _source_file(entry: Mapping[str, Any]) -> SourceFile:
    return SourceFile(plain_name(entry["name"]), int(entry["size"]), str(entry["header_sha256"]), int(entry["mtime_ns"]))


def _parse_plan(document: Mapping[str, Any], path: str) -> Plan:
    sources = tuple(
        PlanSource(parse_role(s["role"]), str(s["name"]), str(s["location"]), tuple(map(_source_file, s["files"])))
        for s in document["sources"]
    )
    files = []
    for entry in document["files"]:
        raw = entry["header"].encode()
        tensors = parse_json_object(raw, path=path)
        ends = [value["data_offsets"][1] for name, value in tensors.items() if name != "__metadata__"]
        header = parse_header(raw, data_size=max(ends, default=0), path=f"{path}: {entry['name']}")
        if header.tensors.keys() != entry["tensors"].keys():
            raise ValueError(f"{entry['name']}: header and tensors name different things")
        made_of = tuple(expression_from_json(entry["tensors"][n], i.dtype, i.shape) for n, i in header.tensors.items())
        files.append(OutputFile(plain_name(entry["name"]), header, made_of))
    sidecars = tuple(PlanSidecar(relative_path(s["name"]), int(s["size"]), str(s["sha256"])) for s in document["sidecars"])
    index, shard_size = document["index"], document["shard_size"]
    swap = None if document["swap"] is None else swap_from_json(document["swap"])
    return Plan(
        sources,
        tuple(files),
        sidecars,
        None if index is None else str(index),
        None if shard_size is None else int(shard_size),
        swap,
    )


def _check_reads(plan: Plan, path: str) -> None:
    sizes = {(source.role, file.name): file.size for source in plan.sources for file in source.files}
    names = [file.name for file in plan.files]
    if len(set(names)) != len(names):
        raise FormatError("not a sound plan: two output files have one name", path=path)
    for step in plan.steps:
        for ref in step.refs:
            if ref.end > sizes.get((ref.role, ref.file), -1):
                raise FormatError(
                    f"reads {ref.role} {ref.file!r} beyond what the plan's sources have", path=path, tensor=step.name
                )
