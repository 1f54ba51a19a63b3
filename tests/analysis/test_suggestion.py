"""The suggestion follows changes where they were planted."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lswap_core.analysis.changes import ChangeMaps
from lswap_core.analysis.suggestion import suggest
from lswap_core.errors import RecipeError
from lswap_core.recipe.layer_swap import LayerSwap
from tests.maps import planted


@given(st.integers(0, 6), st.integers(0, 6), st.integers(3, 20), st.floats(1.75, 50), st.floats(1e-6, 1e6))
def test_ends_that_language_changed_are_found(bottom: int, top: int, middle: int, contrast: float, scale: float) -> None:
    """Where 12 of 15 layers are ends, language's dominance there is 0.557 at a contrast of 1.75, just over the margin; less is
    rightly not taken for a finding.
    """
    if not bottom and not top:
        return
    ends = [1.0] * bottom + [0.0] * middle + [1.0] * top
    math = [contrast if not end else 1.0 for end in ends]
    lang = [scale * (contrast if end else 1.0) for end in ends]  # however much longer it was trained
    found = suggest(planted(math, lang))
    assert (found.bottom, found.top) == (bottom, top)
    assert (found.transition_bottom, found.transition_top) == (min(bottom, 1), min(top, 1))
    zones = LayerSwap(**found.options).zones(len(ends))  # type: ignore[arg-type]
    assert zones.lang == tuple(n for n, end in enumerate(ends) if end)
    assert len(zones.blended) == (bottom > 0) + (top > 0)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0, 1), min_size=n, max_size=n)] * 2)))
def test_a_suggestion_is_a_swap_that_fits_and_leaves_a_layer_to_math(drawn: tuple[list[float], list[float]]) -> None:
    try:
        found = suggest(planted(*drawn))
    except RecipeError:
        return
    zones = LayerSwap(**found.options).zones(len(drawn[0]))  # type: ignore[arg-type]
    assert zones.math
    assert found.bottom or found.top
    for length, dominance in ((found.bottom, found.dominance), (found.top, found.dominance[::-1])):
        assert not length or dominance[0] > 0.5


def test_a_layer_out_of_line_does_not_end_a_zone() -> None:
    assert suggest(planted([1, 1, 2, 1, 9, 9, 9, 9, 9, 9], [9, 9, 1, 9, 1, 1, 1, 1, 1, 1])).bottom == 4


def test_layers_that_neither_dominates_are_blended() -> None:
    found = suggest(planted([1, 1, 5, 5, 5, 9, 9, 9, 5, 1], [9, 9, 5, 5, 5, 1, 1, 1, 5, 9]))
    assert found.options == {"bottom": 2, "top": 1, "transition_bottom": 2, "transition_top": 1}
    assert found.flags == "--bottom 2 --top 1 --transition-bottom 2 --transition-top 1"
    assert "a heuristic" in found.sentence()
    assert found.to_json()["heuristic"] is True


def test_a_short_model_keeps_room_for_math() -> None:
    assert suggest(planted([1, 9, 1], [9, 1, 9])).options == {"bottom": 1, "top": 1, "transition": 0}
    found = suggest(planted([1, 9, 9, 1], [9, 1, 1, 9]))
    assert (found.transition_bottom, found.transition_top) == (1, 0)


@pytest.mark.parametrize(
    ("maps", "why"),
    [
        (planted([1, 2], [2, 1], base=False), "give --base"),
        (planted([1, 1, 1], [2, 2, 2]), "nothing speaks for a layer swap"),
        (planted([9, 9, 1, 1, 1, 9, 9], [1, 1, 9, 9, 9, 1, 1]), "nothing speaks for a layer swap"),
        (planted([0, 0], [1, 1]), "layers of math did not change"),
        (planted([1, 1], [0, 0]), "layers of lang did not change"),
    ],
)
def test_where_nothing_speaks_for_a_swap_it_says_why(maps: ChangeMaps, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        suggest(maps)


def test_layers_that_neither_changed_are_a_draw() -> None:
    assert suggest(planted([0, 0, 5, 0], [5, 0, 0, 0])).dominance == (1.0, 0.5, 0.0, 0.5)


def test_all_layers_are_needed() -> None:
    maps = planted([1, 9, 9], [9, 1, 1])
    del maps.tensors["h.1.w"]  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="1 of 3 layers were not measured"):
        suggest(dataclasses.replace(maps))
