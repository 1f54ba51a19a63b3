"""Laws of a stream: whatever the network does to it, its bytes are the file's, in order, and none travels for nothing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lswap_core.errors import SourceError, StalePlanError
from lswap_core.io import retries
from lswap_core.io.retries import InterruptedTransferError
from lswap_core.sources.range_stream import Stream, read_range
from lswap_core.sources.remote import Spans

DATA = bytes(range(256)) * 8


class Scripted:
    """A file whose transfers end after the scripted numbers of bytes, in turn; None: not at all."""

    path, size, etag = "file", len(DATA), None

    def __init__(self, cuts: list[int | None], piece: int, *, silently: bool = False) -> None:
        self.cuts, self.piece, self.silently = list(cuts), piece, silently
        self.asked: list[tuple[int, int]] = []

    def stream(self, begin: int, end: int) -> Generator[bytes, None, None]:
        self.asked.append((begin, end))
        cut = self.cuts.pop(0) if self.cuts else None
        stop = end if cut is None else min(end, begin + cut)
        for at in range(begin, stop, self.piece):
            yield DATA[at : min(at + self.piece, stop)]
        if stop < end and not self.silently:
            raise InterruptedTransferError("cut")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.0)


@given(
    st.integers(0, len(DATA)), st.integers(0, len(DATA)), st.integers(1, 700), st.integers(1, 700),
    st.lists(st.one_of(st.none(), st.integers(0, 600)), max_size=5), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_stream_gives_the_bytes_however_it_is_cut(
    a: int, b: int, piece: int, step: int, cuts: list[int | None], silently: bool, early: bool
) -> None:
    begin, end = sorted((a, b))
    reader, counted, found = Scripted(cuts, piece, silently=silently), [], bytearray(end - begin)
    with closing(Stream(reader, begin, end, counted.append)) as stream:
        if early:
            stream.start()
            assert bool(reader.asked) is (begin < end)
        for at in range(0, end - begin, step):
            stream.read_into(memoryview(found)[at : at + step])
    assert bytes(found) == DATA[begin:end]
    assert sum(counted) == end - begin
    assert all(asked_end == end for _, asked_end in reader.asked)


def test_after_enough_tries_without_a_byte_it_is_given_up() -> None:
    with pytest.raises(SourceError, match="6 times in a row"):
        read_range(Scripted([10] + [0] * 6, 8), 0, 100)
    assert read_range(Scripted([10] + [0] * 4 + [1] + [0] * 4, 8), 0, 100) == DATA[:100]


def test_more_than_was_asked_for_is_refused() -> None:
    class Generous(Scripted):
        def stream(self, begin: int, end: int) -> Generator[bytes, None, None]:
            yield from super().stream(begin, end + 1)

    with pytest.raises(SourceError, match="more than was asked for"):
        read_range(Generous([], 7), 0, 70)


def test_what_no_second_try_mends_is_not_tried_again() -> None:
    class Changed(Scripted):
        def stream(self, begin: int, end: int) -> Generator[bytes, None, None]:
            self.asked.append((begin, end))
            raise StalePlanError("changed")
            yield b""

    reader = Changed([], 1)
    with pytest.raises(StalePlanError):
        read_range(reader, 0, 1)
    assert len(reader.asked) == 1


def test_a_span_ends_where_it_was_planned_to() -> None:
    spans = Spans((10, 30), (20, 40))
    assert [spans.end_of(at, -1) for at in (9, 10, 19, 20, 29, 30, 39, 40)] == [-1, 20, 20, -1, -1, 40, 40, -1]
