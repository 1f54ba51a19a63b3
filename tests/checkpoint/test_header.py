"""Headers: laws over valid ones, agreement with the reference serialiser. Malformed ones are in tests/hostile."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.checkpoint.header import LENGTH_BYTES, build_header, parse_header, parse_length, reference_order, size_in_bytes
from lswap_core.errors import FormatError
from lswap_core.text.strict_json import parse_object
from tests.build import BITS

WHOLE_BYTE = [name for name, dtype in DTYPES.items() if dtype.bits % 8 == 0]
NUMPY_TYPES = [
    np.bool_,
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    np.float16,
    np.int32,
    np.uint32,
    np.float32,
    np.int64,
    np.float64,
]

names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12).filter(
    lambda n: n != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
tables = st.dictionaries(names, st.tuples(st.sampled_from([DTYPES[n] for n in WHOLE_BYTE]), shapes), max_size=6)
metadata = st.dictionaries(st.text('abc"\\\né', max_size=4), st.text("xyz\t", max_size=4), max_size=3)


def test_the_table_is_the_tests_own() -> None:
    assert {name: dtype.bits for name, dtype in DTYPES.items()} == BITS
    assert [dtype.rank for dtype in DTYPES.values()] == list(range(22))
    assert str(DTYPES["F4"]) == "F4"


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_one_that_the_reference_reads(name: str) -> None:
    header = build_header({"t": (DTYPES[name], (8, 2))}, {"format": "pt"})
    raw = header.encode() + bytes(header.file_size - header.data_begin)
    ((found, entry),) = safetensors.deserialize(raw)
    assert (found, entry["dtype"], entry["shape"]) == ("t", name, [8, 2])
    assert len(entry["data"]) == BITS[name] * 2


@given(tables, metadata)
def test_what_is_built_is_parsed_back(table: dict, said: dict) -> None:
    header = build_header(table, said)
    again = parse_header(header.raw, data_size=header.file_size - header.data_begin, path="f")
    assert again == header
    assert dict(again.metadata) == said
    assert (LENGTH_BYTES + len(header.raw)) % 8 == 0


@given(tables)
def test_tensors_tile_the_data(table: dict) -> None:
    header = build_header(table, {})
    at = 0
    for name, info in header.tensors.items():
        assert info.begin == at
        assert info.end - info.begin == size_in_bytes(*table[name])
        at = info.end
    assert header.file_size == header.data_begin + at


@given(st.dictionaries(names, st.tuples(st.sampled_from(NUMPY_TYPES), shapes), max_size=6), st.booleans())
def test_bytes_are_those_of_the_reference_serialiser(table: dict, with_metadata: bool) -> None:
    arrays = {name: np.ones(shape, dtype) for name, (dtype, shape) in table.items()}
    said = {"format": "pt"} if with_metadata else {}
    expected = safetensors.numpy.save(arrays, metadata=said or None)
    kinds = {"bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "float16": "F16", "int32": "I32",
             "uint32": "U32", "float32": "F32", "int64": "I64", "float64": "F64"}  # fmt: skip
    dtypes = {name: (DTYPES[kinds[array.dtype.name]], array.shape) for name, array in arrays.items()}
    ordered = {name: dtypes[name] for name in reference_order(dtypes)}
    header = build_header(ordered, said)
    assert header.encode() + b"".join(arrays[name].tobytes() for name in ordered) == expected


@pytest.mark.parametrize("multiple", [8, 64, 4096])
def test_padding_moves_the_data_to_a_multiple(multiple: int) -> None:
    header = build_header({"t": (DTYPES["F32"], (3,))}, {}, multiple=multiple)
    assert header.data_begin % multiple == 0
    assert safetensors.numpy.load(header.encode() + bytes(12))["t"].shape == (3,)


def test_order_in_the_file_is_the_order_of_bytes_whatever_the_json_says() -> None:
    entries = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    header = parse_header(json.dumps(entries).encode(), data_size=3, path="f")
    assert list(header.tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("F4", (3, 2), 3), ("F6_E2M3", (4,), 3), ("F6_E3M2", (0, 3), 0), ("F64", (), 8)]
)
def test_sizes_of_odd_shapes(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert size_in_bytes(DTYPES[dtype], shape) == size


@pytest.mark.parametrize(("dtype", "shape"), [("F4", (3,)), ("F6_E2M3", (3,)), ("U8", (2**62, 4)), ("U8", (0, 2**62, 4))])
def test_sizes_that_are_none(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="its "):
        size_in_bytes(DTYPES[dtype], shape)


@pytest.mark.parametrize(
    ("prefix", "file_size", "words"),
    [
        (b"\2\0", 2, "at least 8 bytes, this one has 2"),
        ((100_000_001).to_bytes(8, "little"), 10**12, "more than the 100000000 allowed"),
        ((2**64 - 1).to_bytes(8, "little"), 20, "more than the 100000000 allowed"),
        ((13).to_bytes(8, "little"), 20, "the file ends after 20"),
    ],
)
def test_lengths_are_checked_before_they_are_used(prefix: bytes, file_size: int, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        parse_length(prefix, file_size, path="some.safetensors")
    assert caught.value.path == "some.safetensors"


T = '"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'


@pytest.mark.parametrize(
    ("text", "tensor", "words"),
    [
        (" {" + T + "}", None, "must begin with '{'"),
        ("", None, "must begin with '{'"),
        ("{" + T + "," + T + "}", "t", "is there twice"),
        ("{" + T + ',"\\u0074":1}', "t", "is there twice"),
        ("{" + T + "} x", None, "not valid JSON"),
        ('{"a":' + "[" * 100_000, None, "nested too deeply"),
        ('{"a":' + "1" * 5000 + "}", None, "not valid JSON"),
        ('{"a":NaN}', None, "NaN is not JSON"),
        ('{"a\\u0000":1}', "a\0", "NUL"),
        ('{"\\ud800":1}', "\ud800", "surrogate"),
        ('{"__metadata__":[]}', "__metadata__", "object of strings"),
        ('{"__metadata__":{"k":1}}', "__metadata__", "'k' must be a string"),
        ('{"__metadata__":{"k":"\\udfff"}}', "__metadata__", "surrogate"),
        ('{"t":3}', "t", "must be an object"),
        ('{"t":{"dtype":"U8","shape":[2]}}', "t", "has no 'data_offsets'"),
        ("{" + T[:-1] + ',"extra":1}}', "t", "unknown field 'extra'"),
        ("{" + T.replace("U8", "U9") + "}", "t", "unknown dtype 'U9'"),
        ("{" + T.replace('"U8"', "[]") + "}", "t", "unknown dtype []"),
        ("{" + T.replace("[2]", "[-2]") + "}", "t", "list of sizes"),
        ("{" + T.replace("[2]", "[true,2]") + "}", "t", "list of sizes"),
        ("{" + T.replace("[2]", "2") + "}", "t", "list of sizes"),
        ("{" + T.replace("[2]", str([1] * 64 + [2])) + "}", "t", "65 dimensions"),
        ("{" + T.replace("[0,2]", "[0]") + "}", "t", "two offsets"),
        ("{" + T.replace("[0,2]", "[0,2.0]") + "}", "t", "two offsets"),
        ("{" + T.replace("[0,2]", "{}") + "}", "t", "two offsets"),
        ("{" + T.replace("[0,2]", "[2,0]") + "}", "t", "before they begin"),
        ("{" + T.replace("[2]", "[4611686018427387904,4]") + "}", "t", "overflows 63 bits"),
        ("{" + T.replace("[2]", "[3]") + "}", "t", "takes 3"),
        ("{" + T.replace("[0,2]", "[1,2]").replace("[2]", "[1]") + "}", "t", "leaves a hole"),
        ("{" + T + "," + T.replace('"t"', '"u"') + "}", "u", "overlaps"),
        ("{" + T.replace("[0,2]", "[0,9]").replace("[2]", "[9]") + "}", "t", "the file has 2 bytes"),
        ("{}", None, "the tensors take 0 bytes"),
    ],
)
def test_what_is_wrong_is_named(text: str, tensor: str | None, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_header(text.encode("utf-8"), data_size=2, path="some.safetensors")
    assert words in str(caught.value)
    assert str(caught.value).startswith("some.safetensors")
    assert caught.value.tensor == tensor


@pytest.mark.parametrize("raw", [b'{"a":"\xff"}', b"[]", b"3", b"\xef\xbb\xbf{}"])
def test_json_from_outside_is_a_utf8_object(raw: bytes) -> None:
    with pytest.raises(FormatError, match=r"^f: "):
        parse_object(raw, path="f")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}', '{"a":1,"a" :2}', '{"a": 1, "a":{}}', '{"a": {}, "a": {"b": 1}}', '{"t": {"a": 1, "a": 2}}',
        '{"t": {"a": {"b": 1, "b": 2}}}', '{"t": [{"a": 1, "a": 1}]}', '{"a": 1, "a": ":", "b": {":": ":"}}',
        '{"\\u0061": 1, "a": 1}', '{":": {"::": 1, "::": 2}}', '{"a:": 1, "b": 2}', '{"a": ":"}', '{"\\u003a": 1}',
        '{"a": {"b": {"c": 1}}, "d": [{"e": 1}]}', "{}", '{"a": {}}', '["a", "a"]', "1", '{"a": NaN}', '{"a": -0}',
    ],
)  # fmt: skip
def test_names_are_held_to_be_there_once_whether_counted_or_looked_at(text: str) -> None:
    outcomes = []
    for shallow in (False, True):
        try:
            outcomes.append(repr(parse_object(text.encode(), path="x", shallow=shallow)))
        except FormatError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_a_config_may_hold_infinities_as_python_writes_them() -> None:
    raw = b'{"time_step_limit": [0.0, Infinity, -Infinity]}'
    assert parse_object(raw, path="f", infinities=True) == {"time_step_limit": [0.0, math.inf, -math.inf]}
    for text, allowed in ((raw, False), (b'{"a": NaN}', True)):
        with pytest.raises(FormatError, match="is not JSON"):
            parse_object(text, path="f", infinities=allowed)


@pytest.mark.parametrize(("padding", "kept"), [(8, True), (2 << 20, False)])
def test_equal_headers_are_one_value_unless_they_are_large(padding: int, kept: bool) -> None:
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}' + b" " * padding
    first, again = (parse_header(bytes(bytearray(text)), data_size=1, path=path) for path in ("f", "g"))
    assert first == again
    assert (first is again) is kept
