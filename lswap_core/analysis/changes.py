"""Where two experts changed: by tensor, and summed by layer and by matrix. Values with a JSON and a CSV form."""

from __future__ import annotations

import csv
import io
import json
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, TypeVar

from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.checkpoint.dtypes import DType
from lswap_core.checkpoint.names import Stack, classify_outside
from lswap_core.errors import RecipeError
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.json_form import check_format, parse_dtype, read_role, unique_by
from lswap_core.plan.manifest import FileRecord, SourceRecord, parse_statistics
from lswap_core.text.strict_json import Node, parse_object

FORMAT = "lswap-changes/1"
Key = TypeVar("Key")
Side = Literal["difference", "math", "lang"]
SIDES: tuple[Side, ...] = ("difference", "math", "lang")


@dataclass(frozen=True, slots=True)
class Change:
    """Statistics of some elements.

    difference: x is math, y is lang. math, lang: x is base, y is that expert, so they measure what it changed; both are None
    without a base.
    """

    difference: DifferenceStats
    math: DifferenceStats | None = None
    lang: DifferenceStats | None = None

    def __add__(self, other: Change) -> Change:
        """Both together. Raises RecipeError where only one of them has a base."""
        if self.math is None or self.lang is None or other.math is None or other.lang is None:
            if self.math or other.math:
                raise RecipeError("changes from a base cannot be added to changes without one")
            return Change(self.difference + other.difference)
        return Change(self.difference + other.difference, self.math + other.math, self.lang + other.lang)

    def side(self, side: Side) -> DifferenceStats | None:
        """The statistics of one side."""
        return {"difference": self.difference, "math": self.math, "lang": self.lang}[side]

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two changes, m - b and l - b. None without a base, where either is zero, and where
        an element is not finite.

        It follows from the sums: 2 <m - b, l - b> = |m - b|^2 + |l - b|^2 - |m - l|^2. Sums of squares of 1,024 elements are
        kept in fp32, so the error is at most 1e-5 (r + 1 / r) where r is the ratio of the two norms; F64 tensors are summed
        in fp64.
        """
        sides = (self.difference, self.math, self.lang)
        if self.math is None or self.lang is None or any(s and (s.x_nonfinite or s.y_nonfinite) for s in sides):
            return None
        norms = math.sqrt(self.math.sum_squares) * math.sqrt(self.lang.sum_squares)
        dot = (self.math.sum_squares + self.lang.sum_squares - self.difference.sum_squares) / 2
        return max(-1.0, min(1.0, dot / norms)) if 0 < norms < math.inf and math.isfinite(dot) else None

    @property
    def lang_share(self) -> float | None:
        """Lang's weight in a blend whose weights are inversely proportional to the mean absolute change from base, (1 / lang)
        / (1 / lang + 1 / math). None without a base, and where either changed nothing, or nothing finite.
        """
        changed = [0.0 if side is None else side.mean_abs for side in (self.math, self.lang)]
        if not all(0 < mean < math.inf for mean in changed):
            return None
        return changed[0] / (changed[0] + changed[1])


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean |change| of each row and of each column of a matrix."""

    rows: tuple[float, ...]
    columns: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor.

    dtype: the one it was compared in: its own, or a wider one where the checkpoints differ. profiles: of a matrix, by side,
    where they were asked for.
    """

    dtype: DType
    shape: tuple[int, ...]
    change: Change
    profiles: Mapping[Side, Profile] = field(default_factory=dict)


@dataclass(frozen=True)
class ChangeMaps:
    """Change maps: statistics of a pair of experts, or of some of its layers.

    stack: where the layers are. tensors: in the order of math's files. uncompared: names of tensors whose dtype has no
    differences, such as integers.
    """

    sources: tuple[SourceRecord, ...]
    stack: Stack
    tensors: Mapping[str, TensorChange]
    uncompared: tuple[str, ...] = ()

    @property
    def base(self) -> str | None:
        """The base's name, None without a base."""
        return next((source.name for source in self.sources if source.role == "base"), None)

    def matrix_of(self, name: str) -> str | None:
        """A tensor's name within its layer, None outside the layers."""
        number = self.stack.layer_of(name)
        return None if number is None else name.removeprefix(f"{self.stack.prefix}.{number}.")

    def by_layer(self) -> dict[int, Change]:
        """Every measured layer, with its tensors summed."""
        return dict(sorted(self._grouped((self.stack.layer_of(name), name) for name in self.tensors).items()))

    def by_matrix(self) -> dict[str, Change]:
        """Every matrix, with its layers summed, in the order of the checkpoint."""
        return self._grouped((self.matrix_of(name), name) for name in self.tensors)

    def by_part(self) -> dict[str, Change]:
        """The parts outside the layers: embed, norm, head, other."""
        outside = classify_outside(self.tensors, self.stack)
        return self._grouped((part, name) for part in outside.__slots__ for name in getattr(outside, part))

    def _grouped(self, keyed: Iterable[tuple[Key | None, str]]) -> dict[Key, Change]:
        groups: dict[Key, list[Change]] = {}
        for key, name in keyed:
            if key is not None:
                groups.setdefault(key, []).append(self.tensors[name].change)
        return {key: reduce(operator.add, changes) for key, changes in groups.items()}

    def check(self, *checkpoints: Checkpoint) -> None:
        """Raises RecipeError where the maps were measured on other checkpoints."""
        records = {source.role: source for source in self.sources}
        for checkpoint in checkpoints:
            record = records.get(checkpoint.role)
            if record is None or set(record.files) != set(source_record(checkpoint).files):
                raise RecipeError(
                    f"the changes were not measured on {checkpoint.location}, but on another {checkpoint.role}"
                    f"{f' ({record.name})' if record else ''}; run `analyze` on these checkpoints"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the maps as JSON: the sums, and the figures computed from them."""
        return {
            "format": FORMAT,
            "sources": [
                {"role": s.role, "name": s.name, "files": [{k: getattr(f, k) for k in FileRecord.__slots__} for f in s.files]}
                for s in self.sources
            ],
            "prefix": self.stack.prefix,
            "layers": self.stack.count,
            "tensors": {name: self._entry(name) for name in self.tensors},
            "uncompared": list(self.uncompared),
        }

    def _entry(self, name: str) -> dict[str, Any]:
        tensor = self.tensors[name]
        entry: dict[str, Any] = {"layer": self.stack.layer_of(name), "matrix": self.matrix_of(name)}
        entry |= {"dtype": tensor.dtype.name, "shape": list(tensor.shape), **change_to_json(tensor.change)}
        profiles = {side: {"rows": [*p.rows], "columns": [*p.columns]} for side, p in tensor.profiles.items()}
        return entry | {"profiles": profiles} if profiles else entry

    @classmethod
    def from_json(cls, text: bytes, *, path: str) -> ChangeMaps:
        """The inverse of `to_json`. Ignores other members of the document. Raises FormatError, which names `path`."""
        document = Node(parse_object(text, path=path), path=path)
        check_format(document, FORMAT)
        sources = tuple(
            SourceRecord(read_role(s["role"]), s["name"].line(), tuple(map(_file, unique_by(s["files"], "name"))))
            for s in unique_by(document["sources"], "role")
        )
        roles = {source.role for source in sources}
        if not {"math", "lang"} <= roles:
            raise document["sources"].refuse("expected math and lang")
        entries = [(name, entry.blaming(name)) for name, entry in document["tensors"].items()]
        maps = cls(
            sources,
            Stack(document["prefix"].line(), document["layers"].integer(low=1)),
            {name: _tensor(entry, with_base="base" in roles) for name, entry in entries},
            tuple(name.text() for name in document["uncompared"].elements()),
        )
        for name, entry in entries:
            if json.loads(json.dumps(maps._entry(name))) != entry.value:
                raise entry.refuse("its figures do not follow from its sums, or its place from its name")
        return maps

    def to_csv(self) -> str:
        """Return one CSV line per tensor: names, then the figures of every side."""
        sides = SIDES if self.base is not None else SIDES[:1]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        figures = [f"{side}_{figure}" for side in sides for figure in _FIGURES]
        changes = ["change_cosine", "lang_share"] if self.base is not None else []
        writer.writerow(["tensor", "layer", "matrix", "dtype", "shape", "elements", *figures, *changes])
        for name in self.tensors:
            entry = self._entry(name)
            row = [name, entry["layer"], entry["matrix"], entry["dtype"], "x".join(map(str, entry["shape"]))]
            row += [entry["difference"]["count"], *(entry[side][figure] for side in sides for figure in _FIGURES)]
            writer.writerow(row + [entry[figure] for figure in changes])
        return out.getvalue()


def source_record(checkpoint: Checkpoint) -> SourceRecord:
    """A checkpoint in the maps' JSON: its name, and the sizes and fingerprints of its files. No location."""
    files = tuple(FileRecord(shard.name, shard.header.file_size, shard.fingerprint) for shard in checkpoint.files)
    return SourceRecord(checkpoint.role, checkpoint.name, files)


_FIGURES = ("mean_abs", "rms", "max_abs", "relative_norm", "cosine", "changed", "x_nonfinite", "y_nonfinite")


def change_to_json(change: Change) -> dict[str, Any]:
    """Return sums and figures of every side; with a base, also the cosine of the two changes and lang's weight in a blend."""
    entry: dict[str, Any] = {side: figures(stats) for side in SIDES if (stats := change.side(side)) is not None}
    return entry if change.math is None else entry | {"change_cosine": change.cosine, "lang_share": change.lang_share}


def figures(stats: DifferenceStats) -> dict[str, Any]:
    """Return the sums, and figures computed from them. changed: the fraction of elements whose bits differ. Numbers as in
    `DifferenceStats.to_json`.
    """
    derived = {"mean_abs": stats.mean_abs, "rms": stats.rms, "relative_norm": stats.relative_norm, "cosine": stats.cosine}
    derived["changed"] = stats.differing / stats.count if stats.count else 0.0
    return stats.to_json() | {name: value if math.isfinite(value) else str(value) for name, value in derived.items()}


def _file(entry: Node) -> FileRecord:
    return FileRecord(entry["name"].file_path(), entry["size"].integer(), entry["sha256"].text())


def _tensor(entry: Node, *, with_base: bool) -> TensorChange:
    shape = tuple(dim.integer() for dim in entry["shape"].elements())
    sides = {side: parse_statistics(entry[side]) for side in (SIDES if with_base else SIDES[:1])}
    if any(stats.count != math.prod(shape) for stats in sides.values()):
        raise entry.refuse(f"{list(shape)} has {math.prod(shape)} elements, its sums have another number")
    change = Change(sides["difference"], sides.get("math"), sides.get("lang"))
    profiles: dict[Side, Profile] = {}
    for side in SIDES if "profiles" in entry else ():
        if side in entry["profiles"]:
            held = entry["profiles"][side]
            rows, columns = shape if len(shape) == 2 else (-1, -1)
            means = (held["rows"].elements(rows), held["columns"].elements(columns))
            profiles[side] = Profile(*(tuple(mean.number(0) for mean in axis) for axis in means))
    return TensorChange(parse_dtype(entry["dtype"]), shape, change, profiles)
