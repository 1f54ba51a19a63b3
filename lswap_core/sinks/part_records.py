"""Records of finished parts, in a directory or in a store: a small JSON file for each, with its own checksum."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

from lswap_core.errors import FormatError, RecipeError
from lswap_core.plan.division import Part
from lswap_core.plan.json_form import check_format
from lswap_core.plan.manifest import StepRecord, record_from_json, record_to_json
from lswap_core.plan.plan import Plan, Step
from lswap_core.text.strict_json import Node, parse_object

PART_FORMAT = "lswap-part/1"
PART_FILE = r"part-\d+-of-\d+\.json"
"""A pattern that matches what `part_file` returns."""
_SHOWN_PARTS = 8


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a build, on which all its parts agree: the plan's digest, the number of parts, the kind of digests."""

    plan: str
    parts: int
    digest: str

    @classmethod
    def of(cls, document: Node) -> Terms:
        """The terms in a document. Raises FormatError."""
        return cls(document["plan"].text(), document["parts"].integer(low=1), document["digest"].text())


def part_file(part: Part) -> str:
    """The file name of a part's record."""
    return f"part-{part.number}-of-{part.count}.json"


def encode_part(part: Part, terms: Terms, records: Sequence[StepRecord], more: Mapping[str, Any] | None = None) -> bytes:
    """Return the record of a finished part: the records of its steps, and `more`."""
    done = {"format": PART_FORMAT, **asdict(terms), "part": part.number, "steps": [*map(record_to_json, records)]}
    return encode(done | dict(more or {}))


def decode_part(raw: bytes, part: Part, terms: Terms, path: str) -> tuple[list[StepRecord], Node] | None:
    """The inverse of `encode_part`: records, and the document. None where it is damaged. path: of the record.

    Raises RecipeError where it belongs to another part or to other terms.
    """
    try:
        document = decode(raw, PART_FORMAT, path)
        done = Terms.of(document)
        records = [record_from_json(entry) for entry in document["steps"].elements()]
    except FormatError:
        return None
    if done != terms or document["part"].value != part.number:
        raise RecipeError(f"{path} does not belong to this merge; remove it and run `lswap-core apply PLAN --part {part}`")
    return records, document


def encode(document: dict[str, Any]) -> bytes:
    """Return a document with its checksum."""
    return json.dumps(document | {"sum": _sum(document)}, ensure_ascii=False).encode() + b"\n"


def decode(raw: bytes, expected: str, path: str) -> Node:
    """The inverse of `encode`. Raises FormatError where the document is damaged, or not of the `expected` format."""
    document = Node(parse_object(raw, path=path), path=path)
    check_format(document, expected)
    if document["sum"].text() != _sum({name: value for name, value in document.value.items() if name != "sum"}):
        raise document.refuse("it is damaged: its sum is not that of the rest")
    return document


def gather(
    plan: Plan, shares: Sequence[Sequence[Step]], read: Callable[[Part], list[StepRecord] | None], place: object
) -> list[StepRecord]:
    """Gather the records of every step, in the plan's order. shares: the steps of each part. read: returns the records of a
    part, None where it is not done.

    Raises RecipeError where parts are missing, or were divided differently.
    """
    every: dict[str, StepRecord] = {}
    missing = []
    for number, steps in enumerate(shares, 1):
        part = Part(number, len(shares))
        records = read(part)
        if records is None:
            missing.append(number)
        elif not covers(records, steps):
            what = f"part {number} of {part.count} in {place} was made by another version, which divides otherwise"
            raise RecipeError(f"{what}; run `lswap-core apply PLAN --part {part}` again")
        else:
            every |= {record.name: record for record in records}
    if missing:
        raise RecipeError(tell_missing(missing, len(shares)))
    return [every[step.name] for step in plan.steps]


def covers(records: Iterable[StepRecord], steps: Iterable[Step]) -> bool:
    """Whether the records are those of the steps, in order."""
    return [record.name for record in records] == [step.name for step in steps]


def refuse_terms(kept: Terms, wanted: Terms, place: object, advice: str) -> RecipeError:
    """The error for a place with a build on other terms. advice: how to discard it."""
    what, instead = f"begun with --digest {kept.digest}", f"with --digest {wanted.digest}"
    if kept.parts != wanted.parts:
        what, instead = f"divided into {kept.parts} parts", f"into {wanted.parts}"
    if kept.plan != wanted.plan:
        what, instead = "of another plan", "of this one"
    return RecipeError(f"{place} holds an unfinished merge {what}, not {instead}; finish that first, or {advice}")


def tell_missing(numbers: Sequence[int], count: int) -> str:
    """A sentence that names the missing parts, and the command that makes them."""
    again = f"run `lswap-core apply PLAN --part {numbers[0]}/{count}`"
    if len(numbers) == 1:
        return f"part {numbers[0]} of {count} is missing; {again}"
    shown = ", ".join(map(str, numbers[:_SHOWN_PARTS]))
    more = f" and {len(numbers) - _SHOWN_PARTS} more" if len(numbers) > _SHOWN_PARTS else ""
    return f"parts {shown}{more} of {count} are missing; {again} and so on"


def _sum(document: dict[str, Any]) -> str:
    """Checksum of the values as Python writes them; numbers that were read back are written the same."""
    return xxhash.xxh3_64_hexdigest(json.dumps(document, sort_keys=True).encode())
