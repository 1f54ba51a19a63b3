"""Sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lswap_core.errors import RecipeError
from lswap_core.text.plain import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("2gib", 2**31), ("1.5KB", 1500), ("7", 7), (" 7B ", 7), ("1TB", 10**12)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 XB", "-5GB", "5GB5", "1e9", "0", "0GB", "٥GB", "9" * 5000, "9" * 400 + ".5GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RecipeError, match="write it like 5GB"):
        parse_size(text)


@given(st.integers(1, 10**16))
def test_what_is_shown_reads_back_to_within_its_last_digit(size: int) -> None:
    shown = format_size(size)
    unit = parse_size("1" + shown.split()[1])
    assert abs(parse_size(shown) - size) <= unit * 0.051
