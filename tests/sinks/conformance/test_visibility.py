"""An output is absent or complete: what is seen of it before, while and after it is published; and what is in its way."""

from __future__ import annotations

from contextlib import closing

import pytest

from lswap_core import LswapError, RecipeError
from lswap_core.sinks.places import check_place, open_parts, open_sink
from tests.sinks.conformance.cases import COPIED, Case, write
from tests.sinks.conformance.conftest import Opener
from tests.sinks.conformance.places import Place


def test_what_is_done_is_not_seen_before_it_is_published_and_not_read_again(place: Place, cases: dict[str, Case]) -> None:
    case = cases["a swap"]
    write(place, case, publish=False)
    assert place.visible() == {}
    assert bool(place.everything()) == place.keeps
    again = write(place, case)
    assert again.read_bytes == (0 if place.can_resume else case.read_bytes)
    assert place.visible() == case.files


def test_nothing_is_seen_while_bytes_come(place: Place, cases: dict[str, Case]) -> None:
    case, seen = cases["a swap in another layout"], []
    write(place, case, before=lambda read: seen.append(place.visible()) if read % 5 == 0 else None, workers=1)
    assert len(seen) > 1
    assert not any(seen)


def test_cut_off_while_it_publishes_it_shows_no_manifest_and_the_same_command_ends_it(
    places: Opener, cases: dict[str, Case]
) -> None:
    """Whichever call to the place is the last that works."""
    case, number, failures = cases["shards and tensors of no bytes"], 0, 0
    while True:
        place = places()
        try:
            with place.failing(number):
                write(place, case, workers=1)
        except (OSError, LswapError):
            failures += 1
            found = place.visible()
            assert "lswap_manifest.json" not in found or found == case.files, number
            if place.keeps and found != case.files:
                write(place, case, workers=1)
                assert place.visible() == case.files
                assert place.everything() == case.files
        else:
            break
        number += 1 if number < 3 else 6
    assert failures > 3
    assert place.visible() == case.files


@pytest.mark.parametrize("name", ["lswap_manifest.json", "model-00001-of-00003.safetensors", "notes/x.txt"])
def test_what_is_there_is_never_written_over(place: Place, cases: dict[str, Case], name: str) -> None:
    place.occupy(name)
    with pytest.raises(RecipeError, match="exists|is not empty"):
        write(place, cases["a swap"])
    with pytest.raises(RecipeError, match="exists|is not empty"):
        check_place(place.into, ())
    assert place.everything() == {name: b"mine"}


def test_a_published_output_is_not_published_again(place: Place, cases: dict[str, Case]) -> None:
    case = cases["a swap"]
    write(place, case)
    for restart in (False, True):
        with pytest.raises(RecipeError, match="exists|is not empty|is published"):
            write(place, case, restart=restart)
    assert place.everything() == case.files


@pytest.mark.parametrize("inside", [False, True])
def test_a_place_in_or_around_a_source_is_refused(place: Place, inside: bool) -> None:
    source = place.into.rpartition("/")[0] if inside else f"{place.into}/source"
    with pytest.raises(RecipeError, match="is, contains or is inside the source"):
        open_sink(place.into, sources=(source,), options=COPIED, traffic=None, restart=False)
    assert place.everything() == {}


def test_two_files_of_one_name_are_refused(place: Place, cases: dict[str, Case]) -> None:
    """Two small ones, or a small one and a shard. Nothing of either is lost."""
    case = cases["a swap"]
    write(place, case, publish=False)
    if place.parts is None:
        with (
            case.source() as source,
            closing(open_sink(place.into, sources=(), options=COPIED, traffic=None, restart=False)) as sink,
        ):
            sink.begin(case.plan, source)
            _put_twice(sink, case)
    else:
        _put_twice(open_parts(place.into, case.plan, sources=()), case)
    assert place.visible() == {}
    write(place, case)
    assert place.visible() == case.files


def _put_twice(output: object, case: Case) -> None:
    put = output.put  # type: ignore[attr-defined]
    put("nested/x.txt", b"1")
    for name in ("nested/x.txt", case.plan.files[-1].name):
        with pytest.raises(RecipeError, match="two files of the output would have this name"):
            put(name, b"2")


def test_parts_that_are_missing_are_named(place: Place, cases: dict[str, Case]) -> None:
    if place.parts is None:
        pytest.skip("one process writes all of it")
    case = cases["a swap"]
    with pytest.raises(RecipeError, match="there are no parts of .*out"):
        open_parts(place.into, case.plan, sources=())
    write(place, case, only=range(2, place.parts + 1), publish=False)
    with pytest.raises(RecipeError, match=f"^part 1 of {place.parts} is missing"):
        open_parts(place.into, case.plan, sources=())
    assert place.visible() == {}
    write(place, case, only=(1,))
    assert place.visible() == case.files
