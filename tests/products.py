"""In which order this machine's torch adds up products of matrices."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from lswap_core.kernels.low_rank import change_of


@cache
def torch_adds_up_so() -> bool:
    """Whether a product of matrices has the bits of a low-rank change; its library may have another order on other processors."""
    rng = np.random.default_rng(9)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 24), (24, 56)))
    product = torch.from_numpy(left) @ torch.from_numpy(right)
    return product.numpy().reshape(-1).tobytes() == change_of(left, right, 1.0, first=0, count=40 * 56).tobytes()
