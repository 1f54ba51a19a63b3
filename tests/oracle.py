"""What a layer swap must give, from the definition alone: numpy in fp64 and ml_dtypes, nothing of the package."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from tests.build import Model, Tensor

NUMPY = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
CANONICAL = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000, "F64": 0x7FF8000000000000, "F8_E4M3": 0x7F, "F8_E5M2": 0x7F}


def values(t: Tensor) -> np.ndarray:
    """Elements as fp64, exactly."""
    return np.frombuffer(t.data, NUMPY[t.dtype]).astype(np.float64)


def round_to_fp32(exact: np.ndarray) -> np.ndarray:
    """fp64 rounded to fp32 and held in fp64."""
    return exact.astype(np.float32).astype(np.float64)


def blend(x: Tensor, y: Tensor, weight: float) -> bytes:
    """The blend of design section 7. A product of two fp32 values is exact in fp64, and so are w0 and w1."""
    with np.errstate(all="ignore"):
        if x.dtype == "F64":
            mixed = (1 - weight) * values(x) + weight * values(y)
        else:
            w1 = float(np.float32(weight))
            w0 = float(np.float32(1) - np.float32(weight))
            mixed = round_to_fp32(round_to_fp32(w0 * values(x)) + round_to_fp32(w1 * values(y)))
        rounded = mixed.astype(np.float32).astype(NUMPY[x.dtype]) if x.dtype != "F64" else mixed
        word = f"u{np.dtype(NUMPY[x.dtype]).itemsize}"
        bits = rounded.view(word).copy()
        bits[np.isnan(rounded.astype(np.float64))] = CANONICAL[x.dtype]
    x_bits, y_bits = np.frombuffer(x.data, word), np.frombuffer(y.data, word)
    return np.where(x_bits == y_bits, x_bits, bits).tobytes()


def average(sides: Sequence[Tensor], weights: Sequence[float]) -> bytes:
    """The average of three or more: weights in fp32, products and sums rounded to fp32 one by one, first side first (F64: fp64).
    A sum of two fp32 values in fp64, rounded again to fp32, is what rounding once would give.
    """
    dtype = sides[0].dtype
    wide = dtype == "F64"
    step = (lambda exact: exact) if wide else round_to_fp32
    with np.errstate(all="ignore"):
        shares = [weight if wide else float(np.float32(weight)) for weight in weights]
        total = step(shares[0] * values(sides[0]))
        for share, side in zip(shares[1:], sides[1:], strict=True):
            total = step(total + step(share * values(side)))
        rounded = total if wide else total.astype(np.float32).astype(NUMPY[dtype])
        word = f"u{np.dtype(NUMPY[dtype]).itemsize}"
        bits = rounded.view(word).copy()
        bits[np.isnan(rounded.astype(np.float64))] = CANONICAL[dtype]
    patterns = [np.frombuffer(side.data, word) for side in sides]
    alike = np.logical_and.reduce([pattern == patterns[0] for pattern in patterns])
    return np.where(alike, patterns[0], bits).tobytes()


def cast(t: Tensor, dtype: str) -> Tensor:
    """Rounded once, NaN canonical."""
    with np.errstate(all="ignore"):
        source = np.frombuffer(t.data, NUMPY[t.dtype])
        rounded = source.astype(NUMPY[dtype])
        bits = rounded.view(f"u{np.dtype(NUMPY[dtype]).itemsize}").copy()
        bits[np.isnan(rounded.astype(np.float64))] = CANONICAL[dtype]
    return Tensor(dtype, t.shape, bits.tobytes())


def swapped(math: Model, lang: Model, share_of: dict[str, float]) -> Model:
    """The merged model; `share_of` gives lang's weight of a tensor, 0 where it says nothing."""
    result = {}
    for name, x in math.items():
        share, y = share_of.get(name, 0.0), lang[name]
        if share == 0:
            result[name] = x
            continue
        if y.dtype != x.dtype:
            y = cast(y, x.dtype)
        result[name] = y if share == 1 else Tensor(x.dtype, x.shape, blend(x, y, share))
    return result
