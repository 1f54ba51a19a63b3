"""What a server does wrong: what another attempt mends leaves no trace, and what none mends is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lswap_core import SourceError
from lswap_core.io import retries
from tests.sources.conformance.places import Place
from tests.sources.conformance.reading import check_line, in_file, largest, opened, read


@pytest.fixture(autouse=True)
def _only_servers(place: Place) -> None:
    if not place.remote:
        pytest.skip("a disk has no server")


@pytest.mark.parametrize(("status", "said"), [(403, "refuses it"), (404, "does not have it")])
def test_what_a_server_refuses_is_one_line_after_few_requests(place: Place, expert: Path, status: int, said: str) -> None:
    placed = place.shared(expert)
    checkpoint, source = opened(placed.location)
    ref = largest(checkpoint)
    place.forget()
    place.refuse(status)
    with source, pytest.raises(SourceError, match=said) as caught:
        read(source, (ref, 0, ref.size_bytes))
    check_line(caught.value, f"{placed.path}/{ref.file}")
    assert len(place.ranges(placed)[ref.file]) <= 2


@pytest.mark.parametrize(("after", "times"), [(0, 1), (100_000, 2)])
def test_a_cut_connection_is_resumed_and_only_what_is_missing_is_asked_for(
    place: Place, expert: Path, after: int, times: int
) -> None:
    """However often, where some bytes come each time."""
    placed = place.shared(expert)
    checkpoint, source = opened(placed.location)
    ref = largest(checkpoint)
    place.forget()
    place.cut(after, times)
    with source:
        assert read(source, (ref, 0, ref.size_bytes)) == in_file(expert, (ref, 0, ref.size_bytes))
    asked = place.ranges(placed)[ref.file]
    assert asked == [(ref.begin + after * k, ref.end) for k in range(times + 1)]


def test_a_server_that_is_busy_for_a_while_is_asked_again(place: Place, expert: Path) -> None:
    placed = place.shared(expert)
    checkpoint, source = opened(placed.location)
    ref = largest(checkpoint)
    place.refuse(503, 1)
    with source:
        assert read(source, (ref, 0, ref.size_bytes)) == in_file(expert, (ref, 0, ref.size_bytes))


def test_attempts_are_bounded(place: Place, expert: Path) -> None:
    """The client library may make some attempts of its own within each of ours."""
    placed = place.shared(expert)
    checkpoint, source = opened(placed.location)
    ref = largest(checkpoint)
    place.forget()
    place.refuse(500)
    with source, pytest.raises(SourceError, match=f"{retries.ATTEMPTS} times in a row") as caught:
        read(source, (ref, 0, ref.size_bytes))
    check_line(caught.value, f"{placed.path}/{ref.file}")
    assert retries.ATTEMPTS <= len(place.ranges(placed)[ref.file]) <= 3 * retries.ATTEMPTS
