"""Finds and opens the compiled libraries of this package with ctypes: one for the CPU, one for CUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lswap_core import kernels
from lswap_core.kernels.backend import BackendUnavailable

DTYPE_NUMBERS = {name: number for number, name in enumerate(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))}
"""`enum lswap_dtype` of `csrc/include/lswap/kernels.h`."""
Function = tuple[str, Any, list[Any]]
"""The name of a C function, the ctypes type of its result, and those of its arguments."""


def find_library(name: str, *, built_with: str) -> Path:
    """The path of a library in this package. Raises BackendUnavailable, naming the compiler `built_with`, where it was not
    built.
    """
    # An editable install keeps the library in site-packages and the modules elsewhere; the package's path lists both.
    places = [Path(place) for place in kernels.__path__]
    for place in places:
        if (place / name).exists():
            return place / name
    raise BackendUnavailable(
        f"{name} is not in {' or '.join(map(str, places))}; it is built by `pip install` where there is {built_with}"
    )


def open_library(path: Path, *, prefix: str, abi: int, functions: Sequence[Function]) -> ctypes.CDLL:
    """Open the library at `path` and set the types of its functions. `prefix` begins the name of each function.

    Raises BackendUnavailable where the library does not load, or where its function `abi` returns another number: it then
    belongs to another version of this package.
    """
    try:
        library = ctypes.CDLL(str(path))
        built_abi = getattr(library, f"{prefix}abi")()
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(f"{path} does not load: {error}") from error
    if built_abi != abi:
        raise BackendUnavailable(f"{path} has interface {built_abi}, expected {abi}; reinstall the package")
    for name, result, arguments in functions:
        function = getattr(library, prefix + name)
        function.restype, function.argtypes = result, arguments
    return library
