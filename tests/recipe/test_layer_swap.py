"""Layer swaps: zones as laws, drafts against a definition by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lswap_core.errors import MismatchError, RecipeError
from lswap_core.recipe.expressions import Blend, Copy, Expression
from lswap_core.recipe.layer_swap import LayerSwap, Zones
from lswap_core.text.plain import parse_layers
from tests.catalogue import checkpoint, llama

small = st.integers(0, 12)


@given(
    small,
    small,
    small,
    small,
    st.integers(1, 40),
    st.sampled_from(["constant", "linear"]),
    st.one_of(st.just(0.5), st.floats(0.01, 0.99)),
)
def test_zones_partition_the_layers(b: int, tb: int, tu: int, u: int, count: int, ramp: Any, weight: float) -> None:
    assume((b or not tb) and (u or not tu))
    assume(ramp == "constant" or weight == 0.5)
    swap = LayerSwap(bottom=b, top=u, transition_bottom=tb, transition_top=tu, ramp=ramp, weight=weight)
    if b + tb + tu + u > count:
        with pytest.raises(RecipeError) as caught:
            swap.zones(count)
        assert f"bottom {b} + transition {tb} + transition {tu} + top {u} = {b + tb + tu + u} layers" in str(caught.value)
        assert f"the model has {count}" in str(caught.value)
        return
    zones = swap.zones(count)
    assert sorted(zones.lang + zones.blended + zones.math) == list(range(count))
    assert zones.lang == (*range(b), *range(count - u, count))
    assert zones.blended == (*range(b, b + tb), *range(count - u - tu, count - u))
    assert zones.math == tuple(range(b + tb, count - u - tu))


@given(st.integers(1, 6), st.integers(1, 6))
def test_a_linear_ramp_falls_from_lang_to_math_in_equal_steps(bottom: int, top: int) -> None:
    shares = LayerSwap(bottom=1, top=1, transition_bottom=bottom, transition_top=top, ramp="linear").zones(20).weights
    low, high = [1.0, *shares[1 : 1 + bottom], 0.0], [1.0, *shares[::-1][1 : 1 + top], 0.0]
    for seam in (low, high):
        steps = [a - b for a, b in pairwise(seam)]
        assert steps == pytest.approx([1 / len(steps)] * len(steps))


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [0, 0, 0, 0, 0, 0]),
        ({"bottom": 6}, [1, 1, 1, 1, 1, 1]),
        ({"bottom": 1, "transition": 1}, [1, 0.5, 0, 0, 0, 0]),  # a seam vanishes with its end
        ({"top": 1, "transition": 2, "weight": 0.25}, [0, 0, 0, 0.25, 0.25, 1]),
        ({"bottom": 1, "top": 1, "transition": 2, "transition_top": 0}, [1, 0.5, 0.5, 0, 0, 1]),
        ({"bottom": 1, "transition": 1, "weight": 1}, [1, 1, 0, 0, 0, 0]),
        ({"bottom": 1, "transition": 1, "weight": 0}, [1, 0, 0, 0, 0, 0]),
        ({"lang_layers": (2, 3)}, [0, 0, 1, 1, 0, 0]),
        ({"lang_layers": (0,), "blend_layers": (1, 2), "ramp": "linear"}, [1, 2 / 3, 1 / 3, 0, 0, 0]),
        ({"lang_layers": (5,), "blend_layers": (3, 4), "ramp": "linear"}, [0, 0, 0, 1 / 3, 2 / 3, 1]),
        ({"blend_layers": (0, 4)}, [0.5, 0, 0, 0, 0.5, 0]),
    ],
)
def test_settings(options: dict[str, Any], shares: list[float]) -> None:
    assert LayerSwap(**options).zones(6).weights == pytest.approx(tuple(shares))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bottom": -1}, "--bottom is -1; expected a number of layers, 0 or more"),
        ({"top": 1.5}, "--top is 1.5"),
        ({"transition": True}, "--transition is True"),
        ({"transition_bottom": 1}, "--transition-bottom asks for a seam, but --bottom is 0"),
        ({"bottom": 2, "transition_top": 1}, "--transition-top asks for a seam, but --top is 0"),
        ({"bottom": 2, "lang_layers": (1,)}, "leave out --bottom, --top and --transition"),
        ({"lang_layers": (1, 2), "blend_layers": (2, 3)}, "layers 2 are in --lang-layers and in --blend-layers"),
        ({"weight": 1.5}, "--weight is 1.5; expected lang's weight"),
        ({"weight": float("nan")}, "--weight is nan"),
        ({"weight": "0.5"}, "--weight is '0.5'"),
        ({"ramp": "linear", "weight": 0.3, "bottom": 1}, "--weight 0.3 has no effect with --ramp linear"),
        ({"lang_layers": ("a",)}, "--lang-layers is ('a',); expected numbers of layers"),
        ({"ramp": "steep"}, "--ramp is 'steep'; expected one of constant, linear"),
        ({"embed": "both"}, "--embed is 'both'; expected one of math, lang, blend"),
        ({"norm": None}, "--norm is None"),
        ({"head": "x"}, "--head is 'x'"),
    ],
)
def test_impossible_values_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        LayerSwap(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lang_layers": (6, 7)}, "layers 6, 7 do not exist; the model has layers 0 to 5"),
        ({"blend_layers": (2,), "ramp": "linear"}, "have language layers on neither side"),
        ({"lang_layers": (1, 3), "blend_layers": (2,), "ramp": "linear"}, "have language layers on both sides"),
    ],
)
def test_explicit_sets_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        LayerSwap(**options).zones(6)
    assert words in str(caught.value)


@pytest.mark.parametrize(("text", "numbers"), [("3", (3,)), ("0-3,30,31", (0, 1, 2, 3, 30, 31)), (" 2 , 2,1-1", (1, 2))])
def test_layer_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_layers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0-999999999", "1-2-3", "²", "9" * 5000])
def test_what_is_no_layer_list(text: str) -> None:
    with pytest.raises(RecipeError, match="write it like 0-3,30,31"):
        parse_layers(text)


def by_hand(name: str, shares: tuple[float, ...], outside: dict[str, float], math: Any, lang: Any) -> Expression:
    parts = name.split(".")
    share = shares[int(parts[2])] if parts[1] == "layers" else outside.get(name, 0.0)
    x, y = Copy(math.tensors[name]), Copy(lang.tensors[name])
    return x if share == 0 else y if share == 1 else Blend(x, y, share)


@pytest.mark.parametrize(
    ("options", "outside"),
    [
        ({"bottom": 2, "top": 1, "transition": 1}, {}),
        ({"bottom": 2, "top": 1, "transition": 2, "ramp": "linear", "embed": "lang"}, {"model.embed_tokens.weight": 1.0}),
        ({"bottom": 1, "norm": "lang", "head": "lang"}, {"model.norm.weight": 1.0, "lm_head.weight": 1.0}),
        ({"bottom": 1, "embed": "blend", "weight": 0.125}, {"model.embed_tokens.weight": 0.125}),
        ({"lang_layers": (3, 4)}, {}),
        ({"bottom": 8, "embed": "lang", "norm": "lang", "head": "lang"}, dict.fromkeys(("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), 1.0)),
    ],
)  # fmt: skip
def test_drafts_are_what_the_definition_says(options: dict[str, Any], outside: dict[str, float]) -> None:
    swap = LayerSwap(**options)
    math, lang = checkpoint(llama(8)), checkpoint(llama(8), "lang")
    draft = swap.draft(math=math, lang=lang)
    shares = swap.zones(8).weights
    assert dict(draft.tensors) == {name: by_hand(name, shares, outside, math, lang) for name in math.tensors}
    assert draft.swap is not None
    assert draft.swap.weights == shares
    accounted = {n for _, names in draft.swap.outside.values() for n in names}
    assert accounted == {name for name in math.tensors if "layers" not in name}


def test_a_layer_is_the_whole_block_and_others_stay_math() -> None:
    shapes = llama(3) | {
        "model.layers.0.attn.weight_scale": ("F32", (1,)),
        "model.layers.0.attn.inv": ("I64", (2,)),
        "vision.norm.weight": ("F32", (2,)),
    }
    math, lang = checkpoint(shapes), checkpoint(shapes, "lang")
    draft = LayerSwap(bottom=1).draft(math=math, lang=lang)
    assert {made_of.ref.role for name, made_of in draft.tensors.items() if ".layers.0." in name} == {"lang"}  # type: ignore[union-attr]
    assert draft.swap.outside["other"] == ("math", ("vision.norm.weight",))  # type: ignore[union-attr]
    assert any("1 tensor neither in the layers" in note for note in draft.swap.notes)  # type: ignore[union-attr]


@pytest.mark.parametrize("config", [{"num_hidden_layers": 3, "tie_word_embeddings": True}, {"num_hidden_layers": 3}])
@pytest.mark.parametrize("head", [True, False])
def test_tied_embeddings_are_one_tensor(config: dict, head: bool) -> None:
    math, lang = (checkpoint(llama(3, head=head), role, config=config) for role in ("math", "lang"))
    tied = not head or "tie_word_embeddings" in config
    draft = LayerSwap(bottom=1, embed="lang").draft(math=math, lang=lang)
    assert draft.swap.outside["head"][0] == ("lang" if tied else "math")  # type: ignore[union-attr]
    if head:
        assert draft.tensors["lm_head.weight"].ref.role == ("lang" if tied else "math")  # type: ignore[union-attr]
    contradiction = LayerSwap(bottom=1, embed="lang", head="math")
    if tied:
        with pytest.raises(RecipeError, match="--head math contradicts --embed lang: the two are tied"):
            contradiction.draft(math=math, lang=lang)
        assert LayerSwap(bottom=1, embed="lang", head="lang").draft(math=math, lang=lang).tensors == draft.tensors
    else:
        assert contradiction.draft(math=math, lang=lang).tensors["lm_head.weight"].ref.role == "math"  # type: ignore[union-attr]


def test_asking_for_a_part_that_is_not_there() -> None:
    shapes = {name: entry for name, entry in llama(2).items() if name != "model.norm.weight"}
    with pytest.raises(RecipeError, match="--norm lang: no tensor outside the layers is recognised as norm"):
        LayerSwap(bottom=1, norm="lang").draft(math=checkpoint(shapes), lang=checkpoint(shapes, "lang"))


def test_a_seam_without_its_end_is_said() -> None:
    draft = LayerSwap(bottom=1, transition=1).draft(math=checkpoint(llama(3)), lang=checkpoint(llama(3), "lang"))
    assert "no seam at the top: --top is 0, so --transition 1 blends nothing there" in draft.swap.notes  # type: ignore[union-attr]


def test_experts_that_do_not_fit_are_refused_with_every_reason() -> None:
    with pytest.raises(MismatchError, match="/models/math and /models/lang cannot be combined") as caught:
        LayerSwap(bottom=1).draft(math=checkpoint(llama(3)), lang=checkpoint(llama(4), "lang"))
    assert len(caught.value.issues) == 3


def test_cast_brings_lang_to_maths_dtype() -> None:
    math, lang = checkpoint(llama(3)), checkpoint(llama(3, dtype="F32"), "lang")
    draft = LayerSwap(bottom=1, transition=1, cast=True).draft(math=math, lang=lang)
    assert {made_of.dtype.name for made_of in draft.tensors.values()} == {"BF16"}
    blended = draft.tensors["model.layers.1.mlp.weight"]
    assert isinstance(blended, Blend)
    assert blended.y.cast is not None
    with pytest.raises(MismatchError, match="--cast brings it to math's"):
        LayerSwap(bottom=1).draft(math=math, lang=lang)


def test_quantised_weights_are_copied_with_their_scales_and_never_blended() -> None:
    shapes = llama(3)
    for n in range(3):
        shapes |= {f"model.layers.{n}.attn.weight": ("F8_E4M3", (4, 4)), f"model.layers.{n}.attn.weight_scale_inv": ("F32", (1,))}
    math, lang = checkpoint(shapes), checkpoint(shapes, "lang")
    draft = LayerSwap(bottom=1).draft(math=math, lang=lang)
    assert draft.tensors["model.layers.0.attn.weight_scale_inv"] == Copy(lang.tensors["model.layers.0.attn.weight_scale_inv"])
    with pytest.raises(MismatchError, match="as with --transition 0") as caught:
        LayerSwap(bottom=1, transition=1).draft(math=math, lang=lang)
    assert caught.value.issues == ("tensor 'model.layers.1.attn.weight' is F8_E4M3 with a scale beside it",)


def test_options_are_recorded_where_they_are_not_the_default() -> None:
    assert LayerSwap(bottom=4, top=2, transition=2).to_json() == {"bottom": 4, "top": 2, "transition": 2}
    assert LayerSwap(lang_layers=(1,), cast=True).to_json() == {"lang_layers": (1,), "cast": True}
    assert Zones((1.0, 0.0)).blended == ()


def test_options_round_trip() -> None:
    for swap in (LayerSwap(bottom=4, cast=True), LayerSwap(lang_layers=(1, 2), blend_layers=(3,), head="lang"), LayerSwap()):
        assert LayerSwap.from_json(json.loads(json.dumps(swap.to_json()))) == swap


@pytest.mark.parametrize("options", [{"top_layers": 3}, {"lang_layers": 3}, {"bottom": "2"}, {"bottom": [2]}, {"weight": "abc"}])
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        LayerSwap.from_json(options)


def test_roles_are_those_of_the_arguments() -> None:
    math, lang = checkpoint(llama(2)), checkpoint(llama(2), "lang")
    with pytest.raises(RecipeError, match="opened as 'lang' and 'math'"):
        LayerSwap(bottom=1).draft(math=lang, lang=math)


def test_many_other_tensors_are_listed_in_part() -> None:
    shapes = llama(2) | {f"vision.{name}.weight": ("F32", (1,)) for name in "abcdefghij"}
    draft = LayerSwap(bottom=1).draft(math=checkpoint(shapes), lang=checkpoint(shapes, "lang"))
    (note,) = draft.swap.notes[:1]  # type: ignore[union-attr]
    assert note.startswith("10 tensors neither")
    assert note.endswith("vision.h.weight, ...")
    assert len(draft.swap.outside["other"][1]) == 10  # type: ignore[union-attr]
