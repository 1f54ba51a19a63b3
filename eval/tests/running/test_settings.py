"""The table of settings, written out by hand for the model that the method's default is for; grids and their order."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import lswap_core
from lswap_core import Draft, LayerSwap
from lswap_core.errors import RecipeError
from lswap_eval.ablate.pairs import checked_run, describe, distinct, plan_pairs
from lswap_eval.ablate.settings import Setting, Sizes, ablation, changed, nearest_order, sweep, tensor_bytes

SHARES_OF_32 = {
    "soup": [0.5] * 32,
    "default": [1] * 5 + [0.5] + [0] * 23 + [0.5] + [1] * 2,
    "no-zone-math": [1] * 5 + [0] * 25 + [1] * 2,
    "no-zone-lang": [1] * 6 + [0] * 23 + [1] * 3,
    "bottom-zone": [1] * 5 + [0.5] + [0] * 26,
    "bottom": [1] * 5 + [0] * 27,
    "top-zone": [0] * 29 + [0.5] + [1] * 2,
    "top": [0] * 30 + [1] * 2,
    "bottom-all": [1] * 7 + [0] * 25,
    "top-all": [0] * 25 + [1] * 7,
    "bottom-as-top": [1] * 2 + [0] * 30,
    "top-as-bottom": [0] * 27 + [1] * 5,
    "middle": [0] * 5 + [0.5] + [1] * 23 + [0.5] + [0] * 2,
}


def shares_of(settings: list[Setting], layer_count: int) -> dict[str, list[float]]:
    return {s.id: list(s.recipe.zones(layer_count).weights) for s in settings if isinstance(s.recipe, LayerSwap)}


def test_the_table_for_32_layers() -> None:
    settings = ablation(32, Sizes().scaled(32), base=True)
    assert [s.id for s in settings if not isinstance(s.recipe, LayerSwap)] == ["base", "math", "lang"]
    assert shares_of(settings, 32) == SHARES_OF_32
    assert [s.id for s in ablation(32, Sizes(), base=False)] == [s.id for s in settings][1:]


@given(st.integers(1, 126))
def test_every_model_with_a_middle_has_a_table(layer_count: int) -> None:
    sizes = Sizes().scaled(layer_count)
    used = sizes.bottom + sizes.transition_bottom + sizes.transition_top + sizes.top
    if used >= layer_count:
        assert layer_count <= 4
        with pytest.raises(RecipeError, match=rf"= {used} layers leave no middle in a model of {layer_count}"):
            ablation(layer_count, sizes, base=False)
        return
    table = shares_of(ablation(layer_count, sizes, base=False), layer_count)
    assert [1 - share for share in table["default"]] == table["middle"]
    assert sum(table["bottom-all"]) == sum(table["top-all"]) == sum(table["no-zone-math"])
    assert [a + b for a, b in zip(table["bottom-zone"], table["top-zone"], strict=True)] == table["default"]


@pytest.mark.parametrize("sizes", [Sizes(0, 0, 0, 1), Sizes(1, 0, 0, 0), Sizes(2, -1, 0, 2)])
def test_a_default_without_an_end_is_refused(sizes: Sizes) -> None:
    with pytest.raises(RecipeError, match="has an end missing"):
        ablation(32, sizes, base=False)


def test_all_recipes_share_one_policy_outside_the_layers() -> None:
    settings = ablation(32, Sizes(), base=False, embed="lang", weight=0.25)
    recipes = [s.recipe for s in settings if isinstance(s.recipe, LayerSwap)]
    assert {(recipe.embed, recipe.norm, recipe.weight) for recipe in recipes} == {("lang", "math", 0.25)}


def test_a_grid_has_every_point_that_fits() -> None:
    points, misfits = sweep(8, range(6), range(5), (0, 1))
    assert {p.id for p in points} | set(misfits) == {f"b{b}u{u}t{t}" for b in range(6) for u in range(5) for t in (0, 1)}
    for point in points:
        assert isinstance(point.recipe, LayerSwap)
        point.recipe.zones(8)
    for name in misfits:
        b, u, t = int(name[1]), int(name[3]), int(name[5])
        with pytest.raises(RecipeError, match="but the model has 8"):
            LayerSwap(b, u, t).zones(8)


def test_nearest_neighbours_write_a_fraction_of_what_the_grid_order_writes(experts: dict[str, Path]) -> None:
    math, lang = (lswap_core.open_checkpoint(experts[role], role=role) for role in ("math", "lang"))
    points, _ = sweep(tiny.LAYERS, range(6), range(5), (0, 1))
    drafts = [point.draft(math=math, lang=lang) for point in points]

    def cost(order: list[Draft]) -> int:
        steps = itertools.pairwise([Draft.of(math), *order])
        return sum(tensor_bytes(made_of) for a, b in steps for made_of in changed(a, b).values())

    order = nearest_order(Draft.of(math), drafts)
    assert sorted(order) == list(range(60))
    afresh = sum(cost([draft]) for draft in drafts)
    assert cost([drafts[number] for number in order]) < min(cost(drafts), afresh / 3)


def test_pairs_share_what_is_one_model(experts: dict[str, Path], tmp_path: Path) -> None:
    """Three pairs of experts: the base is everybody's, lang is both maths', and a pair of an expert with itself is it."""

    def settings_of(layer_count: int) -> list[Setting]:
        return ablation(layer_count, Sizes(1, 1, 1, 1), base=True)

    paths = [str(experts[name]) for name in ("math", "lang")]
    pairs = plan_pairs(paths, [str(experts["lang"])], str(experts["base"]), settings_of)
    assert [pair.name for pair in pairs] == ["math+lang", "lang+lang"]
    own, same = ({run.setting.id: run for run in pair.runs} for pair in pairs)
    assert own["base"].identity == same["base"].identity
    assert own["base"].log == same["base"].log
    assert own["lang"].log == same["lang"].log == same["math"].log
    # with one layer at either end, matched counts are the single ends themselves
    assert own["bottom-as-top"].log == own["bottom"].log
    assert own["top-as-bottom"].log == own["top"].log
    assert len(distinct(pairs[0].runs)) == 16 - 2
    assert checked_run(pairs).setting.id == "default"
    assert str(experts["math"].parent) not in str(describe(pairs))


def test_directories_of_one_name_are_told_apart(experts: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "final").symlink_to(experts["math"])
    (tmp_path / "b" / "final").symlink_to(experts["lang"])
    paths = [str(tmp_path / name / "final") for name in ("a", "b")]
    names = [pair.math.name for pair in plan_pairs(paths, [str(experts["lang"])], None, lambda n: [Setting("math", "math", "")])]
    assert len(set(names)) == 2
