"""Names: where the layers are, and who is what outside them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lswap_core.checkpoint.names import Outside, Stack, classify_outside, find_stack, split_layer
from lswap_core.errors import RecipeError
from lswap_core.recipe.selectors import layers, named, one_of


def blocks(prefix: str, count: int, rest: str = "w") -> list[str]:
    return [f"{prefix}.{n}.{rest}" for n in range(count)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.3.mlp.experts.7.w1", ("model.layers", 3)),
        ("transformer.h.11.attn.c_attn.bias", ("transformer.h", 11)),
        ("h.0.ln_1.weight", ("h", 0)),
        ("layers.10.weight", ("layers", 10)),
        ("model.norm.weight", None),
        ("0.weight", None),  # no stack without a name
        ("model.layers.3", None),  # nothing in the layer
        ("model.layers.03.w", None),
        ("model.layers.٣.w", None),  # a digit, but not an ASCII one
        ("", None),
    ],
)
def test_split_layer(name: str, found: tuple[str, int] | None) -> None:
    assert split_layer(name) == found


@pytest.mark.parametrize("prefix", ["model.layers", "transformer.h", "h", "model.language_model.layers", "gpt_neox.layers"])
@given(count=st.integers(1, 40))
def test_a_stack_is_found_from_names_alone(prefix: str, count: int) -> None:
    assert find_stack([*blocks(prefix, count), "lm_head.weight"]) == Stack(prefix, count)
    assert find_stack(blocks(prefix, count), expected=count).count == count


def test_config_decides_between_stacks() -> None:
    names = blocks("model.language_model.layers", 4) + blocks("vision.blocks", 6)
    assert find_stack(names, expected=4).prefix == "model.language_model.layers"
    assert find_stack(names, expected=6).prefix == "vision.blocks"
    assert find_stack(names, expected=6, prefix="model.language_model.layers") == Stack("model.language_model.layers", 4)
    assert find_stack(names, prefix="vision.blocks") == Stack("vision.blocks", 6)


def test_extra_layers_behind_the_last_are_not_part_of_the_stack() -> None:
    names = blocks("model.layers", 5)
    assert find_stack(names, expected=4, extra=1) == Stack("model.layers", 4)
    assert find_stack(names, expected=5, extra=1) == Stack("model.layers", 5)
    assert find_stack(names, expected=4, extra=1, prefix="model.layers") == Stack("model.layers", 4)
    assert Stack("model.layers", 4).layer_of("model.layers.4.w") is None


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (
            blocks("a", 3) + blocks("b", 3),
            {},
            "more than one stack of layers qualifies (a (3 layers), b (3 layers)); choose one with --layer-prefix",
        ),
        (blocks("a", 3) + blocks("b", 3), {"expected": 3}, "choose one with --layer-prefix"),
        (blocks("a", 3), {"expected": 4}, "config.json says 4 layers; numbered stacks: a (3 layers)"),
        (["x.weight"], {}, "numbered stacks: none"),
        (["a.0.w", "a.2.w"], {}, "numbered 0, 1, 2 ... found"),
        (["a.0.w", "a.2.w"], {"prefix": "a"}, "without gaps: 0 to 2, 2 of them"),
        (blocks("a", 3), {"prefix": "b"}, "no layers at 'b'"),
    ],
)
def test_ambiguity_names_the_candidates(names: list[str], options: dict, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_stack(names, where="here", **options)
    assert words in str(caught.value)
    assert str(caught.value).startswith("here")


def test_outside_is_told_by_place_and_name() -> None:
    names = [
        *blocks("model.language_model.layers", 2),
        "model.language_model.embed_tokens.weight",
        "model.language_model.norm.weight",
        "lm_head.weight",
        "model.vision_tower.norm.weight",
        "model.vision_tower.embed_tokens.weight",
        "model.norm.weight",
        "model.language_model.rotary_emb.inv_freq",
    ]
    assert classify_outside(names, Stack("model.language_model.layers", 2)) == Outside(
        embed=("model.language_model.embed_tokens.weight",),
        norm=("model.language_model.norm.weight",),
        head=("lm_head.weight",),
        other=(
            "model.vision_tower.norm.weight",
            "model.vision_tower.embed_tokens.weight",
            "model.norm.weight",
            "model.language_model.rotary_emb.inv_freq",
        ),
    )


def test_outside_of_a_stack_at_the_root() -> None:
    found = classify_outside(["h.0.w", "wte.weight", "wpe.weight", "ln_f.bias", "output.weight", "x"], Stack("h", 1))
    assert found == Outside(("wte.weight", "wpe.weight"), ("ln_f.bias",), ("output.weight",), ("x",))


def test_selectors_are_an_algebra() -> None:
    names = [*blocks("m.layers", 4), *blocks("v.layers", 4), "lm_head.weight", "M.layers.0.w"]
    low, heads = layers(0, 2, "m.layers"), named("lm_*", "nothing")

    def chosen(selector: object) -> set[str]:
        return {name for name in names if selector(name)}  # type: ignore[operator]

    assert chosen(low) == {"m.layers.0.w", "m.layers.1.w"}
    assert chosen(layers(3, 9)) == {"m.layers.3.w", "v.layers.3.w"}
    assert chosen(low | heads) == chosen(low) | chosen(heads)
    assert chosen(~low) == set(names) - chosen(low)
    assert chosen(named("*.w") & ~layers(0, 4)) == set()
    assert chosen(named("m.*")) == set(blocks("m.layers", 4))  # case matters
    assert chosen(one_of(names[:2])) == set(names[:2])
    shown = str(~(low | heads) & layers(1, 2))
    assert shown == "(~(layers(0, 2, 'm.layers') | named('lm_*', 'nothing')) & layers(1, 2))"
    assert str(one_of(["a"])) == "one_of(1 names)"


COMPONENTS = st.sampled_from(["model", "layers", "a", "0", "3", "07", "12", "123456789", "1234567890", "x7", "", "weight"])
NAMES = st.lists(COMPONENTS, min_size=1, max_size=6).map(".".join)


@settings(max_examples=300)
@given(names=st.lists(NAMES, min_size=1, max_size=6), other=NAMES, count=st.sampled_from([1, 4, 13, 10**9]))
def test_a_layer_of_a_stack_is_what_the_first_number_says(names: list[str], other: str, count: int) -> None:
    for prefix in {found[0] for name in names if (found := split_layer(name))}:
        for name in (*names, other):
            found = split_layer(name)
            said = found[1] if found and found[0] == prefix and found[1] < count else None
            assert Stack(prefix, count).layer_of(name) == said


def test_numbers_spelt_otherwise_make_no_layers() -> None:
    assert find_stack(["h.0.w", "h.1.w", "h.07.w", "07.w"]) == Stack("h", 2)
