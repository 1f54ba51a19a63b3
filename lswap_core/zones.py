"""Which layers are whose, as numbers: lang's share of each, and layer numbers as people write them."""

from __future__ import annotations

from dataclasses import dataclass

from lswap_core.errors import RecipeError

_MAX_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Zones:
    """Lang's share of each layer: 0 is math byte for byte, 1 is lang byte for byte, anything between is blended."""

    shares: tuple[float, ...]

    @property
    def lang(self) -> tuple[int, ...]:
        """Layers that are lang's."""
        return tuple(n for n, share in enumerate(self.shares) if share == 1)

    @property
    def blended(self) -> tuple[int, ...]:
        """Layers of the transition zones."""
        return tuple(n for n, share in enumerate(self.shares) if 0 < share < 1)

    @property
    def math(self) -> tuple[int, ...]:
        """Layers that are math's."""
        return tuple(n for n, share in enumerate(self.shares) if share == 0)


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer numbers as the command line has them; ranges include both ends.

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
