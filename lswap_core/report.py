"""Plans and manifests for people: tables, the model card, the command that repeats a merge."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from lswap_core.checkpoint.catalogue import ADAPTER_FILE, ROLES, SHARD_SUFFIX, Checkpoint
from lswap_core.checkpoint.names import Stack, classify_outside
from lswap_core.errors import RecipeError
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import MANIFEST_FILE, Plan, PlanSource
from lswap_core.recipe.draft import SwapRecord
from lswap_core.text import counted, format_size, one_line

_LAYER_COLUMNS = ("part", "from", "lang's share", "tensors", "size")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text: column titles and rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """A GitHub table."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def layer_table(swap: SwapRecord, sizes: Mapping[str, int]) -> Table:
    """Who gives what: runs of layers, then the parts outside them. `sizes`: bytes by tensor name."""
    if not swap.shares:
        made = ("all tensors", "base and what math and lang changed", "-", str(len(sizes)), format_size(sum(sizes.values())))
        return Table(_LAYER_COLUMNS, (made,))
    stack = Stack(swap.prefix, len(swap.shares))
    by_layer: dict[int, list[int]] = {number: [] for number in range(stack.count)}
    for number, size in zip(stack.layers_of(sizes), sizes.values(), strict=True):
        if number is not None:
            by_layer[number].append(size)
    rows = []
    reverted = set(swap.options.get("revert_layers", ()))
    for (share, is_base), run in groupby(range(stack.count), key=lambda n: (swap.shares[n], n in reverted)):
        numbers = list(run)
        held = [size for number in numbers for size in by_layer[number]]
        span = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        rows.append(
            (
                f"layer{'s' if len(numbers) > 1 else ''} {span}",
                "base" if is_base else _giver(share),
                f"{share:.6g}",
                str(len(held)),
                format_size(sum(held)),
            )
        )
    weight = swap.options.get("weight", 0.5)
    shares = {"math": "0", "lang": "1", "blend": f"{weight:.6g}"}
    titles = {"embed": "embeddings", "norm": "final norm", "head": "head", "other": "other tensors"}
    for part, (giver, names) in swap.outside.items():
        if names:
            said = "blend of math and lang" if giver == "blend" else giver
            total = sum(sizes[name] for name in names)
            rows.append((titles.get(part, part), said, shares[giver], str(len(names)), format_size(total)))
    return Table(_LAYER_COLUMNS, tuple(rows))


def _giver(share: float) -> str:
    return {0.0: "math", 1.0: "lang"}.get(share, "blend of math and lang")


def plan_notes(plan: Plan) -> list[str]:
    """What a user should know before the plan is executed, one sentence each."""
    swap = plan.swap
    if swap is None:
        return []
    if not swap.shares:
        return list(swap.notes)
    outside = [
        f"{part}: {', '.join(names)} ({giver})" for part, (giver, names) in swap.outside.items() if names and part != "other"
    ]
    notes = [f"layers found at {swap.prefix}.0 to {swap.prefix}.{len(swap.shares) - 1}"]
    if outside:
        notes.append("outside the layers: " + "; ".join(outside))
    if len({source.name for source in plan.sources}) < len(plan.sources):
        notes.append(f"both experts are called {plan.sources[0].name!r}; --math-name and --lang-name tell them apart in the card")
    return notes + list(swap.notes)


def default_name(plan: Plan) -> str:
    """Name of the output where none is given: `<math>+<lang>-b4u2t2`."""
    names = {
        source.role: "+".join(part.rpartition("/")[2].removesuffix(SHARD_SUFFIX) for part in _parts(source))
        for source in plan.sources
    }
    return "+".join(names[role] for role in ROLES if role in names) + f"-{_setting(plan.swap)}"


def _parts(source: PlanSource) -> tuple[str, ...]:
    """What a source is put together from, by name: itself, or base and adapter."""
    base, plus, adapter = source.name.rpartition("+")
    adapted = plus and any(file.name == ADAPTER_FILE for file in source.files)
    return (base, adapter) if adapted else (source.name,)


def _setting(swap: SwapRecord | None) -> str:
    if swap is None:
        return "surgery"
    options = swap.options
    if "method" in options:
        return str(options["method"])
    if "swap" in options or "revert_layers" in options:
        return "custom"
    if "lang_layers" in options or "blend_layers" in options:
        return "custom"
    text = f"b{options.get('bottom', 0)}u{options.get('top', 0)}"
    both = options.get("transition", 0)
    bottom, top = options.get("transition_bottom", both), options.get("transition_top", both)
    return text + (f"t{bottom}" if bottom == top else f"t{bottom}-{top}")


def repeat_command(plan: Plan | Manifest, swap: SwapRecord) -> str:
    """The command line that makes the same plan from the same sources, called by their names."""
    words = ["lswap_core", "merge"]
    for source in plan.sources:
        words += [f"--{source.role}", source.name]
    if swap.base is not None:
        words += ["--base", swap.base]
    for option, value in swap.options.items():
        words.append("--" + option.replace("_", "-"))
        if isinstance(value, list | tuple):
            words.append(",".join(map(str, value)))
        elif value is not True:
            words.append(str(value))
    if plan.shard_size is not None:
        words += ["--shard-size", str(plan.shard_size)]
    return shlex.join(words)


def model_card(plan: Plan, manifest: Manifest) -> str:
    """A model card with front matter as the hub reads it. Strings are quoted as JSON, which is YAML."""
    bases = dict.fromkeys(part for source in plan.sources for part in _parts(source) if _HUB_ID.fullmatch(part))
    front = [*(["base_model:", *(f"- {json.dumps(base)}" for base in bases), "base_model_relation: merge"] if bases else ())]
    front += ["library_name: transformers", "tags:", "- merge", *(["- layer-swapping"] if plan.swap and plan.swap.shares else ())]
    lines = ["---", *front, "---", "", f"# {default_name(plan)}", ""]
    how = "surgery on its tensors"
    if plan.swap is not None:
        by_layers = "layer swapping (arXiv 2410.01335)" if plan.swap.shares else str(plan.swap.options["method"])
        how = f"{by_layers}, without training"
    lines += [f"Made with `lswap_core` by {how}, from:", ""]
    for source in plan.sources:
        lines += [f"- **{source.role}**: `{source.name}`" + (f", commit `{source.revision}`" if source.revision else "")]
    lines += [""]
    if plan.swap is not None:
        table = layer_table(plan.swap, plan.sizes())
        lines += ["```sh", repeat_command(plan, plan.swap), "```", "", table.to_markdown()]
        lines += [f"- {one_line(note)}" for note in plan_notes(plan)]
        if seams := seam_table(manifest, plan.swap):
            lines += ["", "How the experts differ where they are blended:", "", seams.to_markdown()]
        lines += [""]
    lines += [f"Every tensor's origin and digest is in `{MANIFEST_FILE}`; `lswap_core verify` checks them.", ""]
    return "\n".join(lines)


def seam_table(manifest: Manifest, swap: SwapRecord) -> Table | None:
    """Difference of the two experts in every blended layer, or None where nothing was blended."""
    stack = Stack(swap.prefix, len(swap.shares))
    totals: dict[int, DifferenceStats] = {}
    for name, record in manifest.tensors.items():
        number = stack.layer_of(name)
        if record.statistics is not None and number is not None:
            totals[number] = totals.get(number, DifferenceStats()) + record.statistics
    rows = [
        (
            str(number),
            f"{swap.shares[number]:.6g}",
            f"{stats.mean_abs:.3g}",
            f"{stats.max_abs:.3g}",
            f"{stats.relative_norm:.3g}",
            f"{stats.cosine:.6f}",
            f"{stats.differing / stats.count:.1%}" if stats.count else "-",
        )
        for number, stats in sorted(totals.items())
    ]
    columns = ("layer", "lang's share", "mean |d|", "max |d|", "|d| / |math|", "cosine", "elements that differ")
    return Table(columns, tuple(rows)) if rows else None


@dataclass(frozen=True, slots=True)
class Overview:
    """What a checkpoint holds, in short."""

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
        """Of any checkpoint; where the layers cannot be told, `unclear` says why."""
        stack, unclear, outside = None, "", {}
        try:
            stack = checkpoint.stack(layer_prefix)
            outside = asdict(classify_outside(checkpoint.tensors, stack))
        except RecipeError as error:
            if layer_prefix is not None:  # asked for by name
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
        """Tensors and bytes by dtype."""
        rows = [(dtype, str(count), format_size(size)) for dtype, (count, size) in self.dtypes.items()]
        return Table(("dtype", "tensors", "size"), tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """The overview as JSON."""
        return {**asdict(self), "dtypes": {d: {"tensors": n, "bytes": b} for d, (n, b) in self.dtypes.items()}}


def tensor_table(checkpoint: Checkpoint) -> Table:
    """Every tensor: name, file, dtype, shape, size; where there is an adapter, what it does."""
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
