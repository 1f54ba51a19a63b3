"""What tensors are made of, as values and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lswap_core.checkpoint.catalogue import TensorRef
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.errors import FormatError, MismatchError, RecipeError
from lswap_core.plan.json_form import expression_from_json, expression_to_json
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.expressions import Adapted, Blend, Copy, Expression, TaskVectors, rounded_to
from lswap_core.recipe.layer_swap import LayerSwap
from lswap_core.recipe.selectors import named
from lswap_core.text.strict_json import Node
from tests.catalogue import checkpoint, llama

F32, BF16, F16 = DTYPES["F32"], DTYPES["BF16"], DTYPES["F16"]
REF = TensorRef("math", "m.safetensors", BF16, (4, 6), 8, 56)
FACTORS = (TensorRef("math", "a.safetensors", F32, (2, 6), 8, 56), TensorRef("math", "a.safetensors", F32, (4, 2), 56, 88))
ADAPTED = Adapted(REF, *FACTORS, scale=0.5)
TURNED = Adapted(REF._replace(shape=(6, 4)), *FACTORS, scale=2.0, transposed=True)
OTHER = Copy(TensorRef("lang", "l.safetensors", BF16, (4, 6), 8, 56))
TASKS = TaskVectors(Copy(REF), (OTHER, ADAPTED), (0.4, -1.5))
TIES = TaskVectors(OTHER, (Copy(REF),), (1.0,), 0.2, 0.9)
ALL = [
    Copy(REF),
    Copy(REF, cast=F16),
    ADAPTED,
    replace(ADAPTED, cast=F32),
    TURNED,
    Blend(ADAPTED, OTHER, 0.3),
    TASKS,
    TIES,
]


def parsed(entry: Any, made_of: Expression) -> Expression:
    return expression_from_json(Node(entry, path="p"), made_of.dtype, made_of.shape)


@pytest.mark.parametrize("made_of", ALL)
def test_json_round_trip(made_of: Expression) -> None:
    assert parsed(json.loads(json.dumps(expression_to_json(made_of))), made_of) == made_of


@pytest.mark.parametrize("made_of", ALL)
def test_rounding_changes_the_dtype_and_nothing_else(made_of: Expression) -> None:
    for dtype in (F16, F32):
        assert rounded_to(made_of, dtype).dtype == dtype
        assert (rounded_to(made_of, dtype).shape, rounded_to(made_of, dtype).refs) == (made_of.shape, made_of.refs)
        assert rounded_to(rounded_to(made_of, dtype), made_of.dtype) == made_of or made_of.dtype != BF16


def test_what_they_read() -> None:
    assert ADAPTED.refs == (REF, *FACTORS)
    assert TASKS.refs == (REF, OTHER.ref, REF, *FACTORS)


@pytest.mark.parametrize(
    ("made_of", "edit", "words"),
    [
        (ADAPTED, {"shapes": [[3, 6], [4, 2]]}, "does not hold"),
        (
            ADAPTED,
            {"adapt": [["math", "a", "F32", 8, 56], ["math", "a", "F32", 8, 56]], "shapes": [[2, 6], [6, 2]]},
            "does not change",
        ),
        (ADAPTED, {"transposed": 1}, "expected true or false"),
        (ADAPTED, {"transposed": True}, "does not change a tensor of shape"),
        (ADAPTED, {"scale": None}, "expected a number"),
        (ADAPTED, {"adapt": [["math", "a", "I32", 8, 56], ["math", "a", "F32", 56, 88]]}, "cannot be added up"),
        (ADAPTED, {"cast": "I32"}, "cannot be cast"),
        (TASKS, {"scales": [1.0]}, "a list of 2"),
        (TASKS, {"density": 0}, "density above 0"),
        (TASKS, {"density": 2}, "a number from 0 to 1"),
        (TASKS, {"strength": "x"}, "expected a number"),
        (TIES, {"task_vectors": [expression_to_json(OTHER)], "scales": []}, "need an expert at least"),
        (TIES, {"task_vectors": [expression_to_json(OTHER), expression_to_json(OTHER._replace(cast=F16))]}, "cannot be added up"),
    ],
)
def test_unsound_json_is_refused(made_of: Expression, edit: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parsed(expression_to_json(made_of) | edit, made_of)


def test_a_vector_is_not_adapted() -> None:
    entry = expression_to_json(ADAPTED)
    entry["copy"] = ["math", "m", "BF16", 8, 56]
    with pytest.raises(FormatError, match="does not change a tensor of shape"):
        expression_from_json(Node(entry, path="p"), BF16, (24,))


# --- drafts ------------------------------------------------------------------------------------------------------------


def test_impossible_task_vectors() -> None:
    math, lang, base = (checkpoint(llama(2), role) for role in ("math", "lang", "base"))
    draft = Draft.of(math)
    with pytest.raises(RecipeError, match="the density is 0"):
        draft.add_task_vectors(named("*"), base, (math, 1.0), density=0)
    with pytest.raises(RecipeError, match="a scale is not finite"):
        draft.add_task_vectors(named("*"), base, (math, 1.0), (lang, float("nan")))
    whole = checkpoint({"layers.0.w": ("I8", (4,))})
    with pytest.raises(MismatchError, match="only floating-point tensors"):
        Draft.of(whole).add_task_vectors(named("*"), checkpoint({"layers.0.w": ("I8", (4,))}, "base"), (whole, 1.0))


def test_impossible_swaps_by_module_and_reverts() -> None:
    plain = {f"layers.{n}.conv.weight": ("F32", (4,)) for n in range(3)}
    math, lang = checkpoint(plain), checkpoint(plain, "lang")
    with pytest.raises(RecipeError, match="--swap attn: no tensor of these layers"):
        LayerSwap(bottom=1, swap=("attn",)).draft(math=math, lang=lang)
    base = checkpoint({**plain, "layers.0.conv.weight": ("F32", (5,))}, "base")
    with pytest.raises(MismatchError, match=r"\[4\] in math, \[5\] in base"):
        LayerSwap(bottom=1, revert_layers=(2,)).draft(math=math, lang=lang, base=base)
