"""Statistics of tensors in files: those of the same bytes in memory, whatever reads them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from lswap_core import kernels
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.errors import StalePlanError
from lswap_core.kernels.backend import FileRange
from lswap_core.kernels.difference import BLOCK_ELEMENTS, DifferenceStats
from tests.kernels.conformance.cases import FLOATS, ordinary, random_bits

BACKENDS = [name for name in ("native", "reference") if name in kernels.available_backends()]
PAIRS = [(0, 1), (2, 0), (2, 1), (1, 1)]


@contextmanager
def opened(*files: tuple[Path, int]) -> Iterator[list[FileRange]]:
    with ExitStack() as stack:
        ranges = []
        for path, begin in files:
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            ranges.append(FileRange(fd, begin, str(path)))
        yield ranges


def scratch(size: int) -> memoryview:
    return memoryview(bytearray(b"\xa5" * size))


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 70_001])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_files_give_what_their_bytes_give(backend: str, dtype: str, count: int, tmp_path: Path) -> None:
    width = DTYPES[dtype].bits // 8
    data = [ordinary(dtype, count, 1).tobytes(), random_bits(dtype, count, 2).tobytes(), ordinary(dtype, count, 3).tobytes()]
    begins = [0, 13, 4096 + 8]
    for number, (each, begin) in enumerate(zip(data, begins, strict=True)):
        (tmp_path / str(number)).write_bytes(b"\x7f" * begin + each + b"\x7f" * 5000)
    earlier = [random_bits(dtype, BLOCK_ELEMENTS, 4).tobytes(), ordinary(dtype, BLOCK_ELEMENTS, 5).tobytes()]
    before = [kernels.stats(*earlier, dtype=dtype, backend="reference"), *[DifferenceStats()] * (len(PAIRS) - 1)]
    expected = [
        kernels.stats(data[x], data[y], dtype=dtype, before=first, backend="reference").to_json()
        for (x, y), first in zip(PAIRS, before, strict=True)
    ]
    blocks = 3 * (BLOCK_ELEMENTS * width + 64)
    with opened(*((tmp_path / str(number), begin) for number, begin in enumerate(begins))) as ranges:
        for size in (blocks, 2 * blocks - 1, 7 * blocks + 40, 1 << 20):
            found = kernels.stats_of_files(
                ranges, PAIRS, count, dtype=dtype, before=before, scratch=scratch(size), backend=backend
            )
            assert [each.to_json() for each in found] == expected
            assert all(os.lseek(each.descriptor, 0, os.SEEK_CUR) == 0 for each in ranges)


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_that_are_read_in_small_pieces(backend: str, tmp_path: Path) -> None:
    table = Path("/proc/kallsyms")  # the kernel gives a page or so at a time, whatever is asked for
    if not table.exists() or not (data := table.read_bytes()):
        pytest.skip("there is no /proc/kallsyms to read")
    copy = tmp_path / "copy"
    copy.write_bytes(data[1000:])
    with opened((table, 1000), (copy, 0)) as ranges:
        assert len(os.pread(ranges[0].descriptor, 1 << 17, 0)) < 1 << 17
        found = kernels.stats_of_files(
            ranges, [(0, 1)], 300_000, dtype="F8_E5M2", before=[DifferenceStats()], scratch=scratch(1 << 18), backend=backend
        )
    values = np.frombuffer(data[1000:301_000], np.uint8)
    assert (found[0].count, found[0].differing, found[0].sum_abs) == (300_000, 0, 0)
    assert found[0].x_nonfinite == found[0].y_nonfinite == int((values & 0x7C == 0x7C).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_ends_too_soon_is_named(backend: str, tmp_path: Path) -> None:
    for name, size in (("x", 10_000), ("y", 9_999)):
        (tmp_path / name).write_bytes(bytes(size))
    with opened((tmp_path / "x", 0), (tmp_path / "y", 0)) as ranges, pytest.raises(StalePlanError, match=r"y: became shorter"):
        kernels.stats_of_files(
            ranges, [(0, 1)], 5000, dtype="BF16", before=[DifferenceStats()], scratch=scratch(4224), backend=backend
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_read_is_named(backend: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(8))
    with opened((tmp_path / "x", 0), (tmp_path, 0)) as ranges, pytest.raises(IsADirectoryError) as caught:
        kernels.stats_of_files(
            ranges, [(0, 1)], 4, dtype="BF16", before=[DifferenceStats()], scratch=scratch(4224), backend=backend
        )
    assert (caught.value.filename, caught.value.errno) == (str(tmp_path), errno.EISDIR)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"count": -1}, r"count is -1"),
        ({"dtype": "I32"}, r"dtype is I32"),
        ({"before": []}, r"1 pairs, but 0 statistics"),
        ({"pairs": [(0, 2)]}, r"pair \(0, 2\) names no two of 2 ranges"),
        ({"pairs": [(-1, 0)]}, r"pair \(-1, 0\) names no two of 2 ranges"),
        ({"before": [DifferenceStats(count=5)]}, r"before covers 5 elements"),
        ({"scratch": memoryview(bytearray(4223))}, r"scratch has 4223 bytes to write to; expected 2112 or more for each"),
        ({"scratch": memoryview(bytes(8192))}, r"scratch has 8192 bytes to write to"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_is_named(backend: str, changed: dict[str, object], words: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(64))
    sound = {"pairs": [(0, 1)], "count": 4, "dtype": "BF16", "before": [DifferenceStats()], "scratch": scratch(4224)}
    with opened((tmp_path / "x", 0), (tmp_path / "x", 8)) as ranges, pytest.raises(ValueError, match=words):
        kernels.stats_of_files(ranges, backend=backend, **sound | changed)  # type: ignore[arg-type]
