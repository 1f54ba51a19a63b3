"""The plan: byte-exact instructions for one merge, as a value with a JSON form.

An output file is its complete header and one expression for each tensor in that header. The header gives the offsets, so no
plan can hold tensors that overlap or leave holes: `parse_header` refuses such a header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from lswap_core.checkpoint.catalogue import INDEX_FILE, SHARD_SUFFIX, Role
from lswap_core.checkpoint.dtypes import DType
from lswap_core.checkpoint.header import Header, parse_header
from lswap_core.plan import json_form
from lswap_core.recipe.draft import SwapRecord
from lswap_core.recipe.expressions import Expression
from lswap_core.text.plain import counted, format_size
from lswap_core.text.strict_json import MAX_SIZE, Node, parse_object

FORMAT = "lswap-plan/1"

MANIFEST_FILE = "lswap_manifest.json"

CARD_FILE = "README.md"

CLAIM_FILE = ".lswap-partial"
"""Marks a directory under construction as one of this package."""

_PINNED = re.compile(r"hf://[^@]+@([0-9a-f]{40})")

RESERVED = frozenset({INDEX_FILE, MANIFEST_FILE, CARD_FILE, CLAIM_FILE})
"""Names in an output that no sidecar may have."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source shard as it was when the plan was made."""

    name: str
    size: int
    fingerprint: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class PlanSource:
    """A source checkpoint: its location, its name in published files, and its files."""

    role: Role
    name: str
    location: str
    files: tuple[SourceFile, ...]

    @property
    def revision(self) -> str | None:
        """The commit that its location pins, for a source on the hub; else None."""
        pinned = _PINNED.fullmatch(self.location)
        return None if pinned is None else pinned[1]


@dataclass(frozen=True, slots=True)
class PlanSidecar:
    """A small file that is copied from the primary source."""

    name: str
    size: int
    sha256: str


class Step(NamedTuple):
    """One tensor of the output: bytes [begin, end) of `file` (absolute), and the expression that gives them."""

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


@dataclass(frozen=True)
class OutputFile:
    """One output shard: its header and one expression per tensor, in the same order."""

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

    primary: the source that gives layout and sidecars. index: the text of the output's index, None for a single file.
    shard_size: bytes per shard that were asked for, None for the primary source's layout. swap: what a recipe decided, None for
    surgery by hand.
    """

    primary: Role
    sources: tuple[PlanSource, ...]
    files: tuple[OutputFile, ...]
    sidecars: tuple[PlanSidecar, ...]
    index: str | None
    shard_size: int | None
    swap: SwapRecord | None

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step, in the order of files and offsets. Steps are independent: any order of execution gives the same output."""
        return tuple(step for file in self.files for step in file.steps())

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every output tensor, by name, in the order of `steps`."""
        return {name: info.end - info.begin for file in self.files for name, info in file.header.tensors.items()}

    @cached_property
    def read_bytes(self) -> int:
        """Tensor bytes that the merge reads."""
        return sum(ref.end - ref.begin for file in self.files for made_of in file.made_of for ref in made_of.refs)

    @cached_property
    def write_bytes(self) -> int:
        """Size in bytes of the output's shards, index and sidecars, without manifest and card."""
        index = 0 if self.index is None else len(self.index.encode())
        return index + sum(file.header.file_size for file in self.files) + sum(sidecar.size for sidecar in self.sidecars)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan, as hex, without what differs between machines: locations and modification times."""
        document = self._document()
        for source in document["sources"]:
            del source["location"]
            for file in source["files"]:
                del file["mtime_ns"]
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def summary(self) -> str:
        """One line: `28 layers: 6 lang, 4 blended, 18 math; reads 3.4 GB, writes 3.1 GB`."""
        what = counted(sum(len(file.made_of) for file in self.files), "tensor")
        if self.swap is not None and not self.swap.weights:
            what = f"{self.swap.options['method']} of {what}"
        elif self.swap is not None:
            lang = sum(weight == 1 for weight in self.swap.weights)
            maths = sum(weight == 0 for weight in self.swap.weights)
            blended = len(self.swap.weights) - lang - maths
            reverted = len(set(self.swap.options.get("revert_layers", ())))
            what = f"{counted(len(self.swap.weights), 'layer')}: {lang} lang, {blended} blended, {maths - reverted} math"
            what += f", {reverted} base" if reverted else ""
        return f"{what}; reads {format_size(self.read_bytes)}, writes {format_size(self.write_bytes)}"

    def to_json(self) -> str:
        """Return the plan as JSON text. Equal plans give equal text."""
        files = []
        for file in self.files:
            name, header = json_form.to_text(file.name), json_form.to_text(file.header.raw.decode())
            tensors = json_form.expressions_to_text(zip(file.header.tensors, file.made_of, strict=True), 3)
            files.append(f'{{\n   "name": {name},\n   "header": {header},\n   "tensors": {tensors}\n  }}')
        members = {name: json_form.to_text(value, 1) for name, value in self._document(files=()).items()}
        members["files"] = "[\n  " + ",\n  ".join(files) + "\n ]" if files else "[]"
        return "{\n" + ",\n".join(f' "{name}": {text}' for name, text in members.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, path: str) -> Plan:
        """The inverse of `to_json`. Raises FormatError, which names `path`, for anything that is not a valid plan."""
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        document = Node(parse_object(raw, path=path), path=path)
        json_form.check_format(document, FORMAT)
        return _parse_plan(document, path)

    def _document(self, files: tuple[OutputFile, ...] | None = None) -> dict[str, Any]:
        """The plan as a JSON document, with `files` in place of its own where given."""
        return {
            "format": FORMAT,
            "host": self.primary,
            "swap": None if self.swap is None else json_form.swap_to_json(self.swap),
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
                    "tensors": {
                        n: json_form.expression_to_json(e) for n, e in zip(file.header.tensors, file.made_of, strict=True)
                    },
                }
                for file in (self.files if files is None else files)
            ],
            "sidecars": [{k: getattr(s, k) for k in PlanSidecar.__slots__} for s in self.sidecars],
            "index": self.index,
            "shard_size": self.shard_size,
        }


def _parse_plan(document: Node, path: str) -> Plan:
    sources = tuple(
        PlanSource(
            json_form.read_role(s["role"]),
            s["name"].line(),
            s["location"].text(),
            tuple(map(_source_file, json_form.unique_by(s["files"], "name"))),
        )
        for s in json_form.unique_by(document["sources"], "role")
    )
    places: dict[tuple[Role, str], json_form.FileKey] = {
        (s.role, f.name): (s.role, f.name, f.size) for s in sources for f in s.files
    }
    files = tuple(_output_file(entry, places, path) for entry in json_form.unique_by(document["files"], "name"))
    sidecars = tuple(_sidecar(entry) for entry in json_form.unique_by(document["sidecars"], "name"))
    home: dict[str, str] = {}
    for file in files:
        if not home.keys().isdisjoint(file.header.tensors):
            name = next(name for name in file.header.tensors if name in home)
            raise document["files"].blaming(name).refuse(f"is in {home[name]} and in {file.name}")
        home |= dict.fromkeys(file.header.tensors, file.name)
    index = document["index"].optional()
    if index is not None:
        _check_index(index, files, home, path)
    elif len(files) != 1:
        raise document["index"].refuse(f"{len(files)} output files need an index")
    swap, shard_size = document["swap"].optional(), document["shard_size"].optional()
    primary = json_form.read_role(document["host"])
    if primary not in {source.role for source in sources}:
        raise document["host"].refuse(f"the plan has no source {primary!r}")
    plan = Plan(
        primary,
        sources,
        files,
        sidecars,
        None if index is None else index.text(),
        None if shard_size is None else shard_size.integer(low=1),
        None if swap is None else json_form.swap_from_json(swap, home),
    )
    for name, made_of in chain.from_iterable(zip(f.header.tensors, f.made_of, strict=True) for f in files):
        for ref in made_of.refs:
            if (place := places.get((ref.role, ref.file))) is None or ref.end > place[2]:
                what = f"reads {ref.role} {ref.file!r} up to {ref.end}, beyond what the plan's sources have"
                raise document["files"].blaming(name).refuse(what)
    return plan


def _source_file(entry: Node) -> SourceFile:
    mtime_ns = entry["mtime_ns"].integer(low=-MAX_SIZE)
    return SourceFile(entry["name"].file_name(), entry["size"].integer(), entry["fingerprint"].text(), mtime_ns)


def _sidecar(entry: Node) -> PlanSidecar:
    name = entry["name"].file_path()
    if name in RESERVED or name.endswith(SHARD_SUFFIX):
        raise entry["name"].refuse(f"{name!r} is a name that the output needs for itself")
    return PlanSidecar(name, entry["size"].integer(), entry["sha256"].text())


def _output_file(entry: Node, places: Mapping[tuple[Role, str], json_form.FileKey], path: str) -> OutputFile:
    name = entry["name"].file_name()
    if not name.endswith(SHARD_SUFFIX):
        raise entry["name"].refuse(f"{name!r} does not end in {SHARD_SUFFIX}")
    header = parse_header(entry["header"].text().encode(), data_size=None, path=f"{path}: {name}")
    entries, copied = entry["tensors"], json_form.copies_from_json(entry["tensors"].members(), header, places)
    if entries.members().keys() != header.tensors.keys():
        raise entry.refuse("its header and its tensors name different things")
    if header.metadata.get("format") != "pt":
        raise entry["header"].refuse("its metadata do not say format: pt, which loaders need")
    made_of = (
        copied.get(tensor) or json_form.expression_from_json(entries[tensor].blaming(tensor), info.dtype, info.shape)
        for tensor, info in header.tensors.items()
    )
    return OutputFile(name, header, tuple(made_of))


def _check_index(index: Node, files: tuple[OutputFile, ...], home: Mapping[str, str], path: str) -> None:
    document = Node(parse_object(index.text().encode(), path=f"{path}: index", shallow=True), path=f"{path}: index")
    total_size = sum(file.header.file_size - file.header.data_begin for file in files)
    if document["metadata"]["total_size"].integer() != total_size:
        raise document["metadata"].refuse(f"'total_size' must be {total_size}")
    if document["weight_map"].value != home and {n: file.text() for n, file in document["weight_map"].items()} != home:
        raise document.refuse("its 'weight_map' is not where the tensors are")
