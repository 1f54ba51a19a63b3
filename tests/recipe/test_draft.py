"""The surgery verbs."""

from __future__ import annotations

import pytest

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.errors import MismatchError, RecipeError, SelectionError
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.expressions import Blend, Copy
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.recipe.selectors import layers, named
from tests.catalogue import checkpoint, llama

MATH = checkpoint(llama(4))
LANG = checkpoint(llama(4), "lang")
DRAFT = Draft.of(MATH)
ALL = named("*")


def test_verbs_leave_the_draft_they_start_from_alone() -> None:
    before = dict(DRAFT.tensors)
    DRAFT.drop(layers(0, 1)).replace(layers(1, 2), LANG).rename(named("lm_head.*"), lambda n: "x").tag(a="b")
    assert dict(DRAFT.tensors) == before == {name: Copy(ref) for name, ref in MATH.tensors.items()}
    assert dict(DRAFT.tags) == {}


def test_keep_and_drop_are_complements() -> None:
    kept, dropped = DRAFT.keep(layers(0, 2)), DRAFT.drop(layers(0, 2))
    assert kept.tensors.keys() | dropped.tensors.keys() == DRAFT.tensors.keys()
    assert not kept.tensors.keys() & dropped.tensors.keys()
    assert dropped.tensors == DRAFT.keep(~layers(0, 2)).tensors


@pytest.mark.parametrize("verb", ["keep", "drop", "select"])
def test_a_selector_that_matches_nothing_raises(verb: str) -> None:
    with pytest.raises(SelectionError, match=r"layers\(9, 10\) matches none of the 15 tensors"):
        getattr(DRAFT, verb)(layers(9, 10))


def test_replace_takes_the_same_names_from_the_source() -> None:
    done = DRAFT.replace(layers(0, 2), LANG)
    for name, made_of in done.tensors.items():
        assert made_of == Copy((LANG if name.startswith(("model.layers.0.", "model.layers.1.")) else MATH).tensors[name])
    assert set(done.sources) == {"math", "lang"}


def test_replace_reports_every_mismatch_at_once() -> None:
    shapes = llama(4) | {"model.norm.weight": ("BF16", (5,)), "lm_head.weight": ("I8", (8, 4))}
    del shapes["model.embed_tokens.weight"]
    with pytest.raises(MismatchError) as caught:
        DRAFT.replace(ALL, checkpoint(shapes, "lang"), cast=True)
    assert caught.value.issues == (
        "tensor 'model.embed_tokens.weight' is not in lang",
        "tensor 'model.norm.weight' has shape [4], lang has [5]",
        "tensor 'lm_head.weight' is BF16, lang has I8",
    )


def test_replace_casts_on_request_only() -> None:
    wide = checkpoint(llama(4, dtype="F32"), "lang")
    with pytest.raises(MismatchError, match="lang has F32"):
        DRAFT.replace(layers(0, 1), wide)
    done = DRAFT.replace(layers(0, 1), wide, cast=True)
    made_of = done.tensors["model.layers.0.attn.weight"]
    assert made_of == Copy(wide.tensors["model.layers.0.attn.weight"], DTYPES["BF16"])
    assert made_of.dtype is DTYPES["BF16"]


def test_rename() -> None:
    done = DRAFT.rename(named("lm_head.*"), lambda name: name.replace("lm_head", "output"))
    assert list(done.tensors)[-1] == "output.weight"
    assert done.tensors["output.weight"] == DRAFT.tensors["lm_head.weight"]


@pytest.mark.parametrize("name", ["model.norm.weight", "__metadata__", "a\0b", "\ud800"])
def test_rename_refuses_names_that_are_taken_or_none(name: str) -> None:
    with pytest.raises(RecipeError, match="rename of 'lm_head.weight'"):
        DRAFT.rename(named("lm_head.*"), lambda _: name)


def test_graft_adds_and_refuses_to_overwrite() -> None:
    bigger = checkpoint(llama(4) | {"vision.weight": ("F32", (2,))}, "lang")
    done = DRAFT.graft(named("vision.*"), bigger)
    assert done.tensors["vision.weight"] == Copy(bigger.tensors["vision.weight"])
    with pytest.raises(RecipeError, match="graft: 1 of the tensors are there already, the first is 'model.norm.weight'"):
        DRAFT.graft(named("model.norm.*", "vision.*"), bigger)
    with pytest.raises(SelectionError, match="matches none of the 16 tensors of /models/lang"):
        DRAFT.graft(named("audio.*"), bigger)


def test_blend() -> None:
    done = DRAFT.blend(layers(1, 2), (MATH, 0.75), (LANG, 0.25))
    name = "model.layers.1.mlp.weight"
    made_of = done.tensors[name]
    assert made_of == Blend(Copy(MATH.tensors[name]), Copy(LANG.tensors[name]), 0.25)
    assert (made_of.dtype, made_of.shape) == (DTYPES["BF16"], (4, 4))


@pytest.mark.parametrize(("weight", "source"), [(0.0, MATH), (1.0, LANG), (1e-46, MATH), (1 - 1e-12, LANG)])
def test_a_weight_of_nothing_or_all_is_a_copy(weight: float, source: object) -> None:
    done = DRAFT.blend(layers(1, 2), (MATH, 1 - weight), (LANG, weight))
    assert done.tensors["model.layers.1.mlp.weight"] == Copy(source.tensors["model.layers.1.mlp.weight"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.5, -0.5), (-0.5, 1.5), (float("nan"), 0.5)])
def test_blend_refuses_weights_that_are_no_shares(weights: tuple[float, float]) -> None:
    with pytest.raises(RecipeError, match="add up to 1"):
        DRAFT.blend(layers(1, 2), (MATH, weights[0]), (LANG, weights[1]))


def test_blend_refuses_what_has_no_arithmetic() -> None:
    shapes = llama(2) | {"model.layers.1.mlp.weight": ("I8", (4, 4)), "model.layers.1.attn.weight": ("F4", (4, 4))}
    math, lang = checkpoint(shapes), checkpoint(shapes, "lang")
    with pytest.raises(MismatchError, match="only floating-point tensors can be blended") as caught:
        Draft.of(math).blend(layers(0, 2), (math, 0.5), (lang, 0.5))
    assert len(caught.value.issues) == 2
    assert Draft.of(math).replace(layers(0, 2), lang).tensors["model.layers.1.mlp.weight"].dtype.name == "I8"


def test_cast() -> None:
    done = DRAFT.blend(layers(0, 1), (MATH, 0.5), (LANG, 0.5)).cast(ALL, DTYPES["F32"])
    assert {made_of.dtype.name for made_of in done.tensors.values()} == {"F32"}
    again = done.cast(ALL, DTYPES["BF16"])
    assert again.tensors["lm_head.weight"] == Copy(MATH.tensors["lm_head.weight"])  # back to a plain copy
    with pytest.raises(MismatchError, match="cast to I8: only floating-point tensors can be cast"):
        DRAFT.cast(layers(0, 1), DTYPES["I8"])


def test_one_role_is_one_checkpoint() -> None:
    other = checkpoint(llama(4), "lang", location="/elsewhere")
    with pytest.raises(RecipeError, match="two sources are both lang: /models/lang and /elsewhere"):
        DRAFT.replace(layers(0, 1), LANG).replace(layers(1, 2), other)
    assert DRAFT.replace(layers(0, 1), LANG).replace(layers(1, 2), checkpoint(llama(4), "lang")).sources["lang"] is LANG


def test_quantised_weights_are_not_blended_anywhere() -> None:
    shapes = {"lm_head.weight": ("F8_E4M3", (4,)), "lm_head.weight_scale": ("F32", (1,)), "plain.weight": ("F8_E4M3", (4,))}
    math, lang = checkpoint(shapes), checkpoint(shapes, "lang")
    with pytest.raises(MismatchError, match="quantised weights cannot be blended") as caught:
        Draft.of(math).blend(named("*.weight"), (math, 0.5), (lang, 0.5))
    assert caught.value.issues == ("tensor 'lm_head.weight' is F8_E4M3 with a scale beside it",)
    assert Draft.of(math).blend(named("plain.*"), (math, 0.5), (lang, 0.5)).tensors["plain.weight"].dtype.name == "F8_E4M3"


@pytest.mark.parametrize("tags", [{"n": 5}, {"n": "\ud800"}, {"format": "np"}])
def test_tags_that_no_loader_would_read(tags: dict) -> None:
    with pytest.raises(RecipeError, match="expected text"):
        DRAFT.tag(**tags)
    assert dict(DRAFT.tag(format="pt").tags) == {"format": "pt"}


def test_an_edit_makes_what_a_recipe_recorded_void() -> None:
    draft = LayerSwap(bottom=1).draft(math=MATH, lang=LANG)
    assert draft.swap is not None
    assert draft.tag(a="b").swap == draft.swap
    assert draft.drop(named("lm_head.*")).swap is None
