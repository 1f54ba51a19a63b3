"""The JSON of expressions and swap records, which plans and manifests share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lswap_core.checkpoint import Role, TensorRef, parse_role
from lswap_core.documents import Node
from lswap_core.draft import Blend, Copy, Expression, SwapRecord, in_fp32
from lswap_core.dtypes import DTYPES, DType
from lswap_core.errors import RecipeError
from lswap_core.header import size_in_bytes


def expression_to_json(made_of: Expression) -> dict[str, Any]:
    """`{"copy": [role, file, dtype, begin, end]}`, with "cast" where it is rounded, or `{"blend": [x, y], "weight": w}`."""
    if isinstance(made_of, Blend):
        return {"blend": [expression_to_json(made_of.x), expression_to_json(made_of.y)], "weight": made_of.weight}
    ref = made_of.ref
    entry: dict[str, Any] = {"copy": [ref.role, ref.file, ref.dtype.name, ref.begin, ref.end]}
    return entry if made_of.cast is None else entry | {"cast": made_of.cast.name}


def expression_from_json(entry: Node, dtype: DType, shape: tuple[int, ...]) -> Expression:
    """The inverse of `expression_to_json` for a tensor of that dtype and shape; FormatError for anything else."""
    if "blend" in entry:
        x, y = (_copy_from_json(side, shape) for side in entry["blend"].elements(2))
        weight = entry["weight"].number(0, 1)
        if in_fp32(weight) in (0, 1):
            raise entry["weight"].refuse("a blend's weight lies between 0 and 1; at either end it is a copy")
        if x.dtype != y.dtype or not x.dtype.blendable:
            raise entry.refuse(f"{x.dtype} and {y.dtype} cannot be blended")
        made_of: Expression = Blend(x, y, weight)
    else:
        made_of = _copy_from_json(entry, shape)
    if made_of.dtype != dtype:
        raise entry.refuse(f"gives {made_of.dtype} where {dtype} is expected")
    return made_of


def _copy_from_json(entry: Node, shape: tuple[int, ...]) -> Copy:
    role, file, dtype_name, begin, end = entry["copy"].elements(5)
    dtype = parse_dtype(dtype_name)
    cast = parse_dtype(entry["cast"]) if "cast" in entry else None
    ref = TensorRef(read_role(role), file.file_name(), dtype, shape, begin.integer(), end.integer())
    if not holds(dtype, shape, ref.size_bytes):
        raise entry.refuse(f"[{ref.begin}, {ref.end}) does not hold {dtype} {list(shape)}")
    if cast is not None and not (cast.blendable and dtype.blendable):
        raise entry.refuse(f"{dtype} cannot be cast to {cast}")
    return Copy(ref, cast)


def parse_dtype(entry: Node) -> DType:
    """A dtype by name."""
    if (dtype := DTYPES.get(entry.text())) is None:
        raise entry.refuse(f"unknown dtype {entry.value!r:.60}")
    return dtype


def read_role(entry: Node) -> Role:
    """A role by name."""
    try:
        return parse_role(entry.text())
    except RecipeError as error:
        raise entry.refuse(str(error)) from None


def holds(dtype: DType, shape: tuple[int, ...], size: int) -> bool:
    """`size` bytes are what such a tensor takes."""
    try:
        return size_in_bytes(dtype, shape) == size
    except ValueError:
        return False


def check_format(document: Node, expected: str) -> None:
    """Refuse a document of another kind or version."""
    found = document.value.get("format")
    if found != expected:
        raise document.refuse(f"not a document of this kind and version: 'format' is {found!r:.60}, expected {expected!r}")


def swap_to_json(swap: SwapRecord) -> dict[str, Any]:
    """The record as JSON."""
    return {
        "options": dict(swap.options),
        "prefix": swap.prefix,
        "shares": list(swap.shares),
        "outside": {part: {"from": who, "tensors": list(names)} for part, (who, names) in swap.outside.items()},
        "notes": list(swap.notes),
    }


def swap_from_json(entry: Node, tensors: Collection[str]) -> SwapRecord:
    """The inverse of `swap_to_json` for an output of these tensors; FormatError for anything else."""
    outside = {}
    for part, said in entry["outside"].items():
        names = tuple(name.text() for name in said["tensors"].elements())
        if unknown := [name for name in names if name not in tensors]:
            raise said.refuse(f"names {unknown[0]!r}, which is no tensor of the output")
        outside[part] = (said["from"].text(), names)
    options = {name: option.value for name, option in entry["options"].items()}
    shares = tuple(share.number(0, 1) for share in entry["shares"].elements())
    return SwapRecord(options, entry["prefix"].text(), shares, outside, tuple(note.text() for note in entry["notes"].elements()))


def unique_by(nodes: Node, key: str) -> list[Node]:
    """Elements of a list of objects, in which `key` differs from one to the next."""
    elements = nodes.elements()
    seen: set[Any] = set()
    for element in elements:
        name = element[key].text()
        if name in seen:
            raise element.refuse(f"two of them have one {key}, {name!r}")
        seen.add(name)
    return elements
