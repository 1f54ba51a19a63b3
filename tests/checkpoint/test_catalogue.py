"""Checkpoints as values."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lswap_core.checkpoint.catalogue import Checkpoint, Content, Shard, Sidecar, in_order, parse_role
from lswap_core.errors import FormatError, RecipeError
from tests.catalogue import checkpoint, llama


def test_refs_are_absolute_and_tile_each_file() -> None:
    shapes = llama(2)
    names = list(shapes)
    found = checkpoint(shapes, files=[names[:4], names[4:]])
    assert list(found.tensors) == names
    for shard in found.shards:
        at = shard.header.data_begin
        for ref in (ref for ref in found.tensors.values() if ref.file == shard.name):
            assert ref.begin == at
            at = ref.end
            assert ref.size_bytes == ref.end - ref.begin
        assert at == shard.header.file_size


def test_one_tensor_is_found_as_it_is_among_all() -> None:
    for made in (checkpoint(llama(2)), checkpoint(llama(2), "lang", files=[list(llama(2))[:3], list(llama(2))[3:]])):
        assert {name: made.find(name) for name in made.tensors} == made.tensors
        assert all(made.dtype_of(name) is ref.dtype for name, ref in made.tensors.items())
        assert made.find("model.layers.9.attn.weight") is None


def test_a_tensor_without_a_name_has_one_place_too() -> None:
    one = checkpoint({"": ("F32", (1,))})
    with pytest.raises(FormatError, match="is also in model.safetensors"):
        Checkpoint("math", "/m", "/m", "m", (*one.shards, *one.shards))


def test_a_tensor_has_one_place() -> None:
    one = checkpoint(llama(1))
    with pytest.raises(FormatError, match="is also in model.safetensors") as caught:
        Checkpoint("math", "/m", "/m", "m", (*one.shards, *one.shards))
    assert caught.value.tensor in one.tensors


@pytest.mark.parametrize("role", ["math", "lang", "base", "a", "code_2", "x" * 32])
def test_a_role_is_any_identifier(role: str) -> None:
    assert parse_role(role) == role


@pytest.mark.parametrize("role", ["", "Math", "2code", "_a", "a-b", "a b", "a\n", "ä", "../a", "x" * 33, "x" * 10_000, None, 3])
def test_what_is_no_role(role: Any) -> None:
    with pytest.raises(RecipeError, match="is no role; expected a lower-case letter") as caught:
        parse_role(role)
    assert len(str(caught.value)) < 250


def test_plans_list_the_known_roles_first_and_the_others_as_they_come() -> None:
    assert in_order(["code", "base", "lang", "art", "math"]) == ["math", "lang", "base", "code", "art"]


@pytest.mark.parametrize(
    ("config", "layers", "tied"),
    [
        (None, 4, False),
        ({"num_hidden_layers": 4}, 4, False),
        ({"n_layer": 4, "num_layers": 4, "tie_word_embeddings": True}, 4, True),
        ({"text_config": {"num_hidden_layers": 4, "tie_word_embeddings": True}}, 4, True),
        ({"text_config": {"num_hidden_layers": 4}, "tie_word_embeddings": True}, 4, True),
        ({"llm_config": {"num_hidden_layers": 4}, "text_config": None}, 4, False),
        ({"num_hidden_layers": 3, "num_nextn_predict_layers": 1}, 3, False),
        ({"num_hidden_layers": 4, "num_nextn_predict_layers": None}, 4, False),
    ],
)
def test_config_is_read_where_the_language_model_is_described(config: dict | None, layers: int, tied: bool) -> None:
    found = checkpoint(llama(4), config=config)
    assert found.stack().count == layers
    assert found.tied == tied


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a positive number of layers"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ({"num_hidden_layers": 4, "n_layer": 5}, "contradicts itself"),
        ({"num_hidden_layers": 5}, "config.json says 5 layers; numbered stacks: model.layers (4 layers)"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: dict, words: str) -> None:
    with pytest.raises(RecipeError, match="/models/math") as caught:
        checkpoint(llama(4), config=config).stack()
    assert words in str(caught.value)


def test_fingerprints_tell_headers_apart() -> None:
    one, two = (checkpoint(llama(n)).shards[0] for n in (1, 2))
    assert one.header_sha256 != two.header_sha256
    assert one.header_sha256 == checkpoint(llama(1), "lang").shards[0].header_sha256
    assert (
        one.fingerprint == Shard(one.name, one.header, 3).fingerprint != Shard(one.name, one.header, 3, b"other data").fingerprint
    )


KINDS = (None, "sha256", "git-sha1")


@given(
    st.sampled_from([b"", b"one", b"two"]), st.sampled_from([b"", b"one", b"two"]), st.sampled_from(KINDS), st.sampled_from(KINDS)
)
def test_files_are_equal_where_their_bytes_are_and_are_not_read_where_that_is_told(
    a: bytes, b: bytes, of_a: str | None, of_b: str | None
) -> None:
    read = []

    def sidecar(data: bytes, kind: str | None) -> Sidecar:
        algorithm = hashlib.sha256 if kind == "sha256" else hashlib.sha1
        told = None if kind is None else Content(len(data), f"{kind}:{algorithm(data).hexdigest()}")

        def bytes_of() -> bytes:
            read.append(data)
            return data

        return Sidecar("tokenizer.json", bytes_of, told)

    x, y = sidecar(a, of_a), sidecar(b, of_b)
    assert x.equals(y) is (a == b)
    assert not read or of_a is None or of_a != of_b
    assert (x.sha256, x.size) == (hashlib.sha256(a).hexdigest(), len(a))
