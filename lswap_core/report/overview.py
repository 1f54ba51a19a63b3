"""Summarises a checkpoint for `inspect`: layers, parts outside them, dtypes, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.checkpoint.names import Stack, classify_outside
from lswap_core.errors import RecipeError
from lswap_core.report.tables import Table
from lswap_core.text.plain import counted, format_size


@dataclass(frozen=True, slots=True)
class Overview:
    """Summary of a checkpoint."""

    location: str
    shards: int
    tensors: int
    size_bytes: int
    stack: Stack | None
    unclear: str
    outside: Mapping[str, tuple[str, ...]]
    dtypes: Mapping[str, tuple[int, int]]
    adapted: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint, layer_prefix: str | None = None) -> Overview:
        """Summarise any checkpoint. Where the layers are ambiguous, `unclear` says why."""
        stack, unclear, outside = None, "", {}
        try:
            stack = checkpoint.stack(layer_prefix)
            outside = asdict(classify_outside(checkpoint.tensors, stack))
        except RecipeError as error:
            if layer_prefix is not None:  # the user chose it
                raise
            unclear = str(error)
        dtypes: dict[str, tuple[int, int]] = {}
        for ref in checkpoint.tensors.values():
            count, size = dtypes.get(ref.dtype.name, (0, 0))
            dtypes[ref.dtype.name] = (count + 1, size + ref.size_bytes)
        total = sum(size for _, size in dtypes.values())
        adapter = checkpoint.adapter
        said = ((), (), ()) if adapter is None else (tuple(adapter.low_rank), tuple(adapter.replaced), adapter.notes)
        count = len(checkpoint.tensors)
        return cls(checkpoint.location, len(checkpoint.shards), count, total, stack, unclear, outside, dtypes, *said)

    def lines(self) -> list[str]:
        """The overview as sentences."""
        what = f"{counted(self.tensors, 'tensor')} in {counted(self.shards, 'shard')}, {format_size(self.size_bytes)}"
        said = [f"{self.location}: {what}"]
        if self.stack:
            said.append(
                f"{counted(self.stack.count, 'layer')}: {self.stack.prefix}.0 to {self.stack.prefix}.{self.stack.count - 1}"
            )
        else:
            said.append(self.unclear)
        for part, names in self.outside.items():
            if names:
                said.append(f"{part}: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else ""))
        if self.adapted or self.replaced:
            changes = f"{counted(len(self.adapted), 'tensor')} changed, {counted(len(self.replaced), 'tensor')} given in full"
            said.append(f"with an adapter: {changes}")
        said += self.notes
        return said

    def dtype_table(self) -> Table:
        """Number of tensors and bytes by dtype."""
        rows = [(dtype, str(count), format_size(size)) for dtype, (count, size) in self.dtypes.items()]
        return Table(("dtype", "tensors", "size"), tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """Return the overview as JSON."""
        return {**asdict(self), "dtypes": {d: {"tensors": n, "bytes": b} for d, (n, b) in self.dtypes.items()}}


def tensor_table(checkpoint: Checkpoint) -> Table:
    """Every tensor: name, file, dtype, shape, size; with an adapter, also its effect."""
    rows = [
        (name, ref.file, ref.dtype.name, "x".join(map(str, ref.shape)) or "scalar", format_size(ref.size_bytes))
        for name, ref in checkpoint.tensors.items()
    ]
    columns = ("tensor", "file", "dtype", "shape", "size")
    if (adapter := checkpoint.adapter) is None:
        return Table(columns, tuple(rows))
    changes = {name: f"rank {change.a.shape[0]}, scale {change.scale:.6g}" for name, change in adapter.low_rank.items()}
    said = {**dict.fromkeys(adapter.replaced, "in full"), **changes}
    return Table((*columns, "adapter"), tuple((*row, said.get(row[0], "")) for row in rows))
