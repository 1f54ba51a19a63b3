"""Change maps as values, with the mean changes that a test plants."""

from __future__ import annotations

from collections.abc import Sequence

from lswap_core.analysis.changes import Change, ChangeMaps, TensorChange
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.checkpoint.names import Stack
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.manifest import FileRecord, SourceRecord

COUNT = 16


def stats(mean: float, *, cosine: float = 1.0, bad: int = 0) -> DifferenceStats:
    """16 elements of size 1 (x and y), each changed by `mean`."""
    n = float(COUNT)
    return DifferenceStats(COUNT, COUNT if mean else 0, n * mean, n * mean * mean, mean, n * cosine, n, n, bad, 0)


def planted(math: Sequence[float], lang: Sequence[float], *, base: bool = True, shape: tuple[int, ...] = (4, 4)) -> ChangeMaps:
    """One tensor per layer, with these mean changes."""
    roles = ("math", "lang", "base") if base else ("math", "lang")
    sources = tuple(SourceRecord(role, role, (FileRecord(f"{role}.safetensors", 9, "x"),)) for role in roles)
    tensors = {
        f"h.{number}.w": TensorChange(
            DTYPES["F32"], shape, Change(stats(abs(m - k)), stats(m), stats(k)) if base else Change(stats(abs(m - k)))
        )
        for number, (m, k) in enumerate(zip(math, lang, strict=True))
    }
    return ChangeMaps(sources, Stack("h", len(math)), tensors)
