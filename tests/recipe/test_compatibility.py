"""What keeps two experts apart, and what does not."""

from __future__ import annotations

import json

import pytest

from lswap_core.errors import FormatError
from lswap_core.recipe.compatibility import compare
from tests.catalogue import checkpoint, llama


def test_equal_experts_have_no_issues() -> None:
    config, sidecars = {"num_hidden_layers": 2}, {"tokenizer.json": "{}", "vocab.txt": "a"}
    math, lang = (checkpoint(llama(2), role, config=config, sidecars=sidecars) for role in ("math", "lang"))
    found = compare(math, lang)
    assert (found.issues, found.notes) == ((), ())


def test_every_difference_of_tensors_is_listed_at_once() -> None:
    x = llama(2)
    y = dict(x) | {"extra": ("F32", (1,)), "model.norm.weight": ("F32", (4,)), "lm_head.weight": ("BF16", (9, 4))}
    del y["model.layers.0.attn.weight"]
    y["model.layers.1.mlp.weight"] = ("I8", (4, 4))
    issues = compare(checkpoint(x), checkpoint(y, "lang")).issues
    assert set(issues) == {
        "tensor 'extra' is in lang only",
        "tensor 'model.layers.0.attn.weight' is in math only",
        "tensor 'model.norm.weight' is BF16 in math, F32 in lang (--cast brings it to math's)",
        "tensor 'lm_head.weight' has shape [8, 4] in math, [9, 4] in lang",
        "tensor 'model.layers.1.mlp.weight' is BF16 in math, I8 in lang",
    }
    with_cast = compare(checkpoint(x), checkpoint(y, "lang"), allow_cast=True).issues
    assert set(issues) - set(with_cast) == {
        "tensor 'model.norm.weight' is BF16 in math, F32 in lang (--cast brings it to math's)"
    }


@pytest.mark.parametrize(
    ("x", "y", "issue"),
    [
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, "config.json: hidden_act is 'silu' in math, 'gelu' in lang"),
        ({"text_config": {"a": 1}}, {"text_config": {"a": 2}}, "config.json: text_config.a is 1 in math, 2 in lang"),
        ({"rope_theta": 1.0}, {"rope_theta": 2.0}, "config.json: rope is"),
        ({"rope_theta": 1.0}, {"rope_parameters": {"rope_theta": 2.0, "rope_type": "default"}}, "config.json: rope is"),
        ({"rope_theta": 1.0}, {}, "config.json: rope is"),
        ({"rope_theta": 1.0}, {"partial_rotary_factor": 0.5, "rope_theta": 1.0}, "config.json: rope is"),
        ({"quantization_config": {"bits": 8}}, {}, "config.json: quantization_config is"),
    ],
)
def test_structure_in_configs(x: dict, y: dict, issue: str) -> None:
    (found,) = compare(checkpoint(llama(1), config=x), checkpoint(llama(1), "lang", config=y)).issues
    assert found.startswith(issue)


@pytest.mark.parametrize(
    ("x", "y", "notes"),
    [
        ({"rope_theta": 1.0, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}}, 0),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn"}}, {"rope_parameters": {"rope_theta": 1.0, "rope_type": "yarn"}}, 0),
        ({"transformers_version": "4", "_name_or_path": "/x", "torch_dtype": "bfloat16"}, {"transformers_version": "5"}, 0),
        ({"rope_theta": 10000.0}, {}, 0),
        ({"partial_rotary_factor": 0.25}, {"rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0}}, 0),
        ({"rope_theta": 1.0}, {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, 1),
        ({"use_cache": True}, {"use_cache": False}, 1),
        ({"head_dim": 64}, {}, 1),
        ({"a": {"eos_token_id": 1}}, {"a": {"eos_token_id": 2}}, 1),
    ],
)
def test_what_fine_tuning_and_other_versions_change_is_a_note(x: dict, y: dict, notes: int) -> None:
    found = compare(checkpoint(llama(1), config=x), checkpoint(llama(1), "lang", config=y))
    assert found.issues == ()
    assert len(found.notes) == notes


def test_a_missing_config_is_said() -> None:
    (note,) = compare(checkpoint(llama(1)), checkpoint(llama(1), "lang", config={})).notes
    assert note.startswith("no config.json in math: ")


def tokenizer(vocab: object, added: object = ()) -> str:
    return json.dumps({"model": {"vocab": vocab}, "added_tokens": list(added) if added is not None else None})  # type: ignore[call-overload]


def vocabulary_issues(x: str, y: str) -> tuple[str, ...]:
    math, lang = (checkpoint(llama(1), r, sidecars={"tokenizer.json": text}) for r, text in (("math", x), ("lang", y)))
    return compare(math, lang).issues


def test_vocabularies_are_compared_as_tables() -> None:
    same = tokenizer({"a": 0, "b": 1}), tokenizer({"b": 1, "a": 0}, None)
    assert same[0] != same[1]
    assert vocabulary_issues(*same) == ()
    assert vocabulary_issues(tokenizer({"a": 0}, [{"content": "b", "id": 1}]), tokenizer({"a": 0, "b": 1})) == ()
    assert vocabulary_issues(tokenizer([["a", -1.0], ["b", -2.0]]), tokenizer({"a": 0, "b": 1})) == ()
    assert vocabulary_issues(tokenizer({"a": 0}), tokenizer({"a": 1})) == (
        "tokenizer.json: token 'a' has id 0 in math, 1 in lang",
    )
    many = vocabulary_issues(tokenizer({}), tokenizer({f"t{n}": n for n in range(10)}))
    assert many == tuple(f"tokenizer.json: token 't{n}' has id None in math, {n} in lang" for n in range(10))


@pytest.mark.parametrize(
    "text", ["{}", '{"model": 3}', '{"model": {}, "added_tokens": {"a": 1}}', '{"model": {"vocab": [[]]}}', "["]
)
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"/models/lang/tokenizer.json"):
        vocabulary_issues(tokenizer({}), text)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder", "type", "merges"])
def test_a_tokenizer_is_more_than_its_vocabulary(part: str) -> None:
    one, two = ({"model": {"vocab": {"a": 0}}} for _ in range(2))
    (two["model"] if part in ("type", "merges") else two)[part] = ["a b"]  # type: ignore[assignment]
    assert vocabulary_issues(json.dumps(one), json.dumps(two)) == (f"tokenizer.json: {part} differs between math and lang",)


def test_merges_are_the_same_in_both_spellings() -> None:
    one, two = (json.dumps({"model": {"merges": merges}}) for merges in (["a b", "ab c"], [["a", "b"], ["ab", "c"]]))
    assert vocabulary_issues(one, two) == ()


def test_other_vocabulary_files_are_compared_by_bytes() -> None:
    math, lang = (checkpoint(llama(1), r, sidecars={"merges.txt": r, "vocab.json": "x"}) for r in ("math", "lang"))
    assert compare(math, lang).issues == ("merges.txt: its bytes differ between math and lang",)
    assert compare(math, checkpoint(llama(1), "lang")).issues == ()
