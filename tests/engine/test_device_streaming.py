"""Blends streamed through slots: the bytes and the statistics of blending on the CPU, however pieces end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lswap_core import kernels, merge
from lswap_core.checkpoint.catalogue import TensorRef
from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.cli import main
from lswap_core.engine.device_streaming import StreamingEvaluator
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import RecipeError
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.kernels.gpu import slots
from lswap_core.recipe.expressions import Average, Blend, Copy
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.verbs import execute
from tests.build import HANG_SECONDS, llama_pair, tree

SLOT_BYTES = 8192


class LateSlot:
    """A slot whose device computes when it is waited for. It checks that nobody touches what is under way."""

    def __init__(self) -> None:
        self.x, self.y, self.out = (memoryview(bytearray(SLOT_BYTES)) for _ in range(3))
        self.work: tuple[int, float, DType, Later | None, Later] | None = None
        self.sent = b""

    def submit(self, size_bytes: int, weight: float, dtype: DType, before: object | None) -> object:
        assert self.work is None
        assert before is None or isinstance(before, Later)
        self.sent = bytes(self.x[:size_bytes]) + bytes(self.y[:size_bytes])
        self.out[:] = b"\xa5" * SLOT_BYTES
        self.work = (size_bytes, weight, dtype, before, Later())
        return self.work[-1]

    def wait(self) -> DifferenceStats:
        if self.work is None:
            return DifferenceStats()
        size, weight, dtype, before, later = self.work
        assert self.sent == bytes(self.x[:size]) + bytes(self.y[:size]), "an operand was changed under way"
        assert before is None or before.statistics is not None, "pieces come back in order"
        start = DifferenceStats() if before is None or before.statistics is None else before.statistics
        x, y = self.sent[:size], self.sent[size:]
        later.statistics = kernels.blend_stats(x, y, weight, dtype=dtype, out=self.out[:size], before=start)
        self.work = None
        return later.statistics


class Later:
    statistics: DifferenceStats | None = None


class Memory:
    """A source that holds tensors by file name."""

    def __init__(self, **tensors: bytes) -> None:
        self.tensors = tensors

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.tensors[ref.file][offset : offset + len(buffer)]


def ref(file: str, dtype: str, count: int) -> TensorRef:
    return TensorRef("math", file, DTYPES[dtype], (count,), 0, count * DTYPES[dtype].bits // 8)


def blend(count: int, dtype: str, cast_from: str | None = None) -> tuple[Blend, Memory]:
    rng = np.random.default_rng(count)
    other = cast_from or dtype
    x, y = (rng.integers(0, 256, count * DTYPES[d].bits // 8, np.uint8).tobytes() for d in (dtype, other))
    lang = Copy(ref("y", other, count), DTYPES[dtype] if cast_from else None)
    return Blend(Copy(ref("x", dtype, count)), lang, 0.3), Memory(x=x, y=y)


def gathered(evaluator: Evaluator, made_of: Average | Blend) -> tuple[bytes, DifferenceStats]:
    data, statistics = bytearray(), DifferenceStats()
    for chunk in evaluator.chunks(made_of):
        assert chunk.offset == len(data)
        data += chunk.data
        statistics = chunk.statistics
    return bytes(data), statistics


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize(
    ("dtype", "cast_from"), [("BF16", None), ("F32", None), ("F8_E4M3", None), ("BF16", "F32"), ("F32", "F16")]
)
@pytest.mark.parametrize("count", [0, 1, 4096, 4097, 50_001])
def test_streamed_is_as_blended_on_the_cpu(count: int, dtype: str, cast_from: str | None, slots: int) -> None:
    made_of, source = blend(count, dtype, cast_from)
    streamed = StreamingEvaluator(source, kernels, [LateSlot() for _ in range(slots)])
    found, expected = gathered(streamed, made_of), gathered(Evaluator(source, kernels), made_of)
    assert found[0] == expected[0]
    assert found[1].to_json() == expected[1].to_json()


def test_averages_pass_by_the_slots() -> None:
    rng = np.random.default_rng(4)
    count = 9_999
    source = Memory(**{name: rng.integers(0, 256, 2 * count, np.uint8).tobytes() for name in "xyz"})
    made_of = Average(tuple(Copy(ref(name, "BF16", count)) for name in "xyz"), (0.5, 0.25, 0.25))
    slot = LateSlot()
    found = gathered(StreamingEvaluator(source, kernels, [slot]), made_of)
    assert found == gathered(Evaluator(source, kernels), made_of)
    assert found[1] == DifferenceStats()
    assert slot.sent == b""


def test_threads_share_the_slots_and_never_wait_for_each_other_in_a_ring() -> None:
    made_of, source = blend(60_000, "BF16")
    expected = gathered(Evaluator(source, kernels), made_of)[0]
    streamed = StreamingEvaluator(source, kernels, [LateSlot() for _ in range(3)])
    together = threading.Barrier(8)

    def work(_: int) -> bytes:
        together.wait()
        return gathered(streamed, made_of)[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(8), timeout=HANG_SECONDS)) == {expected}


def test_slots_come_back_from_work_that_is_given_up() -> None:
    made_of, source = blend(60_000, "BF16")
    streamed = StreamingEvaluator(source, kernels, [LateSlot() for _ in range(3)])
    for _ in range(4):
        chunks = streamed.chunks(made_of)
        next(chunks)
        chunks.close()
    assert gathered(streamed, made_of)[0] == gathered(Evaluator(source, kernels), made_of)[0]


def test_slots_come_back_from_a_source_that_fails() -> None:
    made_of, source = blend(60_000, "BF16")
    streamed = StreamingEvaluator(source, kernels, [LateSlot() for _ in range(3)])
    y = source.tensors.pop("y")
    for _ in range(4):
        with pytest.raises(KeyError):
            gathered(streamed, made_of)
    source.tensors["y"] = y
    assert gathered(streamed, made_of)[0] == gathered(Evaluator(source, kernels), made_of)[0]


@pytest.fixture
def experts(tmp_path: Path) -> tuple[str, str]:
    made = llama_pair(tmp_path / "experts")
    return str(made.math), str(made.lang)


def test_a_merge_on_a_device_is_the_merge(experts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "open_slots", lambda: [LateSlot() for _ in range(3)])
    recipe = LayerSwap(bottom=1, top=1, transition=1)
    for device in execute.DEVICES:
        (tmp_path / device).mkdir()
        merge(recipe, math=experts[0], lang=experts[1], into=tmp_path / device / "out", device=device)
    assert tree(tmp_path / "cuda") == tree(tmp_path / "cpu") == tree(tmp_path / "auto")


def test_a_device_that_is_not_there_is_one_line_and_status_4(
    experts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    command = ["merge", "--math", experts[0], "--lang", experts[1], "--bottom", "1", "--out", str(tmp_path / "out")]
    assert main.main([*command, "--device", "cuda"]) == RecipeError.exit_code == 4
    said = capsys.readouterr()
    assert said.err == "lswap-core: error: --device cuda: no CUDA device; --device cpu needs none\n"
    assert not (tmp_path / "out").exists()


def test_a_device_of_no_known_kind_is_refused(experts: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--device is 'abacus'; expected one of auto, cpu, cuda"):
        merge(LayerSwap(bottom=1), math=experts[0], lang=experts[1], into=tmp_path / "out", device="abacus")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_merge_on_a_gpu_is_the_merge(experts: tuple[str, str], tmp_path: Path) -> None:
    recipe = LayerSwap(bottom=1, top=1, transition=1)
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        merge(recipe, math=experts[0], lang=experts[1], into=tmp_path / device / "out", device=device)
    assert tree(tmp_path / "cuda") == tree(tmp_path / "cpu")
