"""Every range of every file, in any order and from any thread, has the file's bytes; a file that changes is noticed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lswap_core import FormatError, LswapError, SourceError, StalePlanError, lay_out
from lswap_core.checkpoint.catalogue import Checkpoint, TensorRef
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import Run, runs
from lswap_core.recipe.draft import Draft
from lswap_core.sources.places import AnySource, Places
from lswap_core.sources.planned import reopen, source_of
from tests.sources.conformance.places import Place

Range = tuple[TensorRef, int, int]
"""A tensor, an offset from its first byte, a number of bytes."""


def opened(location: str) -> tuple[Checkpoint, AnySource]:
    places = Places()
    checkpoint = places.open(location, "math")
    return checkpoint, places.source({"math": checkpoint})


def read(source: AnySource, what: Range) -> bytes:
    """The range, of a buffer whose other bytes nobody touches."""
    ref, offset, count = what
    memory = bytearray(b"\xee" * (count + 32))
    source.read_into(ref, offset, memoryview(memory)[16 : 16 + count])
    assert memory[:16] == memory[16 + count :] == b"\xee" * 16
    return bytes(memory[16 : 16 + count])


def in_file(root: Path, what: Range) -> bytes:
    ref, offset, count = what
    with (root / ref.file).open("rb") as file:
        file.seek(ref.begin + offset)
        return file.read(count)


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
    shelf, rng = place.put(expert), random.Random(1)
    checkpoint, source = opened(shelf.location)
    wanted = ranges_of(checkpoint, expert, rng, 20)
    rng.shuffle(wanted)
    with source:
        for what in wanted:
            assert read(source, what) == in_file(expert, what), what
        source.confirm(checkpoint.tensors.values())
        source.check()


def test_many_threads_read_at_once(place: Place, expert: Path) -> None:
    shelf, rng = place.put(expert), random.Random(2)
    checkpoint, source = opened(shelf.location)
    wanted = ranges_of(checkpoint, expert, rng, 40)
    rng.shuffle(wanted)
    with source, ThreadPoolExecutor(8) as pool:
        for what, found in zip(wanted, pool.map(lambda what: read(source, what), wanted), strict=True):
            assert found == in_file(expert, what), what


@pytest.mark.parametrize("seed", range(2))
def test_what_is_expected_changes_nothing_of_what_is_read(place: Place, expert: Path, seed: int) -> None:
    """The runs of a plan in pieces, as announced or not; and what nobody announced."""
    shelf, rng = place.put(expert), random.Random(seed)
    checkpoint, source = opened(shelf.location)
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
    checkpoint, source = opened(place.put(expert).location)
    with source:
        for shard in checkpoint.shards:
            found = source.descriptor("math", shard.name)
            assert (found is None) == place.served
            if found is not None:
                assert os.pread(found, 1 << 24, 0) == (expert / shard.name).read_bytes()


def test_messages_name_the_file_by_its_place(place: Place, expert: Path) -> None:
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    with source:
        for shard in checkpoint.shards:
            assert source.path_of("math", shard.name) == f"{shelf.path}/{shard.name}"


Change = Callable[[bytes], bytes | None]
CHANGES: dict[str, Change] = {
    "its last byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "shorter": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another file": lambda data: b"x" * len(data),
    "gone": lambda _: None,
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changed_since_it_was_catalogued_is_a_stale_plan(place: Place, expert: Path, how: str) -> None:
    """Or, where it is gone, an error all the same."""
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    victim = checkpoint.shards[1]
    place.change(shelf, victim.name, CHANGES[how]((expert / victim.name).read_bytes()))
    with source, pytest.raises((StalePlanError, SourceError, FileNotFoundError)) as caught:
        read_all(source, checkpoint, victim.name)
    one_line(caught.value, f"{shelf.path}/{victim.name}")
    assert isinstance(caught.value, StalePlanError) or how == "gone"


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changed_since_it_was_planned_is_refused(place: Place, expert: Path, how: str) -> None:
    """By another process, which knows of the plan only. A file that is no safetensors file any more may be refused as such."""
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    source.close()
    plan, victim = lay_out(Draft.of(checkpoint)), checkpoint.shards[1]
    place.change(shelf, victim.name, CHANGES[how]((expert / victim.name).read_bytes()))
    with pytest.raises((StalePlanError, SourceError, FormatError)) as caught:
        read_as_planned(plan, checkpoint, victim.name)
    assert victim.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StalePlanError) or how != "its last byte"


def read_as_planned(plan: Plan, checkpoint: Checkpoint, file: str) -> None:
    with source_of({"math": reopen(Places(), plan, "math")}, lambda _: None) as source:
        read_all(source, checkpoint, file)


def read_all(source: AnySource, checkpoint: Checkpoint, file: str) -> None:
    refs = [ref for ref in checkpoint.tensors.values() if ref.file == file]
    for ref in refs:
        read(source, (ref, 0, ref.size_bytes))
    source.confirm(refs)


def test_a_file_that_changes_while_it_is_read_is_noticed(place: Place, expert: Path) -> None:
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    large = max(checkpoint.tensors.values(), key=lambda ref: ref.size_bytes)
    data = (expert / large.file).read_bytes()
    with source:
        assert read(source, (large, 0, 10)) == in_file(expert, (large, 0, 10))
        place.change(shelf, large.file, data[: large.begin + 100] + bytes(len(data) - large.begin - 100))
        with pytest.raises(StalePlanError, match="plan again") as caught:
            read_all(source, checkpoint, large.file)
    one_line(caught.value, f"{shelf.path}/{large.file}")


def test_what_did_not_change_is_confirmed_beside_what_did(place: Place, expert: Path) -> None:
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    first, second, _ = checkpoint.shards
    place.change(shelf, second.name, b"another")
    with source:
        for ref in checkpoint.tensors.values():
            if ref.file == first.name:
                assert read(source, (ref, 0, ref.size_bytes)) == in_file(expert, (ref, 0, ref.size_bytes))
                source.confirm([ref])


def test_no_byte_is_made_up_beyond_the_end(place: Place, expert: Path) -> None:
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    last = max(checkpoint.tensors.values(), key=lambda ref: ref.end)
    with source, pytest.raises(LswapError) as caught:
        read(source, (last, last.size_bytes - 1, 2))
    one_line(caught.value, f"{shelf.path}/{last.file}")


@pytest.mark.parametrize("status", [403, 404])
def test_what_a_server_refuses_is_one_line(place: Place, expert: Path, status: int) -> None:
    if not place.served:
        pytest.skip("a disk has no server that refuses")
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    ref = max(checkpoint.tensors.values(), key=lambda ref: ref.size_bytes)
    place.refuse(status)
    with source, pytest.raises(SourceError) as caught:
        read(source, (ref, 0, ref.size_bytes))
    one_line(caught.value, f"{shelf.path}/{ref.file}")


@pytest.mark.parametrize("after", [0, 300_000])
def test_cut_connections_are_mended_a_few_times_and_then_told(place: Place, expert: Path, after: int) -> None:
    if not place.served:
        pytest.skip("a disk has no connections")
    shelf = place.put(expert)
    checkpoint, source = opened(shelf.location)
    ref = max(checkpoint.tensors.values(), key=lambda ref: ref.size_bytes)
    with source:
        place.cut(after, 3)
        assert read(source, (ref, 0, ref.size_bytes)) == in_file(expert, (ref, 0, ref.size_bytes))
        place.cut(0, 1000)
        with pytest.raises(SourceError, match="times in a row") as caught:
            read(source, (ref, 0, ref.size_bytes))
    one_line(caught.value, f"{shelf.path}/{ref.file}")


def one_line(error: BaseException, path: str) -> None:
    """What the user is told: it begins with the file, or is an OSError that names it."""
    said = str(error)
    assert "\n" not in said
    assert said.startswith(path) or (isinstance(error, OSError) and error.filename == path), said
