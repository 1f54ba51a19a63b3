"""Text for people: one safe line, sizes, sets of layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lswap_core.errors import RecipeError


def one_line(text: str) -> str:
    r"""`text` with every character that cannot be printed escaped.

    >>> one_line("a\nb"), one_line("\x1b[2J é")
    ('a\\nb', '\\x1b[2J é')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str) -> str:
    """A number and its noun, in the plural unless the number is 1.

    >>> counted(1, "tensor"), counted(2, "tensor")
    ('1 tensor', '2 tensors')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


_UNITS = {"B": 1, **{f"{p}B": 1000**k for k, p in enumerate("KMGTP", 1)}, **{f"{p}IB": 1024**k for k, p in enumerate("KMGTP", 1)}}

_MAX_LENGTH = 24

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", re.ASCII)


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def parse_size(text: str) -> int:
    """Parse a size in bytes: decimal units (kB, MB, GB) are powers of 1,000, binary ones (KiB, MiB, GiB) of 1,024.

    >>> parse_size("5GB"), parse_size("1.5 GiB"), parse_size("4096")
    (5000000000, 1610612736, 4096)
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) < _MAX_LENGTH else None
    unit = _UNITS.get(match[2].upper() or "B") if match else None
    if match is None or unit is None:
        raise RecipeError(f"{text!r} is not a size; write it like 5GB, 500MB or 2GiB")
    size_bytes = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if size_bytes == 0:
        raise RecipeError(f"{text!r} is no size to fill; write it like 5GB, 500MB or 2GiB")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """`size_bytes` in decimal units, as disks and the hub count.

    >>> format_size(999), format_size(3_140_000_000), format_size(69_000_000_000)
    ('999 B', '3.1 GB', '69.0 GB')
    """
    value, units = float(size_bytes), ["TB", "GB", "MB", "kB", "B"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop()
    return f"{size_bytes} B" if units[-1] == "B" else f"{value:.1f} {units[-1]}"


_MAX_DIGITS = 5


def parse_layers(text: str) -> tuple[int, ...]:
    """Parse layer numbers of the command line; ranges include both ends.

    >>> parse_layers("0-3,30,31")
    (0, 1, 2, 3, 30, 31)
    """
    numbers: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not all(n.isascii() and n.isdecimal() and len(n) <= _MAX_DIGITS for n in ((first, last) if dash else (first,))):
            raise RecipeError(f"{text!r} is no list of layers; write it like 0-3,30,31")
        begin, end = int(first), int(last or first)
        if begin > end:
            raise RecipeError(f"{piece.strip()!r} in {text!r} is no range of layers; write it like 0-3,30,31")
        numbers.extend(range(begin, end + 1))
    return tuple(sorted(set(numbers)))
