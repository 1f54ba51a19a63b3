"""Compile the Triton kernels without a GPU: `python -m tests.compiled_triton sm_90 FOLDER` writes PTX and a report there.

A process of its own: Triton decides between compiler and interpreter when kernels are defined.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lswap_core.kernels.gpu import triton as backend
from lswap_core.kernels.gpu import triton_blend, triton_elementwise

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
OPTIONS = {"enable_fp_fusion": False}


def sources(dtype: str) -> dict[str, tuple[Any, dict[str, str], dict[str, Any], int]]:
    """Kernel, types of its arguments, constants and warps, as the launcher launches them; tables lie at 16 bytes."""
    width = WIDTHS[dtype]
    tables = {"records": "*i64", "sums": "*fp64", "tallies": "*fp64"}
    tile = {"FORMAT": dtype, "BLOCKS": backend.TILE_BLOCKS[width], "ROWS": backend.ROWS[width]}
    tile |= {"CAREFUL_ROWS": backend.CAREFUL_ROWS, "WRITE": True}
    many = {"addresses": "*i64", "weights": "*fp64", "out": "*i64", "elements": "i64", "inputs": "i32"}
    blocked = {"CHUNK": backend.CHUNK, "ALIGNED": True}
    hot = {
        "tile": (
            triton_blend.tile_kernel,
            {"records": "*i64", "tile_owners": "*i32", "sums": "*fp64", "tallies": "*fp64", "all_blocks": "i32"},
            tile,
            backend.WARPS,
        )
    }
    if dtype != "BF16":  # the rest is alike for every dtype
        return hot
    return hot | {
        "totals": (
            triton_blend.totals_kernel,
            tables | {"statistics": "*fp64", "all_blocks": "i32", "all_tiles": "i32"},
            {"TILE": tile["BLOCKS"] * 1024, "CHUNK": backend.CHUNK},
            4,
        ),
        "many": (triton_elementwise.blend_many_kernel, many, {"FORMAT": dtype, **blocked}, 4),
        "cast": (
            triton_elementwise.cast_kernel,
            {"x": "*i64", "out": "*i64", "elements": "i64"},
            {"SOURCE": "F32", "TARGET": dtype, **blocked},
            4,
        ),
    }


def compile_all(capability: int, folder: Path) -> dict[str, dict[str, Any]]:
    """PTX of every kernel for every dtype in `folder`; returns what ptxas says of each."""
    report = {}
    for dtype in WIDTHS:
        for name, (kernel, types, constants, warps) in sources(dtype).items():
            signature = types | dict.fromkeys(constants, "constexpr")
            attributes = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind[0] == "*"}
            source = ASTSource(kernel, signature, constants, attributes)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS | {"num_warps": warps})
            where = folder / f"{name}-{dtype}"
            where.with_suffix(".ptx").write_text(made.asm["ptx"])
            where.with_suffix(".cubin").write_bytes(made.asm["cubin"])
            report[where.name] = usage(where.with_suffix(".cubin")) | {"ptx": str(where.with_suffix(".ptx"))}
    return report


def usage(cubin: Path) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of the one kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "--dump-resource-usage", cubin], check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said)}


if __name__ == "__main__":
    print(json.dumps(compile_all(int(sys.argv[1].removeprefix("sm_")), Path(sys.argv[2]))))
