"""Beside the reference implementation: whatever that refuses, ours refuses; what ours accepts means the same to both."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy

from lswap_core import FormatError, open_checkpoint

from .corpus import DATA, FILE_CASES, HEADER, NAMES, ODD_BUT_VALID, VALID, encode, entries, to_bytes, with_length

Tensors = dict[str, tuple[str, list[int], bytes]]

OURS_ALONE = {
    # What the reference takes against the specification or against sense, and we refuse on purpose.
    "space-before-the-brace", "newline-before-the-brace", "tab-before-the-brace",
    "name-twice", "name-twice-one-escaped", "name-twice-escaped-first", "name-twice-first-impossible", "name-three-times",
    "name-twice-escaped-slash", "name-twice-surrogate-pair", "metadata-key-twice", "metadata-key-twice-escaped",
    "name-with-nul", "name-is-nul", "metadata-is-null", "unknown-field", "entry-is-a-sequence",
    "rank-65", "rank-100000", "size-2^63-behind-a-zero-and-empty", "overflow-behind-a-zero-and-empty",
}  # fmt: skip
_FUZZ_SEEDS = 8
_FUZZ_ROUNDS = 500


def by_reference(data: bytes) -> Tensors | None:
    """What the reference finds in these bytes; None where it refuses them."""
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (view["dtype"], list(view["shape"]), bytes(view["data"])) for name, view in found}


def by_us(data: bytes, path: Path) -> Tensors | None:
    """What we find in these bytes; None where we refuse them."""
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path, role="math")
    except FormatError:
        return None
    return {name: (ref.dtype.name, list(ref.shape), data[ref.begin : ref.end]) for name, ref in checkpoint.tensors.items()}


def test_what_ours_alone_refuses_is_known() -> None:
    assert {case.id for case in FILE_CASES if by_reference(case.data or b"") is not None} == OURS_ALONE


def test_the_loader_for_numpy_refuses_what_the_reference_refuses() -> None:
    for case in FILE_CASES:
        if case.id not in OURS_ALONE:
            with pytest.raises(safetensors.SafetensorError):
                safetensors.numpy.load(case.data or b"")


def test_ours_refuses_what_the_reference_refuses(tmp_path: Path) -> None:
    taken = [case.id for case in FILE_CASES if by_us(case.data or b"", tmp_path / "a.safetensors") is not None]
    assert taken == []


@pytest.mark.parametrize("id_", ODD_BUT_VALID)
def test_both_accept_what_is_odd_but_valid(tmp_path: Path, id_: str) -> None:
    data = ODD_BUT_VALID[id_]
    expected = by_reference(data)
    assert expected is not None
    assert by_us(data, tmp_path / "a.safetensors") == expected


@pytest.mark.parametrize("id_", ODD_BUT_VALID)
def test_both_refuse_every_truncation(tmp_path: Path, id_: str) -> None:
    data = ODD_BUT_VALID[id_]
    for size in {*range(10), *range(max(len(data) - 10, 0), len(data)), *range(0, len(data), len(data) // 10 + 1)}:
        cut = data[:size]
        assert by_reference(cut) is None
        assert by_us(cut, tmp_path / "a.safetensors") is None


# Fuzzing, with seeds.

_NUMBERS = (
    0, 1, 2, 7, 8, 9, 16, 24, 32, 40, 44, 45, -1, -8, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30,
    1.0, 0.5,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, None, True, False, "", "F16", "BF16", "F4", "F64", "I8", "U8", "f16", "x", [], [0], [2], [4], [2, 2], [4, 1],
    [1, 4], [0, 8],
    [16, 24], [24, 32], [40, 44], [44, 44], [[]], {}, {"a": "b"}, {"dtype": "F16", "shape": [], "data_offsets": [44, 46]},
)  # fmt: skip
_SCRAPS = (
    b'"', b"\\", b"\\u0000", b"\\ud800", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\t", b"\0", b"\xff", b"\xc3\xa9",
    b"-", b"-0", b"0",
    b"1", b"1e1", b".0", b"9" * 30, b"null", b"true", b"NaN", b'"dtype":"F16",', b'"x":1,', b"\xef\xbb\xbf",
    b'"__metadata__":{},',
)  # fmt: skip


def _flip(data: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    at, scrap = rng.randrange(len(data)), rng.choice((*_SCRAPS, rng.randbytes(rng.randrange(1, 9))))
    return data[:at] + scrap + data[at + len(scrap) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((*_SCRAPS, rng.randbytes(rng.randrange(1, 9)))) + data[at:]


def _insert_in_header(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(HEADER) + 1)
    return with_length(HEADER[:at] + rng.choice(_SCRAPS) + HEADER[at:])


def _delete_in_header(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(HEADER))
    return with_length(HEADER[:at] + HEADER[at + rng.choice((1, 1, 2, 5, 20, 60)) :])


def _repeat_in_header(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.choices(range(len(HEADER)), k=2))
    return with_length(HEADER[:end] + HEADER[begin:])


def _length(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice((rng.randrange(2 * len(data)), rng.getrandbits(64), len(HEADER) + rng.randrange(-3, 4)))
    return length.to_bytes(8, "little") + data[8:]


def _data(data: bytes, rng: random.Random) -> bytes:
    return with_length(HEADER, DATA[: rng.randrange(len(DATA) + 1)] + rng.randbytes(rng.randrange(4)))


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inside for place in _places(part, (*at, key)))]


def _edit(data: bytes, rng: random.Random) -> bytes:
    """One to three edits to the values of the header: replaced, removed, renamed, moved."""
    table: Any = entries()
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.choice(_places(table)[1:] or [()])
        if not place:
            break
        holder = table
        for key in place[:-1]:
            holder = holder[key]
        action = rng.randrange(4)
        if action == 0 and isinstance(holder, dict):
            holder[rng.choice((*NAMES, "a", "", "__metadata__", "dtype", "shape"))] = holder.pop(place[-1])
        elif action == 1:
            del holder[place[-1]]
        else:
            holder[place[-1]] = json.loads(json.dumps(rng.choice(_VALUES)))
    return encode(table)


def _resize(data: bytes, rng: random.Random) -> bytes:
    """Consistent files, most of them: other dtypes, shapes and sizes, laid out anew with an occasional slip."""
    bits = {"F16": 16, "U8": 8, "F4": 4, "F6_E2M3": 6, "F64": 64, "C64": 64, "BOOL": 8}
    table: dict[str, Any] = {}
    at = 0
    for number in range(rng.randrange(6)):
        dtype = rng.choice(list(bits))
        shape = [rng.choice((0, 1, 2, 3, 4, 8)) for _ in range(rng.randrange(4))]
        count = 1
        for dim in shape:
            count *= dim
        size = count * bits[dtype] // 8 + (rng.randrange(40) == 0)
        table[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at := at + size]}
    names = list(table)
    rng.shuffle(names)
    return encode({name: table[name] for name in names}, bytes(rng.randbytes(at)))


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _overwrite, _cut, _insert, _insert_in_header, _delete_in_header, _repeat_in_header, _length, _data, _edit, _edit,
    _edit, _resize,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(_FUZZ_SEEDS))
def test_no_mutation_is_read_otherwise_than_by_the_reference(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    accepted = refused = 0
    for round_ in range(_FUZZ_ROUNDS):
        mutation = rng.choice(_MUTATIONS)
        data = mutation(VALID, rng)
        ours = by_us(data, tmp_path / "fuzzed.safetensors")
        if ours is None:
            refused += 1
            continue
        accepted += 1
        assert ours == by_reference(data), (mutation.__name__, round_, data)
    assert accepted > _FUZZ_ROUNDS // 20
    assert refused > _FUZZ_ROUNDS // 2


def test_every_single_bit_of_the_header(tmp_path: Path) -> None:
    for at in range(len(VALID) - len(DATA)):
        for bit in (0, 5):
            data = VALID[:at] + bytes([VALID[at] ^ 1 << bit]) + VALID[at + 1 :]
            ours = by_us(data, tmp_path / "flipped.safetensors")
            assert ours is None or ours == by_reference(data), (at, bit, data)


def test_the_header_that_mutations_start_from() -> None:
    assert to_bytes(entries()) == HEADER
    found = by_reference(VALID)
    assert found is not None
    assert set(found) == set(NAMES)
