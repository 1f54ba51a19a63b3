"""`lswap_core.torch`: the operator on tensors as users have them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lswap_core import kernels
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.kernels.gpu.batch import to_row
from lswap_core.torch import FLOATS, blend_on_device, blend_stats, blend_stats_batch, difference
from tests.kernels.conformance.backends import backend_or_skip

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def pair(dtype: torch.dtype, *shape: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    torch.manual_seed(sum(shape))
    x = torch.randn(shape).to(dtype)
    y = torch.where(torch.rand(shape) < 0.3, x.float(), x.float() + 0.1 * torch.randn(shape)).to(dtype)
    return x.to(device), y.to(device)


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def expected(x: Tensor, y: Tensor, weight: float) -> tuple[bytes, list[float]]:
    out = bytearray(len(raw(x)))
    found = kernels.blend_stats(raw(x), raw(y), weight, dtype=FLOATS[x.dtype], out=out, backend="reference")
    return bytes(out), to_row(found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 1025), (2, 3, 4001)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bytes_and_statistics_are_those_of_the_kernels(dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    x, y = pair(dtype, *shape, device=device)
    out, statistics = blend_stats(x, y, 0.3)
    assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)
    assert (raw(out), statistics.tolist()) == expected(x, y, 0.3)
    assert difference(statistics).count == x.numel()


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_is_its_tensors(device: str) -> None:
    pairs = [pair(torch.bfloat16, *shape, device=device) for shape in ((5,), (70, 1000), (0,), (33, 31))]
    weights = [0.1, 0.5, 0.5, 1.0]
    outs, statistics = blend_stats_batch(*zip(*pairs, strict=True), weights)  # type: ignore[arg-type]
    for (x, y), weight, out, row in zip(pairs, weights, outs, statistics.tolist(), strict=True):
        assert (raw(out), row) == expected(x, y, weight)
    assert blend_stats_batch([], [], [])[0] == []


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_copied(device: str) -> None:
    whole = torch.full((3, 4096), -1.0, dtype=torch.bfloat16, device=device)
    x, y = pair(torch.bfloat16, 2048, device=device)
    out = whole[1, 1024:3072]
    before = out.data_ptr()
    found, _ = blend_stats(x, y, 0.5, out=out)
    assert found is out
    assert out.data_ptr() == before
    assert raw(whole[1, 1024:3072]) == expected(x, y, 0.5)[0]
    assert (whole[1, :1024] == -1).all()
    assert (whole[1, 3072:] == -1).all()


def test_operands_reach_the_kernels_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pair(torch.float16, 5000)
    out = torch.empty_like(x)
    seen: list[int] = []
    real = kernels.blend_stats

    def spy(*arguments: object, **options: object) -> object:
        seen.extend(side.ctypes.data for side in (arguments[0], arguments[1], options["out"]))  # type: ignore[attr-defined]
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "blend_stats", spy)
    blend_stats(x, y, 0.5, out=out)
    assert seen == [x.data_ptr(), y.data_ptr(), out.data_ptr()]


@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_is_registered_as_torch_wants_it(device: str) -> None:
    for dtype in FLOATS:
        x, y = pair(dtype, 3, 700, device=device)
        checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        if dtype.itemsize == 1:  # the others compute with the operands, and torch does not in fp8
            checks = ("test_autograd_registration", "test_faketensor")
        operands = ([x], [y], [0.25], [torch.empty_like(x)])
        torch.library.opcheck(torch.ops.lswap_core.blend_stats, operands, test_utils=checks)
    x, y = pair(torch.float32, 900, device=device)
    two = ([x, y], [y, x], [0.25, 0.5], [torch.empty_like(x), torch.empty_like(y)])
    torch.library.opcheck(torch.ops.lswap_core.blend_stats, two)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of itself
@pytest.mark.parametrize("device", DEVICES)
def test_torch_compile_traces_it_whole(device: str) -> None:
    def user(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out, statistics = blend_stats(x * 2, y, 0.5)
        return out + 1, statistics[2] / statistics[0]

    for backend in ("aot_eager", "inductor"):
        torch.compiler.reset()
        x, y = pair(torch.bfloat16, 64, 100, device=device)
        found, plain = torch.compile(user, fullgraph=True, backend=backend)(x, y), user(x, y)
        assert torch.equal(found[0], plain[0])
        assert torch.equal(found[1], plain[1])


def test_compiled_into_a_buffer_of_the_users() -> None:
    x, y = pair(torch.bfloat16, 3000)
    out = torch.zeros_like(x)
    torch.compile(lambda a, b, o: blend_stats(a, b, 0.5, out=o)[1], fullgraph=True, backend="aot_eager")(x, y, out)
    assert raw(out) == expected(x, y, 0.5)[0]


def test_parameters_that_want_gradients_are_fine() -> None:
    x, y = (torch.nn.Parameter(side) for side in pair(torch.float32, 40))
    out, _ = blend_stats(x, y, 0.5)
    assert raw(out) == expected(x, y, 0.5)[0]


X, Y = pair(torch.bfloat16, 4, 6)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "dtypes differ": (lambda: blend_stats(X, Y.float(), 0.5), r"y is torch\.float32, x is torch\.bfloat16"),
    "no float": (lambda: blend_stats(X.int(), Y.int(), 0.5), r"x is torch\.int32; the kernels compute in"),
    "shapes differ": (lambda: blend_stats(X, Y[:2], 0.5), r"y has shape \(2, 6\), x has \(4, 6\)"),
    "out too small": (lambda: blend_stats(X, Y, 0.5, out=torch.empty_like(X[0])), r"out has shape \(6,\), x has \(4, 6\)"),
    "x not contiguous": (lambda: blend_stats(X.t(), Y.t(), 0.5), r"x is not contiguous"),
    "y not contiguous": (lambda: blend_stats(X[:, :3].clone(), Y[:, :3], 0.5), r"y is not contiguous"),
    "out is x": (lambda: blend_stats(X, Y, 0.5, out=X), r"out and x overlap in memory"),
    "out is y": (lambda: blend_stats(X, Y, 0.5, out=Y), r"out and y overlap in memory"),
    "outs overlap": (
        lambda: blend_stats_batch([X[0], X[1]], [Y[0], Y[1]], [0.5, 0.5], out=[(o := torch.empty_like(X[0])), o]),
        r"out\[0\] and out\[1\] overlap",
    ),
    "out is another's x": (
        lambda: blend_stats_batch([X[0], X[1]], [Y[0], Y[1]], [0.5, 0.5], out=[torch.empty_like(X[0]), X[0]]),
        r"out\[1\] and x\[0\] overlap",
    ),
    "negative weight": (lambda: blend_stats(X, Y, -0.5), r"weight is -0\.5; expected a weight"),
    "weight is nan": (lambda: blend_stats(X, Y, float("nan")), r"weight is nan; expected a weight"),
    "one weight missing": (lambda: blend_stats_batch([X, X], [Y, Y], [0.5]), r"2 x, 2 y, 1 weights"),
    "a weight too large": (lambda: blend_stats_batch([X, X], [Y, Y], [0.5, 2]), r"weights\[1\] is 2"),
    "elsewhere": (lambda: blend_stats(X.to("meta"), Y, 0.5), r"y is on cpu, x is on meta"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what: str) -> None:
    call, words = BAD[what]
    with pytest.raises(ValueError, match=words):
        call()


def test_tensors_on_a_device_go_to_its_kernels_in_one_batch() -> None:
    """The path of CUDA tensors, with kernels that take tensors in the CPU's memory."""
    backend = backend_or_skip("cuda, emulated")
    pairs = [pair(torch.float16, *shape) for shape in ((7,), (40, 1000), (0,))]
    x, y = ([sides[k] for sides in pairs] for k in (0, 1))
    out = [torch.empty_like(side) for side in x]
    statistics = blend_on_device(backend.launcher, x, y, [0.2, 0.4, 0.6], out, DTYPES["F16"])  # type: ignore[attr-defined]
    for number, weight in enumerate((0.2, 0.4, 0.6)):
        assert (raw(out[number]), statistics[number].tolist()) == expected(x[number], y[number], weight)


def test_torch_comes_only_with_this_module() -> None:
    code = "import sys, lswap_core, lswap_core.verbs.merge, lswap_core.kernels; assert 'torch' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
