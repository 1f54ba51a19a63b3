"""The header of a safetensors file: parses bytes into a validated `Header`, and writes one. No I/O.

A file holds, in this order: 8 bytes, the header's length as an unsigned little-endian integer; the header, a JSON object
padded with spaces; the tensors' bytes, without holes. Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from lswap_core.checkpoint.dtypes import DTYPES, DType
from lswap_core.errors import FormatError
from lswap_core.text.strict_json import MAX_SIZE, parse_object

LENGTH_BYTES = 8
METADATA = "__metadata__"
"""The one name that no tensor may have."""
MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's limit."""
MAX_RANK = 64
"""Neither numpy nor torch can hold a tensor of more dimensions."""
_REMEMBERED_BYTES = 1 << 20
"""Larger headers (thousands of tensors in one file) are not cached."""
_FIELDS = ("dtype", "shape", "data_offsets")
_FIELD_SET = frozenset(_FIELDS)


class TensorInfo(NamedTuple):
    """One tensor as its header describes it. `begin` and `end` (half-open) count from the end of the header."""

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A valid header: tensors in the order of their bytes, and `raw`, the JSON exactly as in the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    raw: bytes

    @property
    def data_begin(self) -> int:
        """Offset in the file of the first tensor's first byte."""
        return LENGTH_BYTES + len(self.raw)

    @property
    def file_size(self) -> int:
        """Size in bytes of the whole file."""
        last = next(reversed(self.tensors.values()), None)  # type: ignore[call-overload] # a dict's, which can be
        return self.data_begin + (0 if last is None else last.end)

    def encode(self) -> bytes:
        """The file's bytes up to the first tensor: length and JSON."""
        return len(self.raw).to_bytes(LENGTH_BYTES, "little") + self.raw


def size_in_bytes(dtype: DType, shape: Iterable[int]) -> int:
    """Size of a tensor in bytes. Raises ValueError where it overflows 63 bits or ends inside a byte."""
    bits = dtype.bits
    empty = False
    for dim in shape:
        empty = empty or dim == 0
        bits *= max(dim, 1)  # a dimension of 0 must not hide an overflow in the others
        if bits > MAX_SIZE * 8:
            raise ValueError("its shape overflows 63 bits")
    if bits % 8 and not empty:
        raise ValueError(f"its {dtype.name} elements do not fill whole bytes")
    return 0 if empty else bits // 8


def parse_length(prefix: bytes, file_size: int, *, path: str) -> int:
    """Length of the JSON in bytes, from `prefix`, the first 8 bytes of a file of `file_size` bytes.

    Raises FormatError where the file is too short or the length exceeds the file or MAX_HEADER_BYTES.
    """
    if len(prefix) < LENGTH_BYTES:
        raise FormatError(f"a safetensors file has at least {LENGTH_BYTES} bytes, this one has {file_size}", path=path)
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"says that its header has {length} bytes, more than the {MAX_HEADER_BYTES} allowed", path=path)
    if length > file_size - LENGTH_BYTES:
        raise FormatError(f"says that its header has {length} bytes, but the file ends after {file_size}", path=path)
    return length


def parse_header(raw: bytes, *, data_size: int | None, path: str) -> Header:
    """Parse and validate `raw`, the JSON of a header. Raises FormatError, which says what is wrong.

    data_size: bytes after the header, None where unknown. Experts tuned from one base mostly have equal headers, so the
    results are cached.
    """
    if len(raw) > _REMEMBERED_BYTES:
        return _parse_header(raw, data_size, path)
    try:
        return _parse_known(raw, data_size)
    except FormatError:
        return _parse_header(raw, data_size, path)


@lru_cache(maxsize=512)
def _parse_known(raw: bytes, data_size: int | None) -> Header:
    return _parse_header(raw, data_size, "")


def _parse_header(raw: bytes, data_size: int | None, path: str) -> Header:
    if not raw.startswith(b"{"):
        raise FormatError(f"the header must begin with '{{', not with {bytes(raw[:1])!r}", path=path)
    entries = parse_object(raw, path=path, blame=lambda trail: trail[0], shallow=True)
    metadata: Mapping[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, value in entries.items():
        if name == METADATA:
            metadata = _parse_metadata(value, path)
            continue
        try:
            tensors[name] = info = _tensor_info(value)
        except ValueError as error:
            raise FormatError(str(error), path=path, tensor=name) from None
        if data_size is not None and info.end > data_size:
            what = f"its data_offsets end at {info.end}, but the file has {data_size} bytes of data"
            raise FormatError(what, path=path, tensor=name)
    at = 0
    ordered = tensors
    if any(x.begin > y.begin or (x.begin == y.begin and x.end > y.end) for x, y in pairwise(tensors.values())):
        ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    for name, info in ordered.items():
        if info.begin != at:
            what = "overlaps the tensor before it" if info.begin < at else "leaves a hole before it"
            raise FormatError(f"its data_offsets begin at {info.begin}, expected {at}: it {what}", path=path, tensor=name)
        at = info.end
    if data_size not in (None, at):
        raise FormatError(f"the tensors take {at} bytes, but the file has {data_size} bytes of data", path=path)
    return Header(MappingProxyType(ordered), MappingProxyType(metadata), raw)


def build_header(
    tensors: Mapping[str, tuple[DType, tuple[int, ...]]], metadata: Mapping[str, str], *, multiple: int = 8
) -> Header:
    """Build the header of a file that holds `tensors` in this order.

    Pads with spaces so that the data begin at a multiple of `multiple` bytes (the reference writes 8).
    """
    infos: dict[str, TensorInfo] = {}
    table: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    sizes: dict[tuple[str, tuple[int, ...]], int] = {}  # tensors of a model have few combinations of dtype and shape
    at = 0
    for name, (dtype, shape) in tensors.items():
        if (kind := (dtype.name, shape)) not in sizes:
            sizes[kind] = size_in_bytes(dtype, shape)
        end = at + sizes[kind]
        infos[name] = TensorInfo(dtype, shape, at, end)
        table[name] = {"dtype": dtype.name, "shape": shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % multiple)
    return Header(MappingProxyType(infos), MappingProxyType(dict(metadata)), text)


def reference_order(tensors: Mapping[str, tuple[DType, tuple[int, ...]]]) -> list[str]:
    """Names in the order in which the reference serialiser writes them: by dtype, last of the table first, then name."""
    return sorted(tensors, key=lambda name: (-tensors[name][0].rank, name))


def _parse_metadata(value: object, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise FormatError("must be an object of strings", path=path, tensor=METADATA)
    for key, text in value.items():
        if not isinstance(text, str):
            raise FormatError(f"{key!r} must be a string, not {text!r:.40}", path=path, tensor=METADATA)
    return value


@lru_cache(maxsize=4096, typed=True)  # tensors of a model have few shapes
def _parse_shape(dtype_name: str, *shape: object) -> tuple[DType, tuple[int, ...], int]:
    """Return dtype, shape and size in bytes. Raises ValueError, which says what is wrong."""
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise _not_a_dtype(dtype_name)
    dims = tuple(dim for dim in shape if type(dim) is int and 0 <= dim <= MAX_SIZE)
    if len(dims) < len(shape):
        raise _not_a_shape(list(shape))
    if len(dims) > MAX_RANK:
        raise ValueError(f"has {len(dims)} dimensions; at most {MAX_RANK} can be loaded")
    try:
        return dtype, dims, size_in_bytes(dtype, dims)
    except ValueError as error:
        raise ValueError(f"{dtype} {list(dims)}: {error}") from None


def _not_a_dtype(name: object) -> ValueError:
    return ValueError(f"unknown dtype {name!r:.60}; known are {', '.join(DTYPES)}")


def _not_a_shape(shape: object) -> ValueError:
    return ValueError(f"its shape must be a list of sizes from 0 to 2^63 - 1, not {shape!r:.60}")


def _tensor_info(value: object) -> TensorInfo:
    if not isinstance(value, dict) or value.keys() != _FIELD_SET:
        raise ValueError(_what_is_wrong_with_fields(value))
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype_name, str):
        raise _not_a_dtype(dtype_name)
    if not isinstance(shape, list):
        raise _not_a_shape(shape)
    try:
        dtype, dims, size_bytes = _parse_shape(dtype_name, *shape)
    except TypeError:  # an element is not hashable
        raise _not_a_shape(shape) from None
    begin, end = offsets if isinstance(offsets, list) and len(offsets) == 2 else (None, None)
    if not (type(begin) is int and type(end) is int and 0 <= begin <= MAX_SIZE and 0 <= end <= MAX_SIZE):
        raise ValueError(f"its data_offsets must be two offsets from 0 to 2^63 - 1, not {offsets!r:.60}")
    if begin > end:
        raise ValueError(f"its data_offsets end at {end}, before they begin at {begin}")
    if end - begin != size_bytes:
        raise ValueError(f"its data_offsets span {end - begin} bytes, but {dtype} {shape} takes {size_bytes}")
    return TensorInfo(dtype, dims, begin, end)


def _what_is_wrong_with_fields(value: object) -> str:
    if not isinstance(value, dict):
        return f"must be an object with {', '.join(_FIELDS)}, not {value!r:.40}"
    for field in _FIELDS:
        if field not in value:
            return f"has no {field!r}"
    unknown = next(field for field in value if field not in _FIELDS)
    return f"has an unknown field {unknown!r:.60}; expected {', '.join(_FIELDS)}"
