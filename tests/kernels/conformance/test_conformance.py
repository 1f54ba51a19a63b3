"""One suite for every backend: the bytes and the statistics of the reference, whatever goes in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.kernels import reference
from lswap_core.kernels.backend import Backend
from lswap_core.kernels.difference import DifferenceStats
from tests.kernels.conformance import cases
from tests.kernels.conformance.backends import BACKENDS, Speed, backend_or_skip
from tests.kernels.conformance.cases import FLOATS, Case

GUARD_BYTES = 256
POISON = 0xA5
SLOW_ALONE_BYTES = 3000
"""The largest operands that slow backends compare alone, too, without blending."""


@dataclass(frozen=True)
class Subject:
    name: str
    backend: Backend
    speed: Speed
    exact_statistics: bool

    def agrees(self, found: DifferenceStats, expected: DifferenceStats) -> bool:
        if self.exact_statistics:
            return found.to_json() == expected.to_json()  # text for NaN, which a sum of overflows may be
        return all(_near(name, value, expected) for name, value in asdict(found).items())


def _near(name: str, value: float, expected: DifferenceStats) -> bool:
    other = getattr(expected, name)
    if isinstance(other, int) or name == "max_abs" or not math.isfinite(other):
        return value == other or not (math.isfinite(value) or math.isfinite(other))
    scale = math.sqrt(expected.x_squares * expected.y_squares) if name == "dot" else abs(other)
    return abs(value - other) <= 1e-6 * scale


@pytest.fixture(params=BACKENDS)
def subject(request: pytest.FixtureRequest) -> Subject:
    entry = BACKENDS[request.param]
    return Subject(request.param, backend_or_skip(request.param), entry.speed, entry.exact_statistics)


class Guarded:
    """A poisoned buffer with guard bytes before and after, `misalignment` bytes off a 64-byte boundary."""

    def __init__(self, size: int, misalignment: int = 0) -> None:
        self._whole = np.full(size + 2 * GUARD_BYTES + 128, POISON, np.uint8)
        begin = GUARD_BYTES + -(self._whole.ctypes.data + GUARD_BYTES) % 64 + misalignment
        self.view: NDArray[np.uint8] = self._whole[begin : begin + size]
        self._outside = (slice(0, begin), slice(begin + size, None))

    @classmethod
    def holding(cls, data: bytes, misalignment: int = 0) -> Guarded:
        made = cls(len(data), misalignment)
        made.view[:] = np.frombuffer(data, np.uint8)
        return made

    def bytes(self) -> bytes:
        assert all((self._whole[part] == POISON).all() for part in self._outside), "written outside the buffer"
        return self.view.tobytes()


def makes(subject: Subject) -> tuple[Callable[[str, int, int], cases.Bits], ...]:
    return (cases.random_bits,) if subject.speed == "slow" else (cases.ordinary, cases.random_bits)


@cache
def expected_blend(case: Case) -> tuple[bytes, DifferenceStats]:
    out = np.full(len(case.x), POISON, np.uint8)
    x, y = (np.frombuffer(side, np.uint8) for side in (case.x, case.y))
    found = reference.blend_stats(x, y, case.weight, DTYPES[case.dtype], out, DifferenceStats())
    return out.tobytes(), found


@cache
def blend_cases(dtype: str, speed: Speed) -> tuple[Case, ...]:
    return tuple(cases.blends(dtype, speed))


def check_blend(subject: Subject, case: Case, misaligned: tuple[int, int, int] = (0, 0, 0)) -> None:
    dtype = DTYPES[case.dtype]
    x, y = Guarded.holding(case.x, misaligned[0]), Guarded.holding(case.y, misaligned[1])
    out = Guarded(len(case.x), misaligned[2])
    found = subject.backend.blend_stats(x.view, y.view, case.weight, dtype, out.view, DifferenceStats())
    expected, statistics = expected_blend(case)
    assert_equal_bytes(out.bytes(), expected, case)
    assert subject.agrees(found, statistics), f"{case.name}: {found} is not {statistics}"
    assert (x.bytes(), y.bytes()) == (case.x, case.y), f"{case.name}: an input was changed"
    if subject.speed == "slow" and len(case.x) > SLOW_ALONE_BYTES:
        return
    alone = subject.backend.stats(x.view, y.view, dtype, DifferenceStats())
    assert subject.agrees(alone, statistics), f"{case.name}: alone, {alone} is not {statistics}"


def assert_equal_bytes(found: bytes, expected: bytes, case: Case) -> None:
    if found == expected:
        return
    kind = cases.word(case.dtype)
    sides = [np.frombuffer(side, kind) for side in (case.x, case.y, found, expected)]
    wrong = np.flatnonzero(sides[2] != sides[3])
    shown = "; ".join("[{}] x {:#x} y {:#x}: {:#x}, expected {:#x}".format(i, *(int(s[i]) for s in sides)) for i in wrong[:5])
    raise AssertionError(f"{case.dtype}, {case.name}: {len(wrong)} of {len(sides[0])} elements differ: {shown}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_blend_and_statistics(subject: Subject, dtype: str) -> None:
    for case in blend_cases(dtype, subject.speed):
        check_blend(subject, case)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_size(subject: Subject, dtype: str) -> None:
    for size in cases.SLOW_SIZES if subject.speed == "slow" else cases.SIZES:
        for make in makes(subject):
            x, y = make(dtype, size, 11), make(dtype, size, 12)
            check_blend(subject, Case(f"{make.__name__}, {size} elements", dtype, x.tobytes(), y.tobytes(), 0.4))


@pytest.mark.parametrize(
    "misaligned", [(1, 0, 0), (0, 2, 0), (0, 0, 1), (0, 0, 4), (1, 2, 3), (8, 8, 8), (16, 16, 16), (3, 32, 17)]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_misaligned_buffers(subject: Subject, dtype: str, misaligned: tuple[int, int, int]) -> None:
    if subject.speed == "slow" and misaligned not in ((1, 2, 3), (0, 0, 4)):
        pytest.skip("slow backends get a share of the cases")
    for make in makes(subject):
        x, y = make(dtype, 2500, 13), make(dtype, 2500, 14)
        check_blend(subject, Case(f"{make.__name__}, off by {misaligned}", dtype, x.tobytes(), y.tobytes(), 0.6), misaligned)


@pytest.mark.parametrize("dtype", FLOATS)
def test_chunks_continue_to_the_statistics_of_the_whole(subject: Subject, dtype: str) -> None:
    width = cases.word(dtype).itemsize
    for make in makes(subject):
        x, y = (np.frombuffer(make(dtype, 9000, seed).tobytes(), np.uint8) for seed in (15, 16))
        whole = reference.stats(x, y, DTYPES[dtype], DifferenceStats())
        blended = alone = DifferenceStats()
        for begin, end in ((0, 0), (0, 1024), (1024, 6144), (6144, 9000)):
            part = slice(begin * width, end * width)
            out = Guarded((end - begin) * width)
            blended = subject.backend.blend_stats(x[part], y[part], 0.5, DTYPES[dtype], out.view, blended)
            alone = blended if subject.speed == "slow" else subject.backend.stats(x[part], y[part], DTYPES[dtype], alone)
        assert subject.agrees(blended, whole), make.__name__
        assert subject.agrees(alone, whole), make.__name__


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [(1.0,), (0.25, 0.75), (0.2, 0.3, 0.5), (0.1, 0.0, 0.2, 0.3, 0.4), (0.125,) * 8])
def test_weighted_sum_of_many(subject: Subject, dtype: str, weights: tuple[float, ...]) -> None:
    for make in (*makes(subject), cases.spread):
        for count in (0, 1, 1000) if subject.speed == "slow" else (0, 1, 17, 1024, 5003):
            sides = [make(dtype, count, 20 + number) for number in range(len(weights))]
            for side in sides[1:]:
                side[::3] = sides[0][::3]  # where all agree, the bits stay
            raw = [np.frombuffer(side.tobytes(), np.uint8) for side in sides]
            expected, out = Guarded(len(raw[0])), Guarded(len(raw[0]), misalignment=cases.word(dtype).itemsize)
            reference.blend_many(raw, weights, DTYPES[dtype], expected.view)
            subject.backend.blend_many(raw, list(weights), DTYPES[dtype], out.view)
            case = Case(
                f"{make.__name__}, {count} elements, weights {weights}", dtype, sides[0].tobytes(), sides[-1].tobytes(), 0
            )
            assert_equal_bytes(out.bytes(), expected.bytes(), case)


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_cast(subject: Subject, source: str, target: str) -> None:
    for name, data in cases.cast_inputs(source, target, subject.speed):
        for misalignment in (0, 1):
            x = Guarded.holding(data, misalignment)
            size = len(data) // cases.word(source).itemsize * cases.word(target).itemsize
            expected, out = Guarded(size), Guarded(size, misalignment)
            reference.cast(x.view, DTYPES[source], expected.view, DTYPES[target])
            subject.backend.cast(x.view, DTYPES[source], out.view, DTYPES[target])
            if out.bytes() != expected.bytes():
                found, right = (np.frombuffer(b.bytes(), cases.word(target)) for b in (out, expected))
                i = int(np.flatnonzero(found != right)[0])
                pattern = int(np.frombuffer(data, cases.word(source))[i])
                raise AssertionError(
                    f"{name}: {source} {pattern:#x} became {target} {int(found[i]):#x}, expected {int(right[i]):#x}"
                )
