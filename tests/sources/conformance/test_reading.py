"""Every range of every file, in any order and from any thread, has the file's bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lswap_core import LswapError, lay_out
from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.plan.runs import Run, runs
from lswap_core.recipe.draft import Draft
from lswap_core.sources.places import AnySource
from tests.sources.conformance.places import Place
from tests.sources.conformance.reading import Range, check_line, in_file, opened, read


def ranges_of(checkpoint: Checkpoint, root: Path, rng: random.Random, number: int) -> list[Range]:
    """Ends, middles and nothing at all of every tensor; and some that go on into the next ones."""
    found: list[Range] = []
    for ref in checkpoint.tensors.values():
        size = ref.size_bytes
        found += [(ref, 0, size), (ref, 0, 0), (ref, size, 0)]
        if size:
            found += [(ref, 0, 1), (ref, size - 1, 1), (ref, size // 3, size // 3)]
    refs = list(checkpoint.tensors.values())
    for _ in range(number):
        ref = rng.choice(refs)
        left = (root / ref.file).stat().st_size - ref.begin
        offset = rng.randrange(left + 1)
        found.append((ref, offset, rng.randrange(left - offset + 1)))
    return found


def test_every_range_has_the_files_bytes_in_any_order(place: Place, expert: Path) -> None:
    placed, rng = place.shared(expert), random.Random(1)
    checkpoint, source = opened(placed.location)
    wanted = rng.sample(ranges_of(checkpoint, expert, rng, 20), 100)
    with source:
        for what in wanted:
            assert read(source, what) == in_file(expert, what), what
        source.confirm(checkpoint.tensors.values())
        source.check()


def test_many_threads_read_at_once(place: Place, expert: Path) -> None:
    placed, rng = place.shared(expert), random.Random(2)
    checkpoint, source = opened(placed.location)
    wanted = rng.sample(ranges_of(checkpoint, expert, rng, 40), 60)
    with source, ThreadPoolExecutor(8) as pool:
        for what, found in zip(wanted, pool.map(lambda what: read(source, what), wanted), strict=True):
            assert found == in_file(expert, what), what


@pytest.mark.parametrize("seed", range(2))
def test_what_is_expected_changes_nothing_of_what_is_read(place: Place, expert: Path, seed: int) -> None:
    """The runs of a plan in pieces, as announced or not; and what nobody announced."""
    placed, rng = place.shared(expert), random.Random(seed)
    checkpoint, source = opened(placed.location)
    order = list(runs(lay_out(Draft.of(checkpoint)).steps))
    assert sorted(source.arrange(order), key=order.index) == order
    rng.shuffle(order)
    with source:
        source.expect(order[: len(order) // 2 if seed else None])
        for run in order:
            assert b"".join(pieces(source, run, rng)) == in_file(expert, (run.source, 0, run.size_bytes))
        for what in ranges_of(checkpoint, expert, rng, 5)[::7]:
            assert read(source, what) == in_file(expert, what), what


def pieces(source: AnySource, run: Run, rng: random.Random) -> Sequence[bytes]:
    found, at = [], 0
    while at < run.size_bytes:
        count = min(rng.randrange(1, 200_000), run.size_bytes - at)
        found.append(read(source, (run.source, at, count)))
        at += count
    return found


def test_a_descriptor_is_of_the_file_or_there_is_none(place: Place, expert: Path) -> None:
    checkpoint, source = opened(place.shared(expert).location)
    with source:
        for shard in checkpoint.shards:
            found = source.descriptor("math", shard.name)
            assert (found is None) == place.remote
            if found is not None:
                assert os.pread(found, 1 << 24, 0) == (expert / shard.name).read_bytes()


def test_messages_name_the_file_by_its_place(place: Place, expert: Path) -> None:
    placed = place.shared(expert)
    checkpoint, source = opened(placed.location)
    with source:
        for shard in checkpoint.shards:
            assert source.path_of("math", shard.name) == f"{placed.path}/{shard.name}"


def test_no_byte_is_made_up_beyond_the_end(place: Place, expert: Path) -> None:
    placed = place.shared(expert)
    checkpoint, source = opened(placed.location)
    last = max(checkpoint.tensors.values(), key=lambda ref: ref.end)
    with source, pytest.raises(LswapError) as caught:
        read(source, (last, last.size_bytes - 1, 2))
    check_line(caught.value, f"{placed.path}/{last.file}")
