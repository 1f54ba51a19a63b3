"""Batches on a device: whole tiles and tails, aligned and not, several weights, and statistics that go on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.kernels import reference
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.kernels.gpu.batch import Operands, from_row, to_row
from lswap_core.kernels.gpu.device import DeviceBackend, blend_batch
from tests.kernels.conformance import cases
from tests.kernels.conformance.backends import BACKENDS, backend_or_skip
from tests.kernels.conformance.cases import FLOATS, Bits

DEVICE_BACKENDS = ("triton", "cuda", "cuda, emulated")
POISON = 0xA5


@dataclass
class Item:
    """One tensor of a batch: x and y, and how many elements each operand lies off a 16-byte boundary."""

    x: Bits
    y: Bits
    weight: float
    off: tuple[int, int, int] = (0, 0, 0)


def ordinary_items(dtype: str) -> list[Item]:
    big = 70_003
    infinite = cases.ordinary(dtype, big, 5)
    infinite[big // 2] = np.asarray(np.inf, np.float64).astype(cases.NUMPY[dtype]).view(cases.word(dtype))
    return [
        Item(cases.ordinary(dtype, big, 1), cases.ordinary(dtype, big, 2), 0.25),
        Item(*(cases.ordinary(dtype, 0, seed) for seed in (1, 2)), 0.5),
        Item(*(cases.ordinary(dtype, 1, seed) for seed in (3, 4)), 1.0),
        Item(infinite, cases.ordinary(dtype, big, 6), 0.7),
        Item(*(cases.ordinary(dtype, 65_536, seed) for seed in (7, 8)), 1 / 3, (1, 0, 0)),
        Item(*(cases.ordinary(dtype, 65_536, seed) for seed in (9, 10)), 1 / 3, (0, 0, 3)),
        Item(*(cases.random_bits(dtype, 65_537, seed) for seed in (11, 12)), 1e-30),
        Item(*(cases.spread(dtype, 66_000, seed) for seed in (13, 14)), 0.9),
    ]


def placed(data: Bits, off: int, device: torch.device) -> torch.Tensor:
    """Raw bytes on the device, `off` elements after a 16-byte boundary."""
    whole = torch.empty(data.nbytes + 64, dtype=torch.uint8, device=device)
    begin = -whole.data_ptr() % 16 + off * data.itemsize
    part = whole[begin : begin + data.nbytes]
    part.copy_(torch.from_numpy(data.view(np.uint8).copy()))
    return part


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", DEVICE_BACKENDS)
def test_a_batch_gives_each_tensor_what_the_reference_gives_it(backend: str, dtype: str) -> None:
    found = backend_or_skip(backend)
    assert isinstance(found, DeviceBackend)
    kind, items = DTYPES[dtype], ordinary_items(dtype)
    if slow := BACKENDS[backend].speed == "slow":
        items = [items[0], items[2], items[6]]
    before = DifferenceStats(1024, 3, 0.25, 1.5, 2.0, -0.5, 1e3, 1e-3, 4, 5)
    operands, outs, kept = [], [], []
    for item in items:
        x, y, out = (placed(side, off, found.device) for side, off in zip((item.x, item.y, item.x), item.off, strict=True))
        out.fill_(POISON)
        outs.append(out)
        kept += [x, y]
        operands.append(Operands(x.data_ptr(), y.data_ptr(), out.data_ptr(), len(item.x), item.weight))
    runs = []
    for _ in range(1 if slow else 2):
        statistics = torch.tensor([to_row(before)] * len(items), dtype=torch.float64).to(found.device)
        blend_batch(found.launcher, operands, kind, statistics)
        runs.append(statistics.tolist())
    for number, item in enumerate(items):
        expected = np.full(item.x.nbytes, POISON, np.uint8)
        statistics = reference.blend_stats(item.x.view(np.uint8), item.y.view(np.uint8), item.weight, kind, expected, before)
        assert outs[number].cpu().numpy().tobytes() == expected.tobytes(), f"tensor {number}"
        assert from_row(runs[0][number]).to_json() == statistics.to_json(), f"tensor {number}"
    assert all([from_row(row).to_json() for row in run] == [from_row(row).to_json() for row in runs[0]] for run in runs)


def test_an_empty_batch_is_nothing() -> None:
    found = backend_or_skip("cuda, emulated")
    assert isinstance(found, DeviceBackend)
    blend_batch(found.launcher, [], DTYPES["BF16"], torch.zeros((0, 10), dtype=torch.float64))
