"""Digests of tensor bytes, `xxh3-128:<hex>`: fast enough to take from all bytes while they are in the cache."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import xxhash

from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Step

ALGORITHM = "xxh3-128"


class Digest:
    """A running digest."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._state.update(data)

    def text(self) -> str:
        """The digest of all bytes so far, `algorithm:hex`."""
        return f"{ALGORITHM}:{self._state.hexdigest()}"


class RunDigests:
    """Digests of neighbouring steps. The bytes are fed in order; some may be left out."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._begins = [step.begin for step in steps]
        self._digests = [Digest() for _ in steps]
        self._fed = [0] * len(steps)

    def feed(self, at: int, data: memoryview) -> None:
        """Add `data`, whose offset in the output file is `at`."""
        end = at + len(data)
        number = bisect_right(self._begins, at) - 1
        while number < len(self._steps) and self._begins[number] < end:
            begin, stop = max(self._begins[number], at), min(self._steps[number].end, end)
            if begin < stop:
                self._digests[number].update(data[begin - at : stop - at])
                self._fed[number] += stop - begin
            number += 1

    def records(self) -> list[StepRecord]:
        """One record for each step. A step whose bytes were not all fed has no digest."""
        return [
            StepRecord(step.name, digest.text() if fed == step.size_bytes else None)
            for step, digest, fed in zip(self._steps, self._digests, self._fed, strict=True)
        ]
