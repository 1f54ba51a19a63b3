"""A file that is another than the planned one is noticed, and nothing that was read of it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lswap_core import FormatError, SourceError, StalePlanError, lay_out
from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.plan.plan import Plan
from lswap_core.recipe.draft import Draft
from lswap_core.sources.places import AnySource, Places
from lswap_core.sources.planned import reopen, source_of
from tests.sources.conformance.places import Place
from tests.sources.conformance.reading import check_line, in_file, largest, opened, read

CHANGES: dict[str, Callable[[bytes], bytes | None]] = {
    "its last byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "shorter": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another file": lambda data: b"x" * len(data),
    "gone": lambda _: None,
}


def read_all(source: AnySource, checkpoint: Checkpoint, file: str) -> None:
    """Read every tensor of a file and confirm it, as the executor does."""
    refs = [ref for ref in checkpoint.tensors.values() if ref.file == file]
    for ref in refs:
        read(source, (ref, 0, ref.size_bytes))
    source.confirm(refs)


def read_as_planned(plan: Plan, checkpoint: Checkpoint, file: str) -> None:
    """What another process reads, which knows only the plan."""
    with source_of({"math": reopen(Places(), plan, "math")}, lambda _: None) as source:
        read_all(source, checkpoint, file)


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changed_since_it_was_catalogued_is_a_stale_plan(place: Place, small: Path, how: str) -> None:
    """Where it is gone, another error of a source will do."""
    placed = place.put(small)
    checkpoint, source = opened(placed.location)
    victim = checkpoint.shards[1]
    place.change(placed, victim.name, CHANGES[how]((small / victim.name).read_bytes()))
    with source, pytest.raises((StalePlanError, SourceError, FileNotFoundError)) as caught:
        read_all(source, checkpoint, victim.name)
    check_line(caught.value, f"{placed.path}/{victim.name}")
    assert isinstance(caught.value, StalePlanError) or how == "gone"


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changed_since_it_was_planned_is_refused(place: Place, small: Path, how: str) -> None:
    """A file that is not in the safetensors format any more may be refused as such."""
    placed = place.put(small)
    checkpoint, source = opened(placed.location)
    source.close()
    plan, victim = lay_out(Draft.of(checkpoint)), checkpoint.shards[1]
    place.change(placed, victim.name, CHANGES[how]((small / victim.name).read_bytes()))
    with pytest.raises((StalePlanError, SourceError, FormatError)) as caught:
        read_as_planned(plan, checkpoint, victim.name)
    assert f"{placed.path}/{victim.name}" in str(caught.value) or (how == "gone" and victim.name in str(caught.value))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StalePlanError) or how != "its last byte"


def test_a_file_that_changes_while_it_is_read_is_noticed(place: Place, small: Path) -> None:
    placed = place.put(small)
    checkpoint, source = opened(placed.location)
    large = largest(checkpoint)
    data = (small / large.file).read_bytes()
    with source:
        assert read(source, (large, 0, 10)) == in_file(small, (large, 0, 10))
        place.change(placed, large.file, data[: large.begin + 100] + bytes(len(data) - large.begin - 100))
        with pytest.raises(StalePlanError, match="plan again") as caught:
            read_all(source, checkpoint, large.file)
    check_line(caught.value, f"{placed.path}/{large.file}")


def test_what_did_not_change_is_confirmed_beside_what_did(place: Place, small: Path) -> None:
    placed = place.put(small)
    checkpoint, source = opened(placed.location)
    first, second, _ = checkpoint.shards
    place.change(placed, second.name, b"another")
    with source:
        for ref in checkpoint.tensors.values():
            if ref.file == first.name:
                assert read(source, (ref, 0, ref.size_bytes)) == in_file(small, (ref, 0, ref.size_bytes))
                source.confirm([ref])
