"""How near to each other two products of factors come whose sums are added up in different orders: the bounds of the README.

T, the size of the terms of a sum, is |base| + |scale| (|B| |A|), element by element.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
_LEAST_NORMAL = {"BF16": 2.0**-126, "F16": 2.0**-14}


def fp32_bound(terms: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """How far an fp32 sum with those T may be from the exact value, in whatever order it was added up."""
    return (rank + 3) * 2.0**-24 * terms


def last_place(terms: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """One unit in the last place of T in a 16-bit dtype: how far apart two such sums may be once they are rounded."""
    exponents = np.floor(np.log2(np.maximum(terms, _LEAST_NORMAL[dtype])))
    units: Any = 2.0 ** (exponents - ml_dtypes.finfo(NUMPY[dtype]).nmant)
    return units
