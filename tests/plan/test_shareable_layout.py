"""Files laid out anew: laws of their order and padding, against a count of shared blocks that knows nothing of runs."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.checkpoint.header import build_header, reference_order, size_in_bytes
from lswap_core.plan.layout import lay_out
from lswap_core.plan.plan import OutputFile
from lswap_core.plan.runs import BLOCK_BYTES, is_plain, runs
from lswap_core.plan.shareable_layout import arrange, run_order, split
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.expressions import Expression
from lswap_core.recipe.layer_swap import LayerSwap
from tests.catalogue import checkpoint

PARTS = ("attn.weight", "attn.bias", "mlp.weight", "norm.weight")
ROWS = st.sampled_from([0, 1, 3, 64, 2048, 4096, 4100, 6144, 10240])


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    """Two experts, each in an order and in shards of its own, of tensors up to ten blocks long."""
    kinds = {part: (draw(st.sampled_from(["BF16", "F32", "F64", "F8_E4M3", "F16"])), (draw(ROWS),)) for part in PARTS}
    shapes = {f"model.layers.{n}.{part}": kinds[part] for n in range(5) for part in PARTS}
    shapes["model.embed_tokens.weight"] = ("F4", (draw(ROWS) * 2,))
    experts: dict[str, Any] = {}
    for role in ("math", "lang"):
        ordered = draw(st.booleans())
        names = sorted(shapes) if ordered else draw(st.permutations(list(shapes)))
        cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1), max_size=2)))
        files = [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
        metadata = {"format": "pt", **({"note": "x" * draw(st.integers(1, 30))} if draw(st.booleans()) else {})}
        experts[role] = checkpoint(shapes, role, files=files, metadata=metadata)
    return LayerSwap(bottom=draw(st.integers(0, 2)), top=1, transition=draw(st.integers(0, 1))).draft(**experts)


def blocks_shared(file: OutputFile, data_begin: int) -> int:
    """Whole blocks of the file, if its data began there, all of whose bytes are in one run of some source's whole blocks."""
    fitting: Counter[int] = Counter()
    merged: list[list[Any]] = []  # begin, end, how far behind the source, whose
    for step in file.steps():
        begin, end = (at - file.header.data_begin + data_begin for at in (step.begin, step.end))
        ref = step.made_of.refs[0]
        if not is_plain(step) or begin == end:
            continue
        key = (ref.role, ref.file, ref.begin - begin)
        if merged and merged[-1][1] == begin and merged[-1][2] == key:
            merged[-1][1] = end
        else:
            merged.append([begin, end, key])
    for begin, end, (_, _, shift) in merged:
        if shift % BLOCK_BYTES == 0:
            for block in range(begin // BLOCK_BYTES, end // BLOCK_BYTES + 1):
                fitting[block] += begin <= block * BLOCK_BYTES and (block + 1) * BLOCK_BYTES <= end
    return sum(fitting.values())


def in_reference_order(file: OutputFile, made_of: dict[str, Expression]) -> OutputFile:
    shapes = {name: (e.dtype, e.shape) for name, e in made_of.items()}
    ordered = reference_order(shapes)
    header = build_header({name: shapes[name] for name in ordered}, file.header.metadata)
    return OutputFile(file.name, header, tuple(made_of[name] for name in ordered))


@settings(max_examples=60 if os.environ.get("LSWAP_LONG") else 20, deadline=None)
@given(drafts(), st.sampled_from([10_000, 60_000, 10**6]))
def test_as_many_blocks_as_possible_are_where_they_were(draft: Draft, shard_size: int) -> None:
    for file in lay_out(draft, shard_size).files:
        made_of = {name: e for name, e in draft.tensors.items() if name in file.header.tensors}
        plain = in_reference_order(file, made_of)
        found = blocks_shared(file, file.header.data_begin)
        for begin in range(plain.header.data_begin, plain.header.data_begin + BLOCK_BYTES, 8):
            assert found >= blocks_shared(file, begin)
            assert found >= blocks_shared(plain, begin)
        unpadded = len(file.header.raw.rstrip(b" "))
        assert file.header.data_begin - 8 - unpadded < BLOCK_BYTES
        if found == 0:
            assert file == plain


@settings(deadline=None)
@given(drafts(), st.sampled_from([1, 10_000, 30_000, 60_000, 10**6]))
def test_files_are_as_few_as_when_each_is_filled(draft: Draft, most: int) -> None:
    groups = split(draft.tensors, most)
    assert [name for group in groups for name in group] == list(draft.tensors)
    sizes = {name: size_in_bytes(e.dtype, e.shape) for name, e in draft.tensors.items()}
    assert all(sum(sizes[name] for name in group) <= most or len(group) == 1 for group in groups)
    filled: list[int] = [0]
    held = 0
    for size in sizes.values():
        if held and filled[-1] + size > most:
            filled.append(0)
            held = 0
        filled[-1] += size
        held += 1
    assert len(groups) == len(filled)


def test_files_end_where_their_sources_do_if_that_makes_none_more() -> None:
    names = [f"model.layers.{n}.w" for n in range(9)]
    files = [names[0:3], names[3:5], names[5:9]]
    primary = checkpoint(dict.fromkeys(names, ("F32", (25000,))), files=files, metadata={"say": "that headers differ"})
    assert split(Draft.of(primary).tensors, 400_000) == files
    assert split(Draft.of(primary).tensors, 300_000) == [names[0:3], names[3:6], names[6:9]]  # else they would be four
    assert split(Draft.of(primary).tensors, 900_000) == [names]
    for size, files_in_phase in ((400_000, True), (900_000, False)):
        plan = lay_out(Draft.of(primary), size)
        whole = sum((f.header.file_size - f.header.data_begin) // BLOCK_BYTES for f in plan.files)
        assert (sum(blocks_shared(f, f.header.data_begin) for f in plan.files) > 0.97 * whole) is files_in_phase


@settings(max_examples=60 if os.environ.get("LSWAP_LONG") else 20, deadline=None)
@given(drafts(), st.sampled_from([10_000, 60_000, 10**6]))
def test_every_tensor_is_aligned_and_the_reference_reads_the_file(draft: Draft, shard_size: int) -> None:
    plan = lay_out(draft, shard_size)
    assert {step.name for step in plan.steps} == set(draft.tensors)
    for file in plan.files:
        header = file.header
        assert header.data_begin % 8 == 0
        at = header.data_begin
        for step in file.steps():
            assert step.begin == at
            assert step.begin % max(1, step.dtype.bits // 8) == 0
            at = step.end
        read = dict(safetensors.deserialize(header.encode() + bytes(at - header.data_begin)))
        assert {name: (e["dtype"], tuple(e["shape"])) for name, e in read.items()} == {
            name: (info.dtype.name, info.shape) for name, info in header.tensors.items()
        }
    assert lay_out(draft, shard_size).to_json() == plan.to_json()


@given(drafts())
def test_neighbours_stay_neighbours(draft: Draft) -> None:
    """Where every size is a multiple of 8 nothing stands against it: as many runs as there are in the sources, no more."""
    made_of = {name: e for name, e in draft.tensors.items() if e.refs[0].size_bytes % 8 == 0 != e.refs[0].size_bytes}
    order = run_order(made_of)
    assert sorted(order) == sorted(made_of)
    header = build_header({name: (made_of[name].dtype, made_of[name].shape) for name in order}, {})
    steps = OutputFile("f", header, tuple(made_of[name] for name in order)).steps()
    copied = [e.refs[0] for e in made_of.values() if len(e.refs) == 1]
    ends = {(ref.role, ref.file, ref.end) for ref in copied}
    chains = sum((ref.role, ref.file, ref.begin) not in ends for ref in copied)
    assert len(list(runs(steps))) == chains + len(made_of) - len(copied)


def test_a_slice_of_a_shard_is_shared_but_for_its_edges() -> None:
    shapes = {f"model.layers.{n}.w": ("BF16", (1000, 100)) for n in range(10)}  # 200,000 bytes: not a whole number of blocks
    experts = {role: checkpoint(shapes, role, files=[list(shapes)]) for role in ("math", "lang")}
    plan = lay_out(LayerSwap(bottom=2, top=1).draft(**experts), 1_000_000)
    assert [len(file.made_of) for file in plan.files] == [5, 5]
    for file in plan.files:
        assert blocks_shared(file, file.header.data_begin) >= (file.header.file_size - file.header.data_begin) // BLOCK_BYTES - 3


def test_the_source_s_order_is_kept_where_the_reference_s_would_cost() -> None:
    names = [f"model.layers.{n}.w" for n in range(12)]  # 10 and 11 sort before 2
    primary = checkpoint(
        {name: ("BF16", (1000 + n, 1000)) for n, name in enumerate(names)}, metadata={"so": "that headers differ"}
    )
    (file,) = lay_out(Draft.of(primary), 10**9).files
    assert list(file.header.tensors) == names
    data_bytes = file.header.file_size - file.header.data_begin
    assert blocks_shared(file, file.header.data_begin) >= data_bytes // BLOCK_BYTES - 1


def test_the_heavier_phase_wins() -> None:
    light = {"model.layers.0.w": ("F32", (3000,))}
    heavy = {"model.layers.1.w": ("F32", (100_000,))}
    primary = checkpoint(light | heavy, files=[list(light), list(heavy)], metadata={"format": "pt", "so": "that phases differ"})
    (file,) = lay_out(Draft.of(primary), 10**9).files
    steps = {step.name: step for step in file.steps()}
    for name, agrees in (("model.layers.0.w", False), ("model.layers.1.w", True)):
        assert ((steps[name].begin - steps[name].made_of.refs[0].begin) % BLOCK_BYTES == 0) is agrees


def test_unaligned_sources_are_aligned_again() -> None:
    made_of: dict[str, Expression] = {}
    shapes = {"a": ("U8", (5,)), "b": ("F64", (4096,)), "c": ("BF16", (3,)), "d": ("F32", (1,)), "e": ("U8", (8192,))}
    made_of |= Draft.of(checkpoint(shapes)).tensors
    file = arrange("f.safetensors", made_of, {})
    for step in file.steps():
        assert step.begin % max(1, step.dtype.bits // 8) == 0


@pytest.mark.parametrize("names", [["a"], []])
def test_little_is_arranged_like_much(names: list[str]) -> None:
    primary = checkpoint(dict.fromkeys(names, ("BF16", (0,))))
    file = arrange("f.safetensors", dict(Draft.of(primary).tensors), {"format": "pt"})
    assert file.header == build_header(dict.fromkeys(names, (DTYPES["BF16"], (0,))), {"format": "pt"})
