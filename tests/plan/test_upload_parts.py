"""Parts of output files: laws that hold for any layout, and the limits of the stores."""

from __future__ import annotations

import random
from collections.abc import Collection
from itertools import pairwise

import pytest

from lswap_core.checkpoint.catalogue import Role, TensorRef
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.checkpoint.header import build_header
from lswap_core.errors import RecipeError
from lswap_core.plan.plan import OutputFile
from lswap_core.plan.upload_parts import Stretch, Stretches, UploadPart, cut_parts, stretch_file
from lswap_core.recipe.expressions import Blend, Copy, Expression

MIB = 2**20
GIB = 2**30
U8 = DTYPES["U8"]
F16 = DTYPES["F16"]
STORED: set[tuple[Role, str]] = {("math", "m"), ("lang", "l")}


def output(pieces: list[tuple[str, int]], *, shift: int = 0, name: str = "model.safetensors", first: int = 0) -> OutputFile:
    """A file of pieces, (kind, bytes). Copies lie in their source where they lie in the output, or `shift` bytes further. first: number of the first."""
    header = build_header({f"t{n:06d}": (F16, (size // 2,)) for n, (_, size) in enumerate(pieces, first)}, {"format": "pt"})
    made_of: list[Expression] = []
    for (kind, _), info in zip(pieces, header.tensors.values(), strict=True):
        begin, end = header.data_begin + info.begin + shift, header.data_begin + info.end + shift
        refs = {r: TensorRef(r, r[0], info.dtype, info.shape, begin, end) for r in ("math", "lang", "base")}  # type: ignore[arg-type]
        made_of.append(Blend(Copy(refs["math"]), Copy(refs["lang"]), 0.5) if kind == "blend" else Copy(refs[kind]))
    return OutputFile(name, header, tuple(made_of))


def parts_of(
    file: OutputFile, stored: Collection[tuple[Role, str]], header_of: tuple[Role, str] | None = None
) -> tuple[UploadPart, ...]:
    """The upload parts of a file that one worker sends alone."""
    return cut_parts(file.name, stretch_file(file, stored, header_of))


def check(file: OutputFile, parts: tuple[UploadPart, ...]) -> None:
    """What every store demands, and that each byte that is spliced is the right one."""
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert len(parts) <= 10_000
    assert (parts[0].begin, parts[-1].end) == (0, file.header.file_size)
    assert all(one.end == two.begin for one, two in pairwise(parts))
    assert all(5 * MIB <= part.size_bytes <= 5 * GIB for part in parts[:-1])
    assert 0 < parts[-1].size_bytes <= 5 * GIB
    origin_at = {}
    for step in file.steps():
        ref = step.made_of.refs[0]
        if isinstance(step.made_of, Copy) and (ref.role, ref.file) in STORED and step.size_bytes:
            origin_at[step.begin, step.end] = ref
    for part in parts:
        if part.origin is None:
            continue
        covered = 0
        for (begin, end), ref in origin_at.items():
            low, high = max(begin, part.begin), min(end, part.end)
            if low < high:
                assert (part.origin.role, part.origin.file) == (ref.role, ref.file)
                assert part.origin.begin + (low - part.begin) == ref.begin + (low - begin)
                covered += high - low
        head = max(0, min(file.header.data_begin, part.end) - part.begin) if part.begin < file.header.data_begin else 0
        assert covered + head == part.size_bytes


def seams(pieces: list[tuple[str, int]]) -> int:
    """Places where what lies beside each other is not from one stored file; the header's end is one."""
    kinds = [kind for kind, size in pieces if size]
    return 1 + sum(one != two for one, two in pairwise(kinds))


@pytest.mark.parametrize("seed", range(60))
def test_parts_are_whole_in_order_and_within_limits_and_little_travels(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [0, 2, 4096, MIB, 3 * MIB, 5 * MIB, 5 * MIB + 2, 7 * MIB, 9 * MIB, 40 * MIB, 700 * MIB]
    pieces = [(rng.choice(["math", "math", "lang", "blend", "base"]), rng.choice(sizes)) for _ in range(rng.randint(1, 40))]
    file = output(pieces)
    parts = parts_of(file, STORED)
    check(file, parts)
    sent = sum(part.size_bytes for part in parts if part.origin is None)
    needed = sum(size for kind, size in pieces if kind in ("blend", "base")) + file.header.data_begin
    assert sent <= needed + 5 * MIB * (seams(pieces) + 1)


def test_a_file_that_is_a_sources_is_spliced_whole() -> None:
    file = output([("math", 8 * MIB), ("math", 2), ("math", 3 * GIB)])
    parts = parts_of(file, STORED, ("math", "m"))
    check(file, parts)
    assert all(part.origin is not None for part in parts)
    assert parts[0].origin is not None
    assert parts[0].origin.begin == 0


def test_a_header_that_is_not_the_sources_travels_with_the_smallest_part() -> None:
    parts = parts_of(output([("math", 100 * MIB)]), STORED)
    assert [part.size_bytes for part in parts if part.origin is None] == [5 * MIB]


def test_nothing_is_spliced_where_nothing_lies_in_the_store() -> None:
    file = output([("math", 100 * MIB), ("lang", 30 * MIB)])
    parts = parts_of(file, set())
    check(file, parts)
    assert all(part.origin is None for part in parts)
    assert {part.size_bytes for part in parts[:-1]} == {16 * MIB}
    assert parts[-1].size_bytes <= 16 * MIB


def test_parts_grow_with_the_file() -> None:
    file = output([("blend", 600 * GIB), ("math", 2)])
    parts = parts_of(file, STORED)
    check(file, parts)
    assert max(part.size_bytes for part in parts) <= 128 * MIB


def test_more_seams_than_parts_there_may_be() -> None:
    file = output([(kind, 6 * MIB) for _ in range(8_000) for kind in ("math", "lang")])
    check(file, parts_of(file, STORED))


def test_a_file_beyond_what_a_store_can_hold_is_refused() -> None:
    with pytest.raises(RecipeError, match="--shard-size"):
        parts_of(output([("blend", 60_000 * GIB)]), STORED)


def test_copies_at_other_offsets_are_spliced_from_where_they_are() -> None:
    file = output([("math", 50 * MIB), ("math", 2), ("lang", 50 * MIB)], shift=1234)
    parts = parts_of(file, STORED)
    check(file, parts)
    assert sum(part.size_bytes for part in parts if part.origin is not None) > 89 * MIB


def test_cuts_that_give_too_many_parts_make_the_others_larger() -> None:
    size = 9_990 * 16 * MIB
    stretches = Stretches((Stretch(0, size, None),), 5 * MIB)
    assert len(cut_parts("m", stretches)) == 9_990
    cuts = [(16 * number + 8) * MIB for number in range(100)]
    parts = cut_parts("m", stretches, cuts)
    assert len(parts) <= 10_000
    assert {part.end for part in parts} >= {*cuts}
    assert (parts[0].begin, parts[-1].end) == (0, size)
    assert all(one.end == two.begin for one, two in pairwise(parts))


def test_more_cuts_than_parts_there_may_be() -> None:
    with pytest.raises(RecipeError, match="model-1 would take more than 10000 parts"):
        cut_parts("model-1", Stretches((Stretch(0, 20_000, None),), 5 * MIB), range(1, 20_000))
