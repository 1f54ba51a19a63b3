"""A valid pair of experts, and the table of what can be wrong with one: every case is a valid checkpoint but for one thing."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EMBED, LAYER_0, VICTIM, LAYER_2, NORM = NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.weight",
    "model.layers.1.mlp.weight",
    "model.layers.2.mlp.weight",
    "model.norm.weight",
)
SHAPES = {EMBED: [4, 2], LAYER_0: [2, 2], VICTIM: [2, 2], LAYER_2: [2, 2], NORM: [2]}
CONFIG = {"model_type": "llama", "num_hidden_layers": 3, "rope_theta": 10000.0, "hidden_size": 2}
TOKENIZER = {"added_tokens": [{"content": "</s>", "id": 2}], "model": {"vocab": {"a": 0, "b": 1}}}
DEEP = 100_000
MANY_DIGITS = "1" * 5000


# A valid expert.


def entries(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """The header of a file of `names`, F16, in this order: 16, 8, 8, 8 and 4 bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        size = 2
        for dim in SHAPES[name]:
            size *= dim
        table[name] = {"dtype": "F16", "shape": list(SHAPES[name]), "data_offsets": [at, at := at + size]}
    return table


def values(size_bytes: int, seed: int = 0) -> bytes:
    """F16 numbers that are finite and differ from seed to seed."""
    numbers = random.Random(seed)
    return b"".join(struct.pack("<e", numbers.uniform(-1, 1)) for _ in range(size_bytes // 2))


DATA = values(44)


def with_length(header: bytes, data: bytes = DATA) -> bytes:
    """A file: the header's length, the header, the data."""
    return len(header).to_bytes(8, "little") + header + data


def to_bytes(table: object) -> bytes:
    """JSON as short as it gets; lone surrogates stay escaped."""
    return json.dumps(table, separators=(",", ":")).encode()


def encode(table: object, data: bytes = DATA) -> bytes:
    """A file with that header."""
    return with_length(to_bytes(table), data)


def make_expert(folder: Path, seed: int, *, sharded: bool = True) -> Path:
    """A model directory with a config and a tokenizer; in two shards and an index, or in one file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(to_bytes(CONFIG))
    (folder / "tokenizer.json").write_bytes(to_bytes(TOKENIZER))
    if not sharded:
        (folder / SINGLE).write_bytes(encode(entries(), values(44, seed)))
        return folder
    (folder / SHARDS[0]).write_bytes(encode(entries(NAMES[:3]), values(32, seed)))
    (folder / SHARDS[1]).write_bytes(encode(entries(NAMES[3:]), values(12, seed + 1000)))
    (folder / INDEX).write_bytes(to_bytes(index()))
    return folder


def index() -> dict[str, Any]:
    """The index of the two shards."""
    return {"metadata": {"total_size": 44}, "weight_map": {name: SHARDS[name in NAMES[3:]] for name in NAMES}}


def alone(entry: str, data: bytes) -> bytes:
    """A file of one tensor, `a`, whose entry is this JSON."""
    return with_length(b'{"a":' + entry.encode() + b"}", data)


# The cases.


@dataclass(frozen=True)
class Case:
    """One malformed checkpoint.

    make: puts it into an empty directory and returns what to open. words: in the message. tensor: the one to blame.
    file: the one to blame, by its last component. data: the bytes, where it is a single file. late: noticed when two
    checkpoints are combined, at the latest.
    """

    id: str
    words: str
    make: Callable[[Path], Path]
    file: str
    tensor: str | None = None
    data: bytes | None = None
    late: bool = False


FILE_CASES: list[Case] = []
DIRECTORY_CASES: list[Case] = []
Edit = Callable[[Path], object]


def _file(id_: str, data: bytes, words: str, tensor: str | None = None) -> None:
    def make(folder: Path) -> Path:
        (folder / "bad.safetensors").write_bytes(data)
        return folder / "bad.safetensors"

    FILE_CASES.append(Case(id_, words, make, "bad.safetensors", tensor, data))


def _directory(
    id_: str, edit: Edit, words: str, tensor: str | None = None, *, file: str = INDEX, sharded: bool = True, late: bool = False
) -> None:
    def make(folder: Path) -> Path:
        edit(make_expert(folder / "bad", 1, sharded=sharded))
        return folder / "bad"

    DIRECTORY_CASES.append(Case(id_, words, make, file, tensor, late=late))


def _edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    table = copy.deepcopy(entries())
    change(table)
    return encode(table)


def _with(**fields: Any) -> bytes:
    """The valid file, but for these fields of the victim."""
    return _edited(lambda table: table[VICTIM].update(fields))


def replaced(text: bytes, old: str, new: str | bytes) -> bytes:
    """`text` with its one `old` replaced: a mutation that would change nothing is a mistake in this table."""
    if text.count(old.encode()) != 1:
        raise ValueError(f"{old!r} is there {text.count(old.encode())} times")
    return text.replace(old.encode(), new if isinstance(new, bytes) else new.encode())


def _replaced(old: str, new: str | bytes) -> bytes:
    return with_length(replaced(HEADER, old, new))


HEADER = to_bytes(entries())
VALID = with_length(HEADER)
_ENTRY = json.dumps(entries()[VICTIM], separators=(",", ":"))


def _behind_a_zero(dim: int) -> str:
    return json.dumps({"dtype": "F32", "shape": [0, dim, 4], "data_offsets": [0, 0]})


def _prefix_cases() -> None:
    size = len(VALID)
    for length, name in ((0, "no-bytes"), (1, "one-byte"), (7, "seven-bytes")):
        _file(name, VALID[:length], f"at least 8 bytes, this one has {length}")
    _file("length-and-no-more", VALID[:8], f"but the file ends after {8}")
    _file("length-zero", bytes(8), "must begin with '{'")
    _file("length-zero-then-a-header", bytes(8) + VALID[8:], "must begin with '{'")
    _file("length-2^63-in-20-bytes", (2**63).to_bytes(8, "little") + bytes(12), f"header has {2**63} bytes, more than")
    _file("length-2^64-1", b"\xff" * 8 + VALID[8:], f"header has {2**64 - 1} bytes, more than")
    _file("length-2^63-1", (2**63 - 1).to_bytes(8, "little") + VALID[8:], f"header has {2**63 - 1} bytes, more than")
    _file(
        "length-one-over-the-limit", (100_000_001).to_bytes(8, "little") + VALID[8:], "100000001 bytes, more than the 100000000"
    )
    _file("length-at-the-limit", (100_000_000).to_bytes(8, "little") + VALID[8:], f"but the file ends after {size}")
    _file("length-one-beyond-the-end", (size - 7).to_bytes(8, "little") + VALID[8:], f"but the file ends after {size}")
    _file("length-one-short", (len(HEADER) - 1).to_bytes(8, "little") + VALID[8:], "not valid JSON")
    _file("length-one-long", (len(HEADER) + 1).to_bytes(8, "little") + VALID[8:], "not ")
    _file("length-takes-all", (size - 8).to_bytes(8, "little") + VALID[8:], "not ")
    _file("length-big-endian", len(HEADER).to_bytes(8, "big") + VALID[8:], "more than the 100000000")
    _file("no-length", VALID[8:], "more than the 100000000")
    _file("cut-in-the-header", VALID[:60], "but the file ends after 60")
    _file("cut-before-the-data", VALID[:-44], "data_offsets end at 16, but the file has 0 bytes of data", EMBED)
    _file("cut-by-one-byte", VALID[:-1], "data_offsets end at 44, but the file has 43 bytes of data", NORM)
    _file("one-byte-more", VALID + b"\0", "the tensors take 44 bytes, but the file has 45")
    _file("twice", VALID + VALID, f"the tensors take 44 bytes, but the file has {44 + size}")
    _file("a-web-page", b"<!DOCTYPE html><html><body>404</body></html>", "more than the 100000000")
    _file("a-git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "more than the 100000000")
    _file("a-pickle", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s.", "more than the 100000000")
    _file("a-zip", b"PK\x03\x04" + bytes(60), "but the file ends after 64")
    _file("zeros", bytes(200), "must begin with '{'")


def _text_cases() -> None:
    for name, space in (("space", b" "), ("newline", b"\n"), ("tab", b"\t"), ("bom", b"\xef\xbb\xbf"), ("comment", b"/**/")):
        _file(f"{name}-before-the-brace", with_length(space + HEADER), "the header must begin with '{', not with")
    _file("utf-16", with_length(HEADER.decode().encode("utf-16-le")), "not valid JSON")
    _file("utf-16-with-bom", with_length(HEADER.decode().encode("utf-16")), "must begin with '{'")
    for name, bad in (
        ("latin-1", b"\xe9"), ("cut", b"\xe2\x82"), ("overlong", b"\xc0\x80"), ("surrogate", b"\xed\xa0\x80"),
        ("beyond", b"\xf4\x90\x80\x80"),
    ):  # fmt: skip
        _file(f"utf-8-{name}-in-a-name", _replaced("layers.1", b"layers." + bad), "not UTF-8 at byte")
    _file("utf-8-broken-in-metadata", _replaced('"pt"', b'"\xff"'), "not UTF-8 at byte")
    for name, text in (("list", "[]"), ("null", "null"), ("string", '"a"'), ("number", "3"), ("nothing", ""), ("spaces", "  ")):
        _file(f"header-is-{name}", with_length(text.encode()), "must begin with '{'")
    for name, header in (
        ("brace", b"{"), ("comma", HEADER[:-1] + b",}"),
        ("two-objects", HEADER + HEADER), ("more-behind", HEADER + b"x"), ("nul-padding", HEADER + b"\0\0"),
        ("a-comment", HEADER + b"//"), ("single-quotes", HEADER.replace(b'"', b"'")),
        ("no-quotes", HEADER.replace(b'"dtype"', b"dtype")), ("another-brace", HEADER + b"}"), ("no-last-brace", HEADER[:-1]),
        ("other-space-behind", HEADER + b"\x0b"), ("no-break-space", HEADER + "\u00a0".encode()),
    ):  # fmt: skip
        _file(f"json-with-{name}", with_length(header), "not valid JSON")
    for name, number in (("leading-zero", "024"), ("plus", "+24"), ("hex", "0x18"), ("no-digits", "-"), ("underscore", "2_4")):
        _file(f"number-with-{name}", _replaced("[24,32]", f"[{number},32]"), "not valid JSON")
    for number in ("NaN", "Infinity", "-Infinity"):
        _file(f"number-{number}", _replaced("[24,32]", f"[{number},32]"), "is not JSON")
    _file("raw-control-character", _replaced("layers.1", "layers.\n1"), "not valid JSON")
    _file("unknown-escape", _replaced("layers.1", r"layers.\x31"), "not valid JSON")
    _file("cut-escape", _replaced("layers.1", r"layers.\u00"), "not valid JSON")
    _file("five-thousand-digits", _replaced("[24,32]", f"[24,{MANY_DIGITS}]"), "not valid JSON")
    _file("five-thousand-digits-in-a-shape", _replaced("[24,32]", f'[24,32],"x":[{MANY_DIGITS}]'), "not valid JSON")
    _file("four-thousand-digits", _replaced("[24,32]", f"[24,{MANY_DIGITS[:4000]}]"), "data_offsets must be", VICTIM)
    _file("deep-lists", with_length(b'{"a":' + b"[" * DEEP), "nested too deeply")
    _file("deep-lists-closed", with_length(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"), "nested too deeply")
    _file("deep-objects", with_length(b'{"a":' * DEEP), "nested too deeply")
    _file("deep-shape", with_length(replaced(HEADER, "[4,2]", "[" * DEEP + "]" * DEEP)), "nested too deeply")


def _name_cases() -> None:
    again = f'"{VICTIM}":{_ENTRY}'
    escaped = again.replace("model.layers", r"m\u006fdel.layers", 1)
    impossible = f'"{VICTIM}":' + '{"dtype":"F16","shape":[2,2],"data_offsets":[9000,9008]}'
    _file("name-twice", _replaced(again, f"{again},{again}"), "twice", VICTIM)
    _file("name-twice-one-escaped", _replaced(again, f"{again},{escaped}"), "twice", VICTIM)
    _file("name-twice-escaped-first", _replaced(again, f"{escaped},{again}"), "twice", VICTIM)
    _file("name-twice-first-impossible", _replaced(again, f"{impossible},{again}"), "twice", VICTIM)
    _file("name-three-times", _replaced(again, f"{again},{again},{again}"), "twice", VICTIM)
    _file("name-twice-escaped-slash", with_length(b'{"a/b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a\\/b":'
          b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"), "twice", "a/b")  # fmt: skip
    _file("name-twice-surrogate-pair", with_length('{"😀":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\ud83d\\ude00":'
          '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode(), b"\0"), "twice", "😀")  # fmt: skip
    metadata = '"__metadata__":{"format":"pt"}'
    _file("metadata-twice", _replaced(metadata, f"{metadata},{metadata}"), "twice", "__metadata__")
    _file(
        "metadata-twice-escaped", _replaced(metadata, metadata + r',"\u005f_metadata__":{"format":"pt"}'), "twice", "__metadata__"
    )
    _file("metadata-key-twice", _replaced('"format":"pt"', '"format":"pt","format":"np"'), "twice", "__metadata__")
    _file("metadata-key-twice-escaped", _replaced('"format":"pt"', r'"format":"pt","\u0066ormat":"pt"'), "twice", "__metadata__")
    _file("field-twice", _replaced(_ENTRY, _ENTRY[:-1] + ',"dtype":"F16"}'), "twice", VICTIM)
    _file("field-twice-escaped", _replaced(_ENTRY, _ENTRY[:-1] + r',"\u0064type":"F16"}'), "twice", VICTIM)
    _file("name-with-nul", _replaced("layers.1", r"layers.1\u0000"), "NUL", VICTIM.replace(".1", ".1\0"))
    _file("name-is-nul", _replaced(VICTIM, r"\u0000"), "NUL", "\0")
    _file("name-with-high-surrogate", _replaced("layers.1", r"layers.\ud800"), "surrogate", VICTIM.replace("1", "\ud800"))
    _file("name-with-low-surrogate", _replaced("layers.1", r"layers.\udc00"), "surrogate", VICTIM.replace("1", "\udc00"))
    _file(
        "name-with-pair-reversed", _replaced("layers.1", r"layers.\udc00\ud800"), "surrogate", VICTIM.replace("1", "\udc00\ud800")
    )
    _file("metadata-key-with-surrogate", _replaced('"format":', r'"\ud800":'), "surrogate", "__metadata__")
    _file("metadata-text-with-surrogate", _replaced('"pt"', r'"\udfff"'), "surrogate", "__metadata__")
    for name, value in (("list", "[]"), ("string", '"pt"'), ("null", "null"), ("number", "1"), ("true", "true")):
        _file(f"metadata-is-{name}", _replaced('{"format":"pt"}', value), "must be an object of strings", "__metadata__")
    for name, value in (("number", "1"), ("null", "null"), ("object", '{"a":"b"}'), ("list", '["pt"]'), ("true", "true")):
        _file(f"metadata-text-is-{name}", _replaced('"pt"', value), "'format' must be a string", "__metadata__")


def _entry_cases() -> None:
    for name, value in (("null", "null"), ("list", "[]"), ("string", '"F16"'), ("number", "3"), ("true", "true")):
        _file(f"entry-is-{name}", _replaced(_ENTRY, value), "must be an object with dtype, shape, data_offsets", VICTIM)
    _file("entry-is-a-sequence", _replaced(_ENTRY, '["F16",[2,2],[24,32]]'), "must be an object", VICTIM)
    _file("entry-is-empty", _replaced(_ENTRY, "{}"), "has no 'dtype'", VICTIM)
    for field in ("dtype", "shape", "data_offsets"):
        _file(f"no-{field}", _edited(lambda table, gone=field: table[VICTIM].pop(gone)), f"has no '{field}'", VICTIM)
    _file("unknown-field", _with(strides=[2, 1]), "unknown field 'strides'", VICTIM)
    _file("field-in-capitals", _replaced(_ENTRY, _ENTRY.replace("dtype", "DType")), "has no 'dtype'", VICTIM)
    for name, dtype in (
        ("unknown", "F128"), ("of-torch", "torch.float16"), ("lower-case", "f16"), ("with-space", "F16 "), ("empty", ""),
        ("null", None), ("number", 16), ("list", ["F16"]), ("object", {}), ("true", True), ("long", "F" * 10_000),
    ):  # fmt: skip
        _file(f"dtype-{name}", _with(dtype=dtype), "unknown dtype", VICTIM)
    for name, shape in (
        ("null", None), ("number", 4), ("string", "2,2"), ("object", {"0": 2, "1": 2}), ("negative", [-2, -2]),
        ("float", [2.0, 2.0]), ("true", [True, 4]), ("of-strings", ["2", "2"]), ("of-null", [None, 4]), ("nested", [[2, 2]]),
        ("2^63", [2**63]), ("2^64", [2**64, 4]), ("2^64+2", [2**64 + 2, 2]),
    ):  # fmt: skip
        _file(f"shape-{name}", _with(shape=shape), "its shape must be a list of sizes", VICTIM)
    half = VICTIM
    _file("shape-minus-zero", alone('{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}', b""), "its shape must be", "a")
    _file("shape-exponent", _replaced('[2,2],"data_offsets":[24', '[2e0,2],"data_offsets":[24'), "its shape must be", half)
    _file("shape-of-one-too-many", _with(shape=[2, 3]), "span 8 bytes, but F16 [2, 3] takes 12", VICTIM)
    _file("shape-of-one-too-few", _with(shape=[3]), "span 8 bytes, but F16 [3] takes 6", VICTIM)
    _file("shape-of-a-scalar", _with(shape=[]), "span 8 bytes, but F16 [] takes 2", VICTIM)
    _file("shape-of-nothing", _with(shape=[0]), "span 8 bytes, but F16 [0] takes 0", VICTIM)
    _file("dtype-too-wide", _with(dtype="F32"), "span 8 bytes, but F32 [2, 2] takes 16", VICTIM)
    _file("dtype-too-narrow", _with(dtype="U8"), "span 8 bytes, but U8 [2, 2] takes 4", VICTIM)
    _file("rank-65", _with(shape=[1] * 63 + [2, 2]), "has 65 dimensions", VICTIM)
    _file("rank-100000", _with(shape=[1] * 99_998 + [2, 2]), "has 100000 dimensions", VICTIM)
    for name, shape in (
        ("product-2^64", [2**32, 2**32]), ("product-wraps-to-8", [2**62 + 1, 4]), ("size-2^63-1", [2**63 - 1]),
        ("many", [2**40] * 8), ("behind-a-zero", [0, 2**62, 4]), ("before-a-zero", [2**62, 4, 0]),
        ("around-a-zero", [2**62, 0, 2**62]),
    ):  # fmt: skip
        _file(f"overflow-{name}", _with(shape=shape), "overflows 63 bits", VICTIM)
    _file("size-2^63-behind-a-zero", _with(shape=[0, 2**63, 4]), "its shape must be a list of sizes", VICTIM)
    _file("size-2^63-behind-a-zero-and-empty", alone(_behind_a_zero(2**63), b""),
          "its shape must be a list of sizes", "a")  # fmt: skip
    _file("overflow-behind-a-zero-and-empty", alone(_behind_a_zero(2**62), b""),
          "overflows 63 bits", "a")  # fmt: skip
    for dtype, count, size in (
        ("F4", 1, 1), ("F4", 3, 1), ("F4", 3, 2), ("F4", 2**20 + 1, 8), ("F6_E2M3", 1, 1), ("F6_E2M3", 2, 2), ("F6_E3M2", 3, 3),
        ("F6_E3M2", 5, 4),
    ):  # fmt: skip
        entry = json.dumps({"dtype": dtype, "shape": [count], "data_offsets": [0, size]})
        _file(f"odd-{dtype}-{count}-in-{size}", alone(entry, bytes(size)), "do not fill whole bytes", "a")


def _offset_cases() -> None:
    for name, offsets in (
        ("null", None), ("number", 24), ("string", "24,32"), ("object", {"begin": 24, "end": 32}), ("empty", []), ("one", [24]),
        ("three", [24, 32, 40]), ("negative", [-8, 0]), ("float", [24.0, 32.0]), ("true", [True, 9]),
        ("of-strings", ["24", "32"]), ("of-null", [24, None]), ("nested", [[24, 32]]), ("2^63", [2**63, 2**63 + 8]),
        ("2^64", [2**64 + 24, 2**64 + 32]),
    ):  # fmt: skip
        _file(f"offsets-{name}", _with(data_offsets=offsets), "data_offsets must be two offsets", VICTIM)
    _file("offsets-minus-zero", _replaced("[0,16]", "[-0,16]"), "data_offsets must be two offsets", EMBED)
    _file("offsets-exponent", _replaced("[24,32]", "[24,32e0]"), "data_offsets must be two offsets", VICTIM)
    _file("offsets-huge-exponent", _replaced("[24,32]", "[24,1e999]"), "data_offsets must be two offsets", VICTIM)
    _file("offsets-backwards", _with(data_offsets=[32, 24]), "end at 24, before they begin at 32", VICTIM)
    _file("offsets-span-too-few", _with(data_offsets=[24, 31]), "span 7 bytes, but F16 [2, 2] takes 8", VICTIM)
    _file("offsets-span-too-many", _with(data_offsets=[24, 33]), "span 9 bytes, but F16 [2, 2] takes 8", VICTIM)
    _file("offsets-beyond-the-end", _with(data_offsets=[9000, 9008]), "end at 9008, but the file has 44", VICTIM)
    _file("offsets-at-2^63-1", _with(data_offsets=[2**63 - 9, 2**63 - 1]), "but the file has 44", VICTIM)
    _file("offsets-of-the-neighbour", _with(data_offsets=[32, 40]), "expected 24", VICTIM)
    _file("offsets-one-early", _with(data_offsets=[23, 31]), "begin at 23, expected 24: it overlaps the tensor before it", VICTIM)
    _file("offsets-one-late", _with(data_offsets=[25, 33]), "begin at 25, expected 24: it leaves a hole before it", VICTIM)
    _file("last-beyond-the-end", _edited(lambda t: t[NORM].update(shape=[3], data_offsets=[40, 46])),
          "end at 46, but the file has 44 bytes of data", NORM)  # fmt: skip
    _file("hole-at-the-start", _edited(lambda t: t.pop(EMBED)), "begin at 16, expected 0: it leaves a hole before it", LAYER_0)
    _file("hole-in-the-middle", _edited(lambda t: t.pop(VICTIM)), "begin at 32, expected 24: it leaves a hole before it", LAYER_2)
    _file("hole-at-the-end", _edited(lambda t: t.pop(NORM)), "the tensors take 40 bytes, but the file has 44 bytes of data")
    _file("data-of-nobody", encode({"__metadata__": {"format": "pt"}}), "the tensors take 0 bytes, but the file has 44")
    _file("data-of-nobody-at-all", encode({}, b"\0"), "the tensors take 0 bytes, but the file has 1")
    _file(
        "two-tensors-of-the-same-bytes", _edited(lambda t: t.update(tied=dict(t[NORM]))), "overlaps the tensor before it", "tied"
    )
    empty = {"dtype": "F16", "shape": [0]}
    _file("empty-inside-another", _edited(lambda t: t.update(empty=empty | {"data_offsets": [4, 4]})), "overlaps", "empty")
    _file("empty-beyond-the-end", _edited(lambda t: t.update(empty=empty | {"data_offsets": [45, 45]})), "data_offsets", "empty")
    _file(
        "empty-at-2^63-1",
        _edited(lambda t: t.update(empty=empty | {"data_offsets": [2**63 - 1, 2**63 - 1]})),
        "data_offsets",
        "empty",
    )


# Directories. `root` is a valid checkpoint, to be spoilt in one respect; what lies beside it is outside.


def _json(root: Path, change: Callable[[dict[str, Any]], object], file: str = INDEX) -> None:
    table = json.loads((root / file).read_bytes())
    change(table)
    (root / file).write_bytes(to_bytes(table))


def _map(root: Path, entry: Mapping[str, object]) -> None:
    _json(root, lambda table: table["weight_map"].update(entry))


def _write(file: str, data: bytes) -> Edit:
    return lambda root: (root / file).write_bytes(data)


def _sparse(file: str, size: int) -> Edit:
    def edit(root: Path) -> None:
        with (root / file).open("r+b") as handle:
            handle.truncate(size)

    return edit


def _instead(file: str, put: Callable[[Path], object]) -> Edit:
    """Replace `file` by whatever `put` makes in its place."""

    def edit(root: Path) -> None:
        (root / file).unlink(missing_ok=True)
        put(root / file)

    return edit


def _outside(file: str, target: str) -> Edit:
    """Move `file` out of the directory, to `target`, and leave a symbolic link to it."""

    def edit(root: Path) -> None:
        place = Path(os.path.normpath(root / target))
        place.parent.mkdir(parents=True, exist_ok=True)
        (root / file).rename(place)
        (root / file).symlink_to(place if target.startswith("../absolute") else target)

    return edit


def _renamed(root: Path, name: str) -> None:
    """The second shard under another name, of which the index knows."""
    target = root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (root / SHARDS[1]).rename(target)
    _map(root, dict.fromkeys(NAMES[3:], name))


def _index_cases() -> None:
    text = to_bytes(index())
    for name, data, words in (
        ("empty", b"", "not valid JSON"), ("cut", text[:-2], "not valid JSON"), ("not-json", b"weights", "not valid JSON"),
        ("list", b"[]", "expected a JSON object"), ("null", b"null", "expected a JSON object"),
        ("string", b'""', "expected a JSON object"), ("with-bom", b"\xef\xbb\xbf" + text, "not valid JSON"),
        ("utf-16", text.decode().encode("utf-16"), "not "),
        ("not-utf-8", replaced(text, '"total_size":44', b'"by":"\xe9"'), "not UTF-8 at byte"),
        ("nan", replaced(text, ":44", ":NaN"), "NaN is not JSON"),
        ("deep", b'{"weight_map":' + b"[" * DEEP, "nested too deeply"), ("deep-objects", b'{"a":' * DEEP, "nested too deeply"),
        ("many-digits", replaced(text, ":44", f":{MANY_DIGITS}"), "not valid JSON"),
        ("nul-behind", text + b"\0", "not valid JSON"), ("name-with-nul", replaced(text, '"metadata"', r'"\u0000"'), "NUL"),
    ):  # fmt: skip
        _directory(f"index-{name}", _write(INDEX, data), words, "\0" if name == "name-with-nul" else None)
    entry = f'"{VICTIM}":"{SHARDS[0]}"'
    _directory("index-name-twice", _write(INDEX, replaced(text, entry, f'{entry},"{VICTIM}":"{SHARDS[1]}"')), "twice", VICTIM)
    escaped = entry.replace("model.", r"m\u006fdel.", 1)
    _directory("index-name-twice-escaped", _write(INDEX, replaced(text, entry, f"{entry},{escaped}")), "twice", VICTIM)
    _directory("index-map-twice", _write(INDEX, text[:-1] + b',"weight_map":{}}'), "twice", "weight_map")
    _directory("index-without-map", lambda root: _json(root, lambda table: table.pop("weight_map")), "no 'weight_map'")
    for name, value in (("list", []), ("null", None), ("string", SINGLE), ("number", 2), ("empty", {})):
        _directory(f"index-map-is-{name}", lambda root, v=value: _json(root, lambda t: t.update(weight_map=v)), "no 'weight_map'")
    for name, value in (("list", [1]), ("string", "none"), ("number", 3)):
        _directory(
            f"index-metadata-is-{name}", lambda root, v=value: _json(root, lambda t: t.update(metadata=v)), "metadata", late=True
        )
    for name, value in (
        ("number", 1), ("null", None), ("list", [SHARDS[0]]), ("object", {}), ("true", True), ("empty", ""), ("dot", "."),
        ("dots", ".."), ("parent", f"../{SHARDS[0]}"), ("here", f"./{SHARDS[0]}"), ("round-trip", f"../bad/{SHARDS[0]}"),
        ("absolute", "/etc/passwd"), ("folder", f"sub/{SHARDS[0]}"), ("backslash", f"..\\{SHARDS[0]}"),
        ("nul", f"{SHARDS[0]}\0"), ("url", f"file:///{SHARDS[0]}"), ("slash-behind", f"{SHARDS[0]}/"),
    ):  # fmt: skip
        _directory(f"index-file-is-{name}", lambda root, v=value: _map(root, {VICTIM: v}), "is not a plain file name", VICTIM)
    _directory(
        "index-file-parent-there", lambda root: _renamed(root, "../outside.safetensors"), "is not a plain file name", LAYER_2
    )
    _directory(
        "index-file-below-there", lambda root: _renamed(root, "sub/inside.safetensors"), "is not a plain file name", LAYER_2
    )
    _directory(
        "index-file-absolute-there", lambda root: _renamed(root, str(root.parent / "x.safetensors")), "plain file name", LAYER_2
    )
    _directory("index-file-surrogate", lambda root: _map(root, {NORM: "\ud800.safetensors"}), "surrogate", NORM)
    long = "x" * 300 + ".safetensors"
    _directory("index-file-too-long", lambda root: _map(root, dict.fromkeys(NAMES[3:], long)), "is missing", LAYER_2)
    _directory(
        "index-names-no-shard",
        lambda root: _map(root, dict.fromkeys(NAMES[3:], "model-3.safetensors")),
        "model-3.safetensors is missing",
        LAYER_2,
    )
    _directory(
        "index-names-no-shard-for-one",
        lambda root: _map(root, {VICTIM: "x.safetensors"}),
        "the index says x.safetensors",
        VICTIM,
        file=SHARDS[0],
    )
    _directory("shard-missing", lambda root: (root / SHARDS[1]).unlink(), f"{SHARDS[1]} is missing", LAYER_2)
    _directory("tensor-missing", lambda root: _map(root, {"model.layers.3.mlp.weight": SHARDS[1]}), "but it is not",
               "model.layers.3.mlp.weight")  # fmt: skip
    _directory("tensor-in-the-other-shard", lambda root: _map(root, {VICTIM: SHARDS[1]}), f"the index says {SHARDS[1]}", VICTIM,
               file=SHARDS[0])  # fmt: skip
    _directory("tensor-not-in-the-index", lambda root: _json(root, lambda table: table["weight_map"].pop(VICTIM)),
               "the index does not mention it", VICTIM, file=SHARDS[0])  # fmt: skip
    _directory("tensor-in-two-shards", _write(SHARDS[1], encode(entries(NAMES[2:]), values(20))), f"the index says {SHARDS[0]}",
               VICTIM, file=SHARDS[1])  # fmt: skip
    _directory("single-file-beside-the-index", _write(SINGLE, VALID), f"does not mention the {SINGLE} beside it")
    _directory("index-fifo", _instead(INDEX, os.mkfifo), "is not a regular file")
    _directory("index-directory", _instead(INDEX, Path.mkdir), "is not a regular file")
    _directory("index-linked-outside", _outside(INDEX, "../elsewhere.json"), "leads out of the checkpoint's directory")
    _directory(
        "index-linked-nowhere", _instead(INDEX, lambda p: p.symlink_to("../gone.json")), "leads out of the checkpoint's directory"
    )
    _directory("index-over-the-limit", _sparse(INDEX, 100_000_001), "over 100000000 bytes")


def _shard_cases() -> None:
    for name, put in (("fifo", os.mkfifo), ("directory", Path.mkdir)):
        _directory(f"shard-{name}", _instead(SHARDS[1], put), "is not a regular file", file=SHARDS[1])
        _directory(f"single-{name}", _instead(SINGLE, put), "is not a regular file", file=SINGLE, sharded=False)
    for name, target in (
        ("parent", "../elsewhere.safetensors"), ("absolute", "../absolute/x.safetensors"),
        ("longer-name", "../bad-evil/x.safetensors"), ("blobs-of-nobody", "../../blobs/x"),
    ):  # fmt: skip
        out = "leads out of the checkpoint's directory"
        _directory(f"shard-linked-to-{name}", _outside(SHARDS[1], target), out, file=SHARDS[1])
        _directory(f"single-linked-to-{name}", _outside(SINGLE, target), out, file=SINGLE, sharded=False)

    def chain(root: Path) -> None:
        _outside(SHARDS[1], "../elsewhere.safetensors")(root)
        (root / "link").symlink_to("../elsewhere.safetensors")
        (root / SHARDS[1]).unlink()
        (root / SHARDS[1]).symlink_to("link")

    _directory("shard-linked-by-two-links", chain, "leads out of the checkpoint's directory", file=SHARDS[1])
    _directory("shard-linked-to-a-device", _instead(SHARDS[1], lambda p: p.symlink_to("/dev/zero")), "leads out", file=SHARDS[1])
    _directory("shard-empty", _write(SHARDS[1], b""), "at least 8 bytes", file=SHARDS[1])
    _directory("shard-cut", _sparse(SHARDS[1], 100), "but the file ends after 100", file=SHARDS[1])
    _directory("shard-of-zeros", _sparse(SHARDS[1], 4096), "the tensors take 12 bytes", file=SHARDS[1])
    broken = to_bytes(entries(NAMES[3:])).replace(b"[2,2]", b"[2,3]")
    _directory(
        "shard-with-a-bad-shape", _write(SHARDS[1], with_length(broken, values(12))), "span 8 bytes", LAYER_2, file=SHARDS[1]
    )
    _directory("single-with-a-bad-shape", _write(SINGLE, _with(shape=[2, 3])), "span 8 bytes", VICTIM, file=SINGLE, sharded=False)
    _directory("directory-empty", lambda root: [file.unlink() for file in root.iterdir()], "no checkpoint", file="bad")
    _directory("no-index", lambda root: (root / INDEX).unlink(), f"no {SINGLE} and no {INDEX}", file="bad")
    for name in ("pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"):

        def pickled(root: Path, name: str = name) -> None:
            (root / SINGLE).rename(root / name)

        _directory(f"pickled-{name}", pickled, f"only pickled weights ({name}), which run code when read; convert", file="bad",
                   sharded=False)  # fmt: skip


def _sidecar_cases() -> None:
    text = to_bytes(CONFIG)
    for name, data, words in (
        ("empty", b"", "not valid JSON"), ("list", b"[]", "expected a JSON object"),
        ("not-utf-8", b'{"a":"\xff"}', "not UTF-8"), ("with-bom", b"\xef\xbb\xbf" + text, "not valid JSON"),
        ("deep", b'{"a":' * DEEP, "nested too deeply"), ("nan", b'{"a":NaN}', "NaN is not JSON"),
        ("many-digits", b'{"a":' + MANY_DIGITS.encode() + b"}", "not valid JSON"),
        ("twice", text[:-1] + b',"model_type":"llama"}', "twice"),
    ):  # fmt: skip
        _directory(f"config-{name}", _write("config.json", data), words, file="config.json")
    for name, put in (("fifo", os.mkfifo), ("directory", Path.mkdir)):
        _directory(f"config-{name}", _instead("config.json", put), "is not a regular file", file="config.json")
    out = "leads out of the checkpoint's directory"
    _directory("config-linked-outside", _outside("config.json", "../config.json"), out, file="config.json")
    _directory("config-over-the-limit", _sparse("config.json", 100_000_001), "over 100000000 bytes", file="config.json")
    nested = lambda root: _json(root, lambda table: table.update(extra={"\ud800": 1}), "config.json")  # noqa: E731
    _directory("config-name-with-surrogate", nested, "surrogate", file="config.json", late=True)
    for name, value in (("text", "yarn"), ("list", ["yarn"]), ("number", 8), ("true", True)):
        _directory(f"config-rope-is-{name}", lambda root, v=value: _json(root, lambda t: t.update(rope_scaling=v), "config.json"),
                   "rope_scaling", file="config.json", late=True)  # fmt: skip
    _directory("sidecar-fifo", _instead("merges.txt", os.mkfifo), "is not a regular file", file="merges.txt")
    _directory("sidecar-linked-outside", _instead("merges.txt", lambda p: p.symlink_to("/etc/hostname")), out, file="merges.txt")
    _directory("sidecar-linked-to-a-device", _instead("merges.txt", lambda p: p.symlink_to("/dev/zero")), out, file="merges.txt")

    def templates(root: Path) -> None:
        (root.parent / "templates").mkdir()
        (root.parent / "templates" / "secret.jinja").write_text("x")
        (root / "additional_chat_templates").symlink_to("../templates")

    _directory("templates-linked-outside", templates, out, file="secret.jinja")
    for name, value in (
        ("not-json", b"vocabulary"), ("list", b"[]"), ("no-model", b"{}"), ("model-is-list", b'{"model":[]}'),
        ("vocab-is-text", b'{"model":{"vocab":"ab"}}'), ("vocab-is-number", b'{"model":{"vocab":3}}'),
        ("vocab-of-numbers", b'{"model":{"vocab":[1,2]}}'), ("vocab-of-nothing", b'{"model":{"vocab":[[]]}}'),
        ("added-is-object", b'{"model":{},"added_tokens":{"a":1}}'), ("added-of-numbers", b'{"model":{},"added_tokens":[5]}'),
        ("added-without-content", b'{"model":{},"added_tokens":[{"id":2}]}'),
        ("added-without-id", b'{"model":{},"added_tokens":[{"content":"a"}]}'),
        ("added-content-is-list", b'{"model":{},"added_tokens":[{"id":2,"content":[]}]}'),
        ("twice", b'{"model":{},"model":{}}'), ("not-utf-8", b'{"model":{"vocab":{"\xff":1}}}'),
    ):  # fmt: skip
        _directory(f"tokenizer-{name}", _write("tokenizer.json", value), "tokenizer.json", file="tokenizer.json", late=True)


_prefix_cases()
_text_cases()
_name_cases()
_entry_cases()
_offset_cases()
_index_cases()
_shard_cases()
_sidecar_cases()
CASES = (*FILE_CASES, *DIRECTORY_CASES)


# What the operating system refuses to open: an OSError that names it, exit 1.


def _os_loop(file: str, *, sharded: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        root = make_expert(folder / "bad", 1, sharded=sharded)
        (root / file).unlink(missing_ok=True)
        (root / file).symlink_to(file)
        return root

    return make


def _os_file(folder: Path) -> Path:
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    return folder / "loop.safetensors"


def _os_dangling(folder: Path) -> Path:
    root = make_expert(folder / "bad", 1, sharded=False)
    (root / SINGLE).unlink()
    (root / SINGLE).symlink_to("gone")
    return root


OS_CASES: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "file-loop": (_os_file, "loop.safetensors"),
    "single-loop": (_os_loop(SINGLE, sharded=False), SINGLE),
    "index-loop": (_os_loop(INDEX, sharded=True), INDEX),
    "shard-loop": (_os_loop(SHARDS[1], sharded=True), SHARDS[1]),
    "sidecar-loop": (_os_loop("merges.txt", sharded=True), "merges.txt"),
    "single-linked-nowhere": (_os_dangling, SINGLE),
    "nothing-there": (lambda folder: folder / "gone", "gone"),
    "nothing-there-with-dots": (lambda folder: folder / "gone" / ".." / "x.safetensors", "x.safetensors"),
}


# Odd, but valid: both we and the reference open these.


def _one(dtype: str, shape: list[int], size: int, name: str = "a") -> bytes:
    return encode({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, bytes(range(size)))


_BYTES = {
    "F4": 1,
    "F6_E2M3": 3,
    "F6_E3M2": 3,
    **dict.fromkeys(("F32", "I32", "U32"), 16),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 32),
}
_BYTES |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 4)
_BYTES |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 8)
ODD_BUT_VALID: Mapping[str, bytes] = {
    "expert": VALID,
    "nothing-in-it": encode({}, b""),
    "metadata-only": encode({"__metadata__": {"a": ""}}, b""),
    "metadata-empty": encode({"__metadata__": {}}, b""),
    "padded": with_length(HEADER + b" " * 4000),
    "padded-with-newlines": with_length(HEADER + b"\n\r\t "),
    "spaced": with_length(json.dumps(entries(), indent=3).encode()),
    "names-in-another-order": encode(dict(reversed(entries().items()))),
    "fields-in-another-order": encode({"a": {"data_offsets": [0, 2], "shape": [2], "dtype": "U8"}}, b"ab"),
    "scalar": _one("F32", [], 4),
    "empty-name": _one("U8", [3], 3, ""),
    "name-of-controls": _one("U8", [3], 3, "\x01\x1b\n\x7f"),
    "name-with-a-path": _one("U8", [3], 3, "../../etc/passwd"),
    "name-almost-metadata": _one("U8", [3], 3, "__Metadata__"),
    "name-in-unicode": with_length('{"é😀":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'.encode(), b"ab"),
    "name-in-escapes": with_length(b'{"\\u00e9\\ud83d\\ude00":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab"),
    "name-very-long": _one("U8", [3], 3, "a" * 100_000),
    "rank-64": _one("U8", [1] * 63 + [3], 3),
    "empty-tensors-around": encode(
        {
            "a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
            "b": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
            "c": {"dtype": "F4", "shape": [0, 3], "data_offsets": [2, 2]},
            "d": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]},
            "e": {"dtype": "I64", "shape": [7, 0, 7], "data_offsets": [3, 3]},
        },
        b"abc",
    ),
    **{f"dtype-{dtype}": _one(dtype, [{1: 2}.get(size, 4)], size) for dtype, size in _BYTES.items()},
}
