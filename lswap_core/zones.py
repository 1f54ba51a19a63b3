"""Which layers are whose, as numbers: lang's share of each, and layer numbers as people write them."""

from __future__ import annotations

from dataclasses import dataclass


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
