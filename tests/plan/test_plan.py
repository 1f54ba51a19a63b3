"""Layouts and plans: laws, and what a plan file can and cannot be."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.checkpoint.header import reference_order
from lswap_core.errors import FormatError, RecipeError
from lswap_core.plan.layout import lay_out
from lswap_core.plan.plan import Plan
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.expressions import Copy
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.recipe.selectors import layers, named
from tests.catalogue import checkpoint, llama

SWAPS = [
    LayerSwap(bottom=2, top=1, transition=1),
    LayerSwap(bottom=1, transition=2, ramp="linear", embed="lang"),
    LayerSwap(lang_layers=(3,), norm="blend"),
    LayerSwap(),
]
swaps = st.sampled_from(SWAPS)


def pair(files: Any = None, **options: Any) -> dict[str, Any]:
    return {"math": checkpoint(llama(6), files=files, **options), "lang": checkpoint(llama(6), "lang")}


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    names = draw(st.permutations(list(llama(6))))
    cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1), max_size=4)))
    files = [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    return draw(swaps).draft(**pair(files))


@given(drafts(), st.one_of(st.none(), st.integers(1, 3000)))
def test_steps_tile_every_output_exactly(draft: Draft, shard_size: int | None) -> None:
    plan = lay_out(draft, shard_size)
    assert sorted(step.name for step in plan.steps) == sorted(draft.tensors)
    for file in plan.files:
        at = file.header.data_begin
        for step in file.steps():
            assert (step.file, step.begin) == (file.name, at)
            assert (step.dtype, step.shape) == (step.made_of.dtype, step.made_of.shape)
            assert step.made_of == draft.tensors[step.name]
            at = step.end
        assert at == file.header.file_size
        assert file.header.metadata["format"] == "pt"


@given(drafts(), st.one_of(st.none(), st.integers(1, 3000)))
def test_json_round_trip_and_equal_plans_give_equal_text(draft: Draft, shard_size: int | None) -> None:
    plan = lay_out(draft, shard_size)
    text = plan.to_json()
    again = Plan.from_json(text, path="p")
    assert again.to_json() == text == lay_out(draft, shard_size).to_json()
    assert (again.digest, again.steps, again.files, again.sources) == (plan.digest, plan.steps, plan.files, plan.sources)


def test_an_index_that_does_not_begin_with_its_size_is_kept_too() -> None:
    names = list(llama(6))
    math = checkpoint(llama(6), files=[names[:5], names[5:]])
    index = json.loads(math.index or "")
    turned = json.dumps({"weight_map": index["weight_map"], "metadata": index["metadata"]})
    for text, kept in [(turned, True), (json.dumps({"weight_map": index["weight_map"]}), False)]:
        plan = lay_out(Draft.of(replace(math, index=text), checkpoint(llama(6), "lang")))
        assert (plan.index == text) is kept
        assert json.loads(plan.index or "")["weight_map"] == index["weight_map"]


@given(drafts(), st.one_of(st.none(), st.integers(1, 3000)))
def test_texts_are_those_of_the_json_module(draft: Draft, shard_size: int | None) -> None:
    plan = lay_out(draft, shard_size)
    text = plan.to_json()
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    if plan.index not in (None, draft.primary.index):
        assert plan.index == json.dumps(json.loads(plan.index or ""), indent=2, sort_keys=True) + "\n"


def test_names_of_all_kinds_are_written_as_the_json_module_writes_them() -> None:
    names = ['a"b', "a\\b", "\n{}%s%d", "\u00e9\u4e2d\U0001f600\u2028", ""]
    draft = Draft.of(checkpoint(dict.fromkeys(names, ("F32", (2,)))), checkpoint({}, "lang"))
    for plan in (lay_out(draft), lay_out(draft, 1), lay_out(draft.cast(named("*"), DTYPES["BF16"]))):
        assert plan.to_json() == json.dumps(json.loads(plan.to_json()), indent=1, ensure_ascii=False) + "\n"
        assert Plan.from_json(plan.to_json(), path="p") == plan


@given(drafts())
def test_the_default_layout_is_maths_own(draft: Draft) -> None:
    plan = lay_out(draft)
    primary = draft.primary
    assert [(file.name, file.header.raw) for file in plan.files] == [(shard.name, shard.header.raw) for shard in primary.shards]
    assert plan.index == primary.index


@given(drafts(), st.integers(1, 3000))
def test_a_layout_anew(draft: Draft, shard_size: int) -> None:
    plan = lay_out(draft, shard_size)
    count = len(plan.files)
    names = [f"model-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]
    assert [file.name for file in plan.files] == (names if count > 1 else ["model.safetensors"])
    for file in plan.files:
        sizes = [step.size_bytes for step in file.steps()]
        assert sum(sizes) <= shard_size or len(sizes) == 1
        shapes = {name: (info.dtype, info.shape) for name, info in file.header.tensors.items()}
        assert list(shapes) == reference_order(shapes)
    if count > 1:
        index = json.loads(plan.index or "")
        assert index["metadata"]["total_size"] == sum(step.size_bytes for step in plan.steps)
        assert index["weight_map"] == {step.name: step.file for step in plan.steps}
    else:
        assert plan.index is None


def test_metadata_says_pt_whatever_maths_say() -> None:
    draft = LayerSwap(bottom=1).draft(**pair(metadata={"format": "np", "kept": "yes"})).tag(made_by="hand")
    (file,) = lay_out(draft).files
    assert dict(file.header.metadata) == {"format": "pt", "kept": "yes", "made_by": "hand"}
    assert dict(lay_out(draft, 10**9).files[0].header.metadata) == {"format": "pt", "made_by": "hand"}


@pytest.mark.parametrize("stated", ["3", 5, None, 3.0])
def test_an_index_with_a_wrong_size_is_written_anew(stated: object) -> None:
    names = list(llama(6))
    draft = LayerSwap(bottom=1).draft(**pair([names[:5], names[5:]], total_size=stated))
    plan = lay_out(draft)
    assert plan.index != draft.primary.index or stated is None
    total = json.loads(plan.index or "")["metadata"]["total_size"]
    assert total == sum(step.size_bytes for step in plan.steps)


def test_a_lone_shard_with_an_index_keeps_both() -> None:
    draft = LayerSwap(bottom=1).draft(**pair([list(llama(6))]))
    plan = lay_out(draft)
    assert [file.name for file in plan.files] == ["model-00001-of-00001.safetensors"]
    assert plan.index == draft.primary.index


def test_a_draft_of_other_tensors_is_laid_out_anew() -> None:
    primary = checkpoint(llama(6), files=[["lm_head.weight"], [n for n in llama(6) if n != "lm_head.weight"]])
    for draft in (Draft.of(primary).drop(layers(0, 1)), Draft.of(primary).cast(named("*"), DTYPES["F32"])):
        assert [file.name for file in lay_out(draft).files] == ["model.safetensors"]
    assert lay_out(Draft.of(primary)).files[0].name == "model-00001-of-00002.safetensors"


def test_an_empty_checkpoint_has_a_plan() -> None:
    plan = lay_out(Draft.of(checkpoint({})))
    assert plan.steps == ()
    assert plan.summary() == "0 tensors; reads 0 B, writes 40 B"
    assert lay_out(Draft.of(checkpoint({})), 5).files[0].name == "model.safetensors"


def test_sums() -> None:
    plan = lay_out(SWAPS[0].draft(**pair(sidecars={"config.json": "{}"})))
    blended = 2 * 3 * 32
    total = sum(step.size_bytes for step in plan.steps)
    assert plan.read_bytes == total + blended
    assert plan.write_bytes == plan.files[0].header.file_size + 2
    names = list(llama(6))
    split = lay_out(SWAPS[0].draft(**pair([names[:5], names[5:]])))
    assert split.write_bytes == sum(f.header.file_size for f in split.files) + len(split.index or "")
    assert plan.summary() == "6 layers: 3 lang, 2 blended, 1 math; reads 904 B, writes 2.5 kB"


def test_the_digest_is_of_content_not_of_places() -> None:
    def plan(location: str, bottom: int = 1) -> Plan:
        math, lang = checkpoint(llama(3), location=location), checkpoint(llama(3), "lang")
        return lay_out(LayerSwap(bottom=bottom).draft(math=math, lang=lang))

    assert plan("/a").digest == plan("/b").digest != plan("/a", 2).digest


PLAN = lay_out(SWAPS[0].draft(**pair(sidecars={"additional_chat_templates/x.jinja": "{}"})))
NAME = "model.layers.2.attn.weight"


def mutated(change: Any) -> str:
    document = json.loads(PLAN.to_json())
    change(document)
    return json.dumps(document)


def set_at(*path: Any, to: Any) -> Any:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


def without(*path: Any) -> Any:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


STEP = ("files", 0, "tensors", NAME)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_at("format", to="lswap-plan/9"), "'format' is 'lswap-plan/9', expected 'lswap-plan/1'"),
        (without("sources"), "'sources' is missing"),
        (without("swap", "shares"), "'shares' is missing"),
        (set_at("host", to="base"), "the plan has no source 'base'"),
        (set_at("swap", "outside", "norm", "from", to="zzz"), "'zzz' is none of math, lang, blend"),
        (set_at("swap", "shares", to=[]), "a model has at least one layer"),
        (set_at("sources", 0, "name", to="a\nb"), "expected one line of text"),
        (lambda d: d["files"][0].update(header=d["files"][0]["header"].replace('"pt"', '"np"')), "do not say format: pt"),
        (set_at("files", to=3), "files: expected a list, found 3"),
        (set_at("files", 0, "name", to="../x"), "'../x' is not a plain file name"),
        (set_at("files", 0, "name", to=""), "is not a plain file name"),
        (set_at("sidecars", 0, "name", to="../../etc"), "'..' is not a plain file name"),
        (set_at("sidecars", 0, "name", to="/etc"), "'' is not a plain file name"),
        (set_at("sources", 0, "role", to="boss"), "the plan has no source 'math'"),
        (set_at("sources", 0, "role", to="The boss"), "sources.0.role: 'The boss' is no role"),
        (set_at("sources", 0, "role", to="x" * 33), "is no role; expected a lower-case letter"),
        (set_at("host", to="../math"), "host: '../math' is no role"),
        (set_at(*STEP, "blend", 0, "copy", 0, to="m\nath"), "is no role"),
        (set_at(*STEP, "blend", 0, "copy", 0, to="code"), "reads code 'model.safetensors' up to"),
        (set_at("files", 0, "header", to="{}"), "name different things"),
        (without(*STEP), "name different things"),
        (set_at(*STEP, "weight", to=1.0), "is between 0 and 1; at either end it is a copy"),
        (set_at(*STEP, "weight", to=1e-46), "is between 0 and 1; at either end it is a copy"),
        (set_at("swap", "outside", "norm", "tensors", to=["x"]), "swap.outside.norm: names 'x', which is no tensor of the output"),
        (set_at(*STEP, "weight", to="x"), "weight: expected a number from 0 to 1, found 'x'"),
        (set_at(*STEP, "blend", to=[]), "blend: expected a list of 2, found []"),
        (set_at(*STEP, "blend", 0, "copy", 2, to="F16"), "F16 and BF16 cannot be blended"),
        (set_at(*STEP, to={"copy": ["math", "model.safetensors", "F16", 1600, 1632]}), "gives F16 where BF16 is expected"),
        (set_at(*STEP, "blend", 0, "copy", 3, to=-2), "blend.0.copy.3: expected a whole number from 0"),
        (set_at(*STEP, "blend", 0, "copy", 4, to=10**9), "does not hold BF16 [4, 4]"),
        (set_at(*STEP, to={"copy": ["math", "model.safetensors", "I16", 1600, 1632], "cast": "BF16"}), "I16 cannot be cast to BF16"),
        (set_at(*STEP, to={"copy": ["math", "model.safetensors", "BF16", 10**6, 10**6 + 32]}), "beyond what the plan's sources have"),
        (set_at(*STEP, to={"copy": ["base", "model.safetensors", "BF16", 1600, 1632]}), "beyond what the plan's sources have"),
        (lambda d: d["files"].append(d["files"][0]), "two of them have one name, 'model.safetensors'"),
    ],
)  # fmt: skip
def test_an_unsound_plan_is_refused(change: Any, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        Plan.from_json(mutated(change), path="plan.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("plan.json")


ODD = st.sampled_from([None, True, 0.0, -1, 0, 48, 2**63, 10**9, "", "lang", "F32", "BF16", [], {}])


@given(st.integers(0, 4), ODD, st.booleans())
def test_a_copy_read_at_once_is_the_one_read_member_by_member(member: int, to: object, more: bool) -> None:
    def change(document: Any) -> None:
        entry = document["files"][0]["tensors"]["model.norm.weight"]
        entry["copy"][member] = to
        entry |= {"cast": "BF16"} if more else {}

    outcomes = []
    for way in (nullcontext(), mock.patch("lswap_core.plan.json_form.copies_from_json", return_value={})):
        with way:
            try:
                outcomes.append(repr(Plan.from_json(mutated(change), path="p")))
            except FormatError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("metadata", [5, {}, {"total_size": "a lie"}, {"total_size": 3}])
def test_an_index_in_a_plan_is_checked(metadata: object) -> None:
    names = list(llama(6))
    plan = lay_out(SWAPS[0].draft(**pair([names[:5], names[5:]])))
    document = json.loads(plan.to_json())
    index = json.loads(document["index"])
    document["index"] = json.dumps(index | {"metadata": metadata})
    with pytest.raises(FormatError, match=r"^p: index: "):
        Plan.from_json(json.dumps(document), path="p")


def test_an_index_in_a_plan_says_where_the_tensors_are() -> None:
    names = list(llama(6))
    document = json.loads(lay_out(SWAPS[0].draft(**pair([names[:5], names[5:]]))).to_json())
    index = json.loads(document["index"])
    index["weight_map"][names[0]] = "model-00002-of-00002.safetensors"
    with pytest.raises(FormatError, match="is not where the tensors are"):
        Plan.from_json(json.dumps(document | {"index": json.dumps(index)}), path="p")


@pytest.mark.parametrize("size", [0, -5])
def test_a_shard_holds_something(size: int) -> None:
    with pytest.raises(RecipeError, match="holds nothing"):
        lay_out(SWAPS[0].draft(**pair()), size)


def test_a_plan_of_casts_round_trips() -> None:
    math, lang = checkpoint(llama(3)), checkpoint(llama(3, dtype="F32"), "lang")
    plan = lay_out(LayerSwap(bottom=1, transition=1, cast=True).draft(math=math, lang=lang), 100)
    assert Plan.from_json(plan.to_json().encode(), path="p") == plan
    made_of = next(step.made_of for step in plan.steps if step.name == "model.layers.0.mlp.weight")
    assert isinstance(made_of, Copy)
    assert made_of.cast is DTYPES["BF16"]


def test_a_plan_without_a_recipe_round_trips() -> None:
    plan = lay_out(Draft.of(checkpoint(llama(1))).drop(named("lm_head.*")))
    assert Plan.from_json(plan.to_json(), path="p") == plan
