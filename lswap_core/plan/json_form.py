"""The JSON of expressions and swap records, which plans and manifests share."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, partial
from json.encoder import encode_basestring
from typing import Any

from lswap_core.checkpoint.catalogue import Role, TensorRef, parse_role
from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.checkpoint.header import Header, size_in_bytes
from lswap_core.errors import RecipeError
from lswap_core.recipe.draft import SwapRecord
from lswap_core.recipe.expressions import Adapted, Average, Blend, Copy, Expression, Operand, TaskVectors, add_up_to_one, in_fp32
from lswap_core.text.strict_json import Node


def expression_to_json(made_of: Expression) -> dict[str, Any]:
    """Return the JSON of an expression.

    - a copy: `{"copy": [role, file, dtype, begin, end]}`, with "cast" where it is rounded;
    - an adapted matrix: the same with "adapt": [a, b], their "shapes", "scale" and "transposed";
    - a blend: `{"blend": [x, y], "weight": w}`;
    - an average: `{"average": [x, y, z, ...], "weights": [...]}`;
    - task vectors: `{"task_vectors": [base, expert, ...], "scales": [...], "density": d, "strength": s}`.
    """
    if isinstance(made_of, Blend):
        return {"blend": [expression_to_json(made_of.x), expression_to_json(made_of.y)], "weight": made_of.weight}
    if isinstance(made_of, Average):
        return {"average": [expression_to_json(operand) for operand in made_of.operands], "weights": list(made_of.weights)}
    if isinstance(made_of, TaskVectors):
        operands = [expression_to_json(operand) for operand in (made_of.base, *made_of.experts)]
        how = {"scales": list(made_of.scales), "density": made_of.density, "strength": made_of.strength}
        return {"task_vectors": operands, **how}
    entry: dict[str, Any] = {"copy": _ref_to_json(made_of.ref)}
    if isinstance(made_of, Adapted):
        entry["adapt"] = [_ref_to_json(made_of.a), _ref_to_json(made_of.b)]
        entry |= {"shapes": [list(made_of.a.shape), list(made_of.b.shape)], "scale": made_of.scale}
        entry["transposed"] = made_of.transposed
    return entry if made_of.cast is None else entry | {"cast": made_of.cast.name}


_TYPES_IN_COPY = [str, str, str, int, int]


def expressions_to_text(made_of: Iterable[tuple[str, Expression]], depth: int) -> str:
    """Return what `json.dumps` with indent=1 gives for an object of expressions, `depth` levels deep in a document.

    Copies, of which there are many, are formatted by a template: the json module has no C code for indented text.
    """
    pad = "\n" + " " * (depth + 1)
    form = f'%s: {{{pad} "copy": [{pad}  %s,{pad}  %s,{pad}  "%s",{pad}  %d,{pad}  %d{pad} ]{pad}}}'
    quote = cache(partial(json.dumps, ensure_ascii=False))
    entries = []
    for name, expression in made_of:
        if isinstance(expression, Copy) and expression.cast is None:
            role, file, dtype, _, begin, end = expression.ref
            entries.append(form % (encode_basestring(name), quote(role), quote(file), dtype.name, begin, end))
        else:
            entries.append(f"{encode_basestring(name)}: {to_text(expression_to_json(expression), depth + 1)}")
    return f"{{{pad}{f',{pad}'.join(entries)}{pad[:-1]}}}" if entries else "{}"


def to_text(value: Any, depth: int = 0) -> str:
    """Return what `json.dumps` with indent=1 gives for a value, `depth` levels deep in a document. No string spans lines."""
    return json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n" + " " * depth)


FileKey = tuple[Role, str, int]
"""A source file: its role, its name, its size."""


def copies_from_json(entries: Mapping[str, Any], header: Header, places: Mapping[tuple[Role, str], FileKey]) -> dict[str, Copy]:
    """Parse those of a file's expressions that are valid plain copies out of `places`.

    The rest, valid or not, is left to `expression_from_json`, which takes ten times as long.
    """
    copies: dict[str, Copy] = {}
    for name, (dtype, shape, begin, end) in header.tensors.items():
        entry = entries.get(name)
        copied = entry.get("copy") if type(entry) is dict and len(entry) == 1 else None
        if type(copied) is not list or [*map(type, copied)] != _TYPES_IN_COPY:
            continue
        role, file, dtype_name, first, last = copied
        if dtype_name == dtype.name and last - first == end - begin and first >= 0:
            place = places.get((role, file))
            if place is not None and last <= place[2]:
                copies[name] = Copy(TensorRef(place[0], place[1], dtype, shape, first, last))
    return copies


def expression_from_json(entry: Node, dtype: DType, shape: tuple[int, ...]) -> Expression:
    """The inverse of `expression_to_json` for a tensor of that dtype and shape. Raises FormatError for anything else."""
    if "blend" in entry:
        x, y = (_operand_from_json(side, shape) for side in entry["blend"].elements(2))
        weight = entry["weight"].number(0, 1)
        if in_fp32(weight) in (0, 1):
            raise entry["weight"].refuse("a blend's weight is between 0 and 1; at either end it is a copy")
        _check_alike(entry, (x, y), "blended")
        made_of: Expression = Blend(x, y, weight)
    elif "average" in entry:
        made_of = _average_from_json(entry, shape)
    elif "task_vectors" in entry:
        base, *experts = (_operand_from_json(side, shape) for side in entry["task_vectors"].elements())
        scales = tuple(scale.number() for scale in entry["scales"].elements(len(experts)))
        density = entry["density"].optional()
        kept = None if density is None else density.number(0, 1)
        if not experts or kept == 0:
            raise entry.refuse("task vectors need an expert at least, and a density above 0")
        _check_alike(entry, (base, *experts), "added up")
        made_of = TaskVectors(base, tuple(experts), scales, kept, entry["strength"].number())
    else:
        made_of = _operand_from_json(entry, shape)
    if made_of.dtype != dtype:
        raise entry.refuse(f"gives {made_of.dtype} where {dtype} is expected")
    return made_of


def _average_from_json(entry: Node, shape: tuple[int, ...]) -> Average:
    operands = tuple(_operand_from_json(side, shape) for side in entry["average"].elements())
    weights = tuple(weight.number(0, 1) for weight in entry["weights"].elements(len(operands)))
    if len(operands) < 3:
        raise entry["average"].refuse(f"an average of {len(operands)}; expected 3 at least, since of two it is a blend")
    if not add_up_to_one(weights) or any(in_fp32(weight) == 0 for weight in weights):
        raise entry["weights"].refuse("weights of an average are above 0 and add up to 1")
    _check_alike(entry, operands, "averaged")
    return Average(operands, weights)


def _check_alike(entry: Node, operands: Sequence[Operand], what: str) -> None:
    first = operands[0].dtype
    for operand in operands:
        if operand.dtype != first or not first.blendable:
            raise entry.refuse(f"{first} and {operand.dtype} cannot be {what}")


def _operand_from_json(entry: Node, shape: tuple[int, ...]) -> Operand:
    ref = _ref_from_json(entry["copy"], shape)
    cast = parse_dtype(entry["cast"]) if "cast" in entry else None
    if cast is not None and not (cast.blendable and ref.dtype.blendable):
        raise entry.refuse(f"{ref.dtype} cannot be cast to {cast}")
    if "adapt" not in entry:
        return Copy(ref, cast)
    shapes = [tuple(dim.integer() for dim in dims.elements(2)) for dims in entry["shapes"].elements(2)]
    a, b = (_ref_from_json(side, dims) for side, dims in zip(entry["adapt"].elements(2), shapes, strict=True))
    transposed = entry["transposed"].boolean()
    rows, columns = reversed(shape) if transposed and len(shape) == 2 else shape if len(shape) == 2 else (-1, -1)
    if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != (rows, columns):
        raise entry.refuse(f"{list(b.shape)} times {list(a.shape)} does not change a tensor of shape {list(shape)}")
    if not (ref.dtype.blendable and a.dtype.blendable and b.dtype.blendable):
        raise entry.refuse(f"{ref.dtype}, {a.dtype} and {b.dtype} cannot be added up")
    return Adapted(ref, a, b, entry["scale"].number(), transposed, cast)


def _ref_to_json(ref: TensorRef) -> list[Any]:
    return [ref.role, ref.file, ref.dtype.name, ref.begin, ref.end]


def _ref_from_json(entry: Node, shape: tuple[int, ...]) -> TensorRef:
    role, file, dtype_name, begin, end = entry.elements(5)
    dtype = parse_dtype(dtype_name)
    ref = TensorRef(read_role(role), file.file_name(), dtype, shape, begin.integer(), end.integer())
    if not holds(dtype, shape, ref.size_bytes):
        raise entry.refuse(f"[{ref.begin}, {ref.end}) does not hold {dtype} {list(shape)}")
    return ref


def parse_dtype(entry: Node) -> DType:
    """Parse the name of a dtype. Raises FormatError."""
    if (dtype := DTYPES.get(entry.text())) is None:
        raise entry.refuse(f"unknown dtype {entry.value!r:.60}")
    return dtype


def read_role(entry: Node) -> Role:
    """Parse the name of a role. Raises FormatError."""
    try:
        return parse_role(entry.text())
    except RecipeError as error:
        raise entry.refuse(str(error)) from None


def holds(dtype: DType, shape: tuple[int, ...], size: int) -> bool:
    """Whether a tensor of that dtype and shape takes `size` bytes."""
    try:
        return size_in_bytes(dtype, shape) == size
    except ValueError:
        return False


def check_format(document: Node, expected: str) -> None:
    """Raises FormatError for a document of another kind or version."""
    actual = document.value.get("format")
    if actual != expected:
        raise document.refuse(f"not a document of this kind and version: 'format' is {actual!r:.60}, expected {expected!r}")


GIVERS = ("math", "lang", "blend")


def swap_to_json(swap: SwapRecord) -> dict[str, Any]:
    """Return the record as JSON."""
    base = {} if swap.base is None else {"base": swap.base}
    return {
        "options": dict(swap.options),
        "prefix": swap.prefix,
        "shares": list(swap.weights),
        "outside": {part: {"from": who, "tensors": list(names)} for part, (who, names) in swap.outside.items()},
        "notes": list(swap.notes),
    } | base


def swap_from_json(entry: Node, tensors: Collection[str]) -> SwapRecord:
    """The inverse of `swap_to_json` for an output with these tensors. Raises FormatError for anything else."""
    outside = {}
    for part, said in entry["outside"].items():
        names = tuple(name.text() for name in said["tensors"].elements())
        if unknown := [name for name in names if name not in tensors]:
            raise said.refuse(f"names {unknown[0]!r}, which is no tensor of the output")
        if said["from"].text() not in GIVERS:
            raise said["from"].refuse(f"{said['from'].value!r:.60} is none of {', '.join(GIVERS)}")
        outside[part] = (said["from"].text(), names)
    options = {name: option.value for name, option in entry["options"].items()}
    if options.get("method") == "soup":
        from lswap_core.recipe.baselines import Soup  # loads the recipes, which most plans do not need

        try:
            Soup.from_json(options)
        except RecipeError as error:
            raise entry["options"].refuse(str(error)) from None
    weights = tuple(weight.number(0, 1) for weight in entry["shares"].elements())
    if not weights and "method" not in options:
        raise entry["shares"].refuse("a model has at least one layer")
    notes = tuple(note.text() for note in entry["notes"].elements())
    base = entry["base"].line() if "base" in entry else None
    return SwapRecord(options, entry["prefix"].line(), weights, outside, notes, base)


def unique_by(nodes: Node, key: str) -> list[Node]:
    """Elements of a list of objects. Raises FormatError where two have the same `key`."""
    elements = nodes.elements()
    seen: set[Any] = set()
    for element in elements:
        name = element[key].text()
        if name in seen:
            raise element.refuse(f"two of them have one {key}, {name!r}")
        seen.add(name)
    return elements
