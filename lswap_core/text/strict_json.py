"""Strict parsing of JSON from outside. Members are read one by one, with errors that say where they are."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

from lswap_core.errors import FormatError

MAX_SIZE = 2**63 - 1
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Trail = tuple[str, ...]
Blame = Callable[[Trail], str | None]
"""Returns the tensor to blame for an error at a place in a document, given the names that lead to it."""


class _Repeating(dict[str, Any]):
    """An object in which `name` occurs twice."""

    name: str


def parse_object(
    raw: bytes, *, path: str, blame: Blame = lambda _: None, infinities: bool = False, shallow: bool = False
) -> dict[str, Any]:
    """Parse a JSON object. Raises FormatError for anything else, however deep or large.

    Strict: UTF-8 only, no name twice in any object, no NaN, no text that is not Unicode, no NUL in the names at the top.
    infinities: allow `Infinity`, as Python writes it. shallow: the document probably holds only objects in an object, as
    headers and indexes do; it is then parsed faster.
    """

    def constant(text: str) -> float:
        if infinities and text != "NaN":
            return float(text)
        raise ValueError(f"{text} is not JSON")

    repeating = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) == len(pairs):
            return table
        seen: set[str] = set()
        twice = _Repeating(table)
        for name, _ in pairs:
            if name in seen:
                twice.name = name
            seen.add(name)
        repeating.append(twice)
        return twice

    try:
        # A call for every integer is a large part of the time for a large header. Python's own parsing is right except for
        # -0.
        integer = _integer if b"-0" in raw else None
        read = partial(json.loads, str(raw, "utf-8"), parse_constant=constant, parse_int=integer)
        value = read() if shallow else None
        if not _has_every_name(value, raw):
            value = read(object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 at byte {error.start}", path=path) from None
    except RecursionError:
        raise FormatError("the JSON is nested too deeply", path=path) from None
    except ValueError as error:  # json.JSONDecodeError, and integers of thousands of digits
        raise FormatError(f"not valid JSON: {error}", path=path) from None
    if not isinstance(value, dict):
        raise FormatError("expected a JSON object", path=path)
    if repeating:
        trail = next((*above, held.name) for above, held in _walk(value) if isinstance(held, _Repeating))
        raise FormatError(f"the name {trail[-1]!r} is there twice; each may occur once", path=path, tensor=blame(trail))
    for name in value:
        if "\0" in name:
            raise FormatError(f"the name {name!r} holds a NUL character", path=path, tensor=blame((name,)))
    if _SURROGATE.search(raw):
        for trail, held in _walk(value):
            texts = held if isinstance(held, dict) else [held] if isinstance(held, str) else []
            for text in texts:
                if not is_unicode(text):
                    named = (*trail, text) if isinstance(held, dict) else trail
                    raise FormatError(
                        f"{text!r} holds half a surrogate pair, which is no Unicode text", path=path, tensor=blame(named)
                    )
    return value


def _has_every_name(value: object, raw: bytes) -> bool:
    """Whether no name in `raw`, parsed as `value`, can have occurred twice.

    A document has a colon after every name, so it has at most as many names as colons. Where that many names were kept, at
    the top and directly below it, none was lost.
    """
    if not isinstance(value, dict):
        return False
    return len(value) + sum(len(held) for held in value.values() if isinstance(held, dict)) == raw.count(b":")


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # not a size, though Python would parse it as 0


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: it holds no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _walk(value: Any) -> Iterator[tuple[Trail, Any]]:
    """Every value of a document, in order, with the names that lead to it."""
    pending: list[tuple[Trail, Any]] = [((), value)]
    while pending:
        at, held = pending.pop()
        yield at, held
        if isinstance(held, dict):
            pending.extend(((*at, name), inner) for name, inner in reversed(held.items()))
        elif isinstance(held, list):
            pending.extend((at, inner) for inner in reversed(held))


class Node:
    """A value in a document, and its place. Its methods raise a FormatError, which names the place, where the value has
    another type.
    """

    def __init__(self, value: Any, *, path: str, where: str = "", tensor: str | None = None) -> None:
        self.value = value
        self._path = path
        self._where = where
        self._tensor = tensor

    def refuse(self, message: str) -> FormatError:
        """Return the error to raise for this value."""
        return FormatError(f"{self._where}: {message}" if self._where else message, path=self._path, tensor=self._tensor)

    def blaming(self, tensor: str) -> Node:
        """The same value; errors from here on name that tensor."""
        return Node(self.value, path=self._path, tensor=tensor)

    def _expected(self, what: str) -> FormatError:
        return self.refuse(f"expected {what}, found {self.value!r:.60}")

    def _inner(self, value: Any, where: str) -> Node:
        return Node(value, path=self._path, where=f"{self._where}.{where}" if self._where else where, tensor=self._tensor)

    def __contains__(self, key: str) -> bool:
        return key in self.members()

    def __getitem__(self, key: str) -> Node:
        """A member of an object. Raises FormatError where it is missing."""
        table = self.members()
        if key not in table:
            raise self.refuse(f"{key!r} is missing")
        return self._inner(table[key], key)

    def members(self) -> dict[str, Any]:
        """The members of an object, as plain values."""
        if not isinstance(self.value, dict):
            raise self._expected("an object")
        return self.value

    def items(self) -> Iterator[tuple[str, Node]]:
        """The members of an object, as nodes."""
        for key, value in self.members().items():
            yield key, self._inner(value, key)

    def elements(self, count: int | None = None) -> list[Node]:
        """The elements of a list; `count` of them where that is given."""
        if not isinstance(self.value, list) or count not in (None, len(self.value)):
            raise self._expected("a list" if count is None else f"a list of {count}")
        return [self._inner(value, str(at)) for at, value in enumerate(self.value)]

    def optional(self) -> Self | None:
        """None for null, else the same."""
        return None if self.value is None else self

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self._expected("text")
        return self.value

    def line(self) -> str:
        """A string that is one printable line."""
        if not self.text().isprintable():
            raise self._expected("one line of text")
        return self.text()

    def integer(self, low: int = 0, high: int = MAX_SIZE) -> int:
        """A whole number from `low` to `high`."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self._expected(f"a whole number from {low} to {high}")
        return self.value

    def boolean(self) -> bool:
        """True or false."""
        if type(self.value) is not bool:
            raise self._expected("true or false")
        return self.value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A number from `low` to `high`."""
        if type(self.value) not in (int, float) or not abs(self.value) <= sys.float_info.max or not low <= self.value <= high:
            raise self._expected(f"a number from {low} to {high}" if math.isfinite(low) else "a number")
        return float(self.value)

    def file_name(self) -> str:
        """The name of a file in a directory, without a path."""
        name = self.text()
        if not is_plain_name(name):
            raise self.refuse(f"{name!r} is not a plain file name")
        return name

    def file_path(self) -> str:
        """A path of plain names below a directory."""
        for part in self.text().split("/"):
            if not is_plain_name(part):
                raise self.refuse(f"{part!r} is not a plain file name")
        return self.text()


def is_plain_name(name: object) -> bool:
    """Whether `name` is the name of a file in a directory, without a path."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
