"""Sizes in bytes as people write and read them: `5GB`, `512MiB`, `3.1 GB`."""

from __future__ import annotations

import re

from lswap_core.errors import RecipeError

_UNITS = {"B": 1, **{f"{p}B": 1000**k for k, p in enumerate("KMGTP", 1)}, **{f"{p}IB": 1024**k for k, p in enumerate("KMGTP", 1)}}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes in `text`: decimal units (kB, MB, GB) are powers of 1,000, binary ones (KiB, MiB, GiB) of 1,024.

    >>> parse_size("5GB"), parse_size("1.5 GiB"), parse_size("4096")
    (5000000000, 1610612736, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
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
