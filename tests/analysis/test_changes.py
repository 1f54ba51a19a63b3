"""Change maps as a document: strict, and without a base."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest

from lswap_core.analysis.changes import Change, ChangeMaps, figures
from lswap_core.errors import FormatError, RecipeError
from lswap_core.kernels.difference import DifferenceStats
from tests.maps import planted, stats


def document() -> dict[str, Any]:
    return json.loads(json.dumps(planted([1.0, 2.0], [0.5, 0.25]).to_json()))


def read(value: Any) -> ChangeMaps:
    return ChangeMaps.from_json(json.dumps(value).encode(), path="p")


def test_other_members_are_left_alone() -> None:
    assert read(document() | {"kinship": [], "suggestion": None}) == planted([1.0, 2.0], [0.5, 0.25])


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("format",), "lswap-changes/9", "'format' is"),
        (("sources",), [{"role": "math", "name": "m", "files": []}], "expected math and lang"),
        (("layers",), 0, "whole number from 1"),
        (("layers",), 1, "do not follow"),
        (("prefix",), "g", "do not follow"),
        (("tensors", "h.0.w", "layer"), 1, "do not follow"),
        (("tensors", "h.0.w", "math", "mean_abs"), 2.0, "do not follow"),
        (("tensors", "h.0.w", "lang", "sum_abs"), 2.0, "do not follow"),
        (("tensors", "h.0.w", "lang_share"), 0.9, "do not follow"),
        (("tensors", "h.0.w", "more"), 0, "do not follow"),
        (("tensors", "h.0.w", "shape"), [3, 3], "has 9 elements"),
        (("tensors", "h.0.w", "dtype"), "F99", "unknown dtype"),
        (("tensors", "h.0.w", "profiles"), {"math": {"rows": [1.0], "columns": [1.0] * 4}}, "a list of 4"),
        (("tensors", "h.0.w", "profiles"), {"mth": {"rows": [1.0], "columns": [1.0]}}, "do not follow"),
    ],
)
def test_what_does_not_hold_together_is_refused(place: tuple[str, ...], value: Any, said: str) -> None:
    wrong = document()
    at = wrong
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    with pytest.raises(FormatError, match=said):
        read(wrong)


def test_profiles_belong_to_matrices() -> None:
    wrong = json.loads(json.dumps(planted([1.0], [1.0], shape=(16,)).to_json()))
    wrong["tensors"]["h.0.w"]["profiles"] = {"math": {"rows": [1.0] * 16, "columns": [1.0]}}
    with pytest.raises(FormatError, match="a list of -1"):
        read(wrong)


def test_sums_that_overflowed_come_back() -> None:
    maps = planted([1.0, math.inf], [0.5, 1.0])
    document = json.loads(json.dumps(maps.to_json(), allow_nan=False))
    assert document["tensors"]["h.1.w"]["math"]["mean_abs"] == "inf"
    assert read(document).to_json() == maps.to_json()
    assert maps.by_layer()[1].lang_share is None
    assert maps.by_layer()[1].cosine is None


def test_changes_with_and_without_a_base_do_not_add_up() -> None:
    with_base, without = Change(stats(1), stats(1), stats(2)), Change(stats(1))
    assert (without + without).difference.count == 32
    for a, b in ((with_base, without), (without, with_base)):
        with pytest.raises(RecipeError, match="without one"):
            a + b


def test_nothing_is_no_change() -> None:
    none = Change(DifferenceStats(), DifferenceStats(), DifferenceStats())
    assert (none.cosine, none.lang_share) == (None, None)
    assert figures(DifferenceStats())["changed"] == 0.0
    assert Change(stats(1)).cosine is None
    assert Change(stats(1), stats(1, bad=1), stats(1)).cosine is None


def test_maps_without_a_base_know_it() -> None:
    maps = planted([1.0], [2.0], base=False)
    assert maps.base is None
    assert read(json.loads(json.dumps(maps.to_json()))) == maps
    assert copy.copy(maps) == maps
