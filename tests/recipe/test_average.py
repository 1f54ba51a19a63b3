"""Averages of any number of checkpoints, in any role: the bytes of the definition, which the oracle has in fp64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lswap_core import (
    Average,
    Blend,
    Copy,
    Draft,
    WriteOptions,
    execute,
    kernels,
    lay_out,
    layers,
    named,
    open_checkpoint,
    verify,
)
from lswap_core.checkpoint.catalogue import TensorRef
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.engine.evaluate import OPERAND_BYTES, Evaluator
from lswap_core.errors import FormatError, MismatchError, RecipeError, VerificationError
from lswap_core.plan.plan import Plan
from lswap_core.recipe.expressions import Adapted
from tests import oracle
from tests.build import BITS, Model, Tensor, read_model, tensor, write_model
from tests.catalogue import checkpoint, llama

FLOATS = tuple(oracle.NUMPY)
NAME = "model.layers.1.mlp.weight"
ROLES = ("math", "code", "law", "lang", "art_2", "med", "bio", "geo")
EXPERTS = {role: checkpoint(llama(4), role) for role in ROLES}
ALL = named("*")


def experts(*roles: str) -> list[Any]:
    return [EXPERTS[role] for role in roles]


# The draft


def test_three_are_an_average_and_two_a_blend() -> None:
    math, code, law = experts("math", "code", "law")
    done = Draft.of(math).blend(layers(1, 2), (math, 0.5), (code, 0.3), (law, 0.2))
    made_of = done.tensors[NAME]
    assert made_of == Average(tuple(Copy(side.tensors[NAME]) for side in (math, code, law)), (0.5, 0.3, 0.2))
    assert (made_of.dtype, made_of.shape) == (DTYPES["BF16"], (4, 4))
    assert [ref.role for ref in made_of.refs] == ["math", "code", "law"]
    assert list(done.sources) == ["math", "code", "law"]
    assert done.tensors["model.layers.0.mlp.weight"] == Copy(math.tensors["model.layers.0.mlp.weight"])
    two = Draft.of(code).blend(layers(1, 2), (code, 0.75), (law, 0.25))
    assert two.tensors[NAME] == Blend(Copy(code.tensors[NAME]), Copy(law.tensors[NAME]), 0.25)


@pytest.mark.parametrize("nothing", [0, 0.0, 1e-46])
def test_a_source_without_weight_is_left_out(nothing: float) -> None:
    math, code, law, lang = experts("math", "code", "law", "lang")
    two = Draft.of(math).blend(layers(1, 2), (math, 0.75), (code, nothing), (lang, 0.25))
    assert two == Draft.of(math).blend(layers(1, 2), (math, 0.75), (lang, 0.25))
    one = Draft.of(math).blend(layers(1, 2), (math, nothing), (code, nothing), (lang, 1.0))
    assert one == Draft.of(math).replace(layers(1, 2), lang)
    three = Draft.of(math).blend(layers(1, 2), (math, 0.5), (code, nothing), (law, 0.25), (lang, 0.25))
    assert [ref.role for ref in three.tensors[NAME].refs] == ["math", "law", "lang"]


@pytest.mark.parametrize(
    "weights", [(0.5, 0.5, 0.5), (0.5, 0.5, 2e-6), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), (2.0, -0.5, -0.5)]
)
def test_weights_that_are_no_shares(weights: tuple[float, float, float]) -> None:
    math, code, law = experts("math", "code", "law")
    with pytest.raises(RecipeError, match=r"blend: weights must be from 0 to 1 and add up to 1, not .*, .* and "):
        Draft.of(math).blend(ALL, (math, weights[0]), (code, weights[1]), (law, weights[2]))


def test_what_cannot_be_averaged() -> None:
    shapes = llama(2) | {"model.layers.1.mlp.weight": ("I8", (4, 4))}
    sides = [checkpoint(shapes, role) for role in ("math", "code", "law")]
    with pytest.raises(MismatchError, match="only floating-point tensors can be blended"):
        Draft.of(sides[0]).blend(ALL, *zip(sides, (0.5, 0.25, 0.25), strict=True))
    scaled = {"a.weight": ("F8_E4M3", (4, 4)), "a.weight_scale": ("F32", (1,))}
    sides = [checkpoint(scaled, role) for role in ("math", "code", "law")]
    with pytest.raises(MismatchError, match="quantised weights cannot be blended"):
        Draft.of(sides[0]).blend(named("a.weight"), *zip(sides, (0.5, 0.25, 0.25), strict=True))
    other = checkpoint(llama(4) | {NAME: ("BF16", (4, 5))}, "law")
    with pytest.raises(MismatchError, match=r"has shape \[4, 4\], law has \[4, 5\]"):
        Draft.of(EXPERTS["math"]).blend(ALL, *zip([*experts("math", "code"), other], (0.5, 0.25, 0.25), strict=True))


def test_a_cast_average_is_computed_in_the_new_dtype() -> None:
    math, code, law = experts("math", "code", "law")
    done = Draft.of(math).blend(layers(1, 2), (math, 0.5), (code, 0.25), (law, 0.25)).cast(layers(1, 2), DTYPES["F32"])
    made_of = done.tensors[NAME]
    assert isinstance(made_of, Average)
    assert {operand.cast for operand in made_of.operands if isinstance(operand, Copy)} == {DTYPES["F32"]}
    wide = checkpoint(llama(4, dtype="F32"), "law")
    with pytest.raises(MismatchError, match="law has F32"):
        Draft.of(math).blend(layers(1, 2), (math, 0.5), (code, 0.25), (wide, 0.25))
    cast = Draft.of(math).blend(layers(1, 2), (math, 0.5), (code, 0.25), (wide, 0.25), cast=True).tensors[NAME]
    assert isinstance(cast, Average)
    assert cast.operands[2] == Copy(wide.tensors[NAME], DTYPES["BF16"])


# The plan


def averaged(count: int, weights: Sequence[float] | None = None) -> Draft:
    sides = experts(*ROLES[:count])
    return Draft.of(sides[0]).blend(layers(1, 3), *zip(sides, weights or [1 / count] * count, strict=True))


@pytest.mark.parametrize("count", [3, 5, 8])
def test_plans_with_averages_of_any_roles_round_trip(count: int) -> None:
    plan = lay_out(averaged(count))
    again = Plan.from_json(plan.to_json(), path="p")
    assert (again, again.to_json(), again.digest) == (plan, plan.to_json(), plan.digest)
    assert [source.role for source in plan.sources] == sorted(
        ROLES[:count], key=lambda r: (r not in ("math", "lang"), r == "lang")
    )
    document = json.loads(plan.to_json())
    step = document["files"][0]["tensors"][NAME]
    assert list(step) == ["average", "weights"]
    assert step["weights"] == [1 / count] * count
    assert [operand["copy"][0] for operand in step["average"]] == list(ROLES[:count])
    assert "tensors; reads" in plan.summary()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(weights=[0.5, 0.5]), "weights: expected a list of 3"),
        (lambda s: s.update(weights=[0.5, 0.5, 0.5]), "weights of an average are above 0 and add up to 1"),
        (lambda s: s.update(weights=[0.5, 0.5, 1e-46]), "weights of an average are above 0 and add up to 1"),
        (lambda s: s.update(weights=[1.5, -0.25, -0.25]), "weights.0: expected a number from 0 to 1"),
        (lambda s: s.pop("weights"), "'weights' is missing"),
        (lambda s: s.update(average=s["average"][:2], weights=[0.5, 0.5]), "expected 3 at least, since of two it is a blend"),
        (lambda s: s.update(average=[], weights=[]), "expected 3 at least"),
        (lambda s: s.update(average={}), "average: expected a list"),
        (lambda s: s["average"][1]["copy"].__setitem__(0, "nobody"), "reads nobody 'model.safetensors' up to"),
        (lambda s: s["average"][1]["copy"].__setitem__(0, "No Body"), "'No Body' is no role"),
        (lambda s: s["average"][1]["copy"].__setitem__(2, "F16"), "BF16 and F16 cannot be averaged"),
        (lambda s: s["average"][2]["copy"].__setitem__(4, 10**9), "does not hold BF16"),
        (lambda s: s["average"].__setitem__(0, {"average": s["average"][1:], "weights": s["weights"]}), "'copy' is missing"),
    ],
)
def test_an_unsound_average_is_refused(change: Any, words: str) -> None:
    document = json.loads(lay_out(averaged(3)).to_json())
    change(document["files"][0]["tensors"][NAME])
    with pytest.raises(FormatError) as caught:
        Plan.from_json(json.dumps(document), path="plan.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# The bytes


class Memory:
    """A source that holds tensors by role."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.longest = 0

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        self.longest = max(self.longest, len(buffer))
        buffer[:] = self.tensors[ref.role].data[offset : offset + len(buffer)]


def operands(sides: Sequence[Tensor], cast: str | None = None) -> tuple[tuple[Copy, ...], Memory]:
    refs = [TensorRef(f"s{k}", "f", DTYPES[t.dtype], t.shape, 0, len(t.data)) for k, t in enumerate(sides)]
    casts = [None if cast is None or cast == t.dtype else DTYPES[cast] for t in sides]
    return tuple(map(Copy, refs, casts)), Memory({f"s{k}": t for k, t in enumerate(sides)})


def evaluate(sides: Sequence[Tensor], weights: Sequence[float], cast: str | None = None) -> bytes:
    made_of, memory = operands(sides, cast)
    data = bytearray()
    for chunk in Evaluator(memory, kernels).chunks(Average(made_of, tuple(weights))):  # type: ignore[arg-type]
        assert chunk.offset == len(data)
        data += chunk.data
    return bytes(data)


def shares(parts: Sequence[int]) -> list[float]:
    return [part / sum(parts) for part in parts]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Tensor], list[float]]:
    """Three to nine tensors of any bits, NaN payloads, infinities and subnormals included, that agree in some places."""
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(st.lists(st.integers(0, 40), max_size=2).map(tuple))
    count = draw(st.integers(3, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = [tensor(dtype, shape, rng) for _ in range(count)]
    width = BITS[dtype] // 8
    alike = draw(st.integers(0, len(sides[0].data) // width)) * width
    sides = [Tensor(dtype, shape, sides[0].data[:alike] + side.data[alike:]) for side in sides]
    return sides, shares(draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count)))


@given(cases())
@settings(max_examples=200)
def test_the_bytes_of_the_definition(case: tuple[list[Tensor], list[float]]) -> None:
    sides, weights = case
    assert evaluate(sides, weights) == oracle.average(sides, weights)


@pytest.mark.parametrize("backend", kernels.available_backends())
@given(case=cases())
@settings(max_examples=60)
def test_every_backend_gives_them(backend: str, case: tuple[list[Tensor], list[float]]) -> None:
    sides, weights = case
    out = bytearray(len(sides[0].data))
    kernels.blend_many([side.data for side in sides], weights, dtype=sides[0].dtype, out=out, backend=backend)
    assert bytes(out) == oracle.average(sides, weights)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_payloads_stay_only_where_all_agree(dtype: str) -> None:
    word = np.dtype(f"u{BITS[dtype] // 8}")
    payload = {"F64": 0x7FF0_0000_0000_0BAD, "F32": 0x7F80_0BAD, "F16": 0x7C0B, "BF16": 0x7F8B, "F8_E4M3": 0xFF, "F8_E5M2": 0xFD}
    nan, one = payload[dtype], int(np.frombuffer(np.ones(1, oracle.NUMPY[dtype]).tobytes(), word)[0])
    rows = [[nan, nan, one], [nan, one, one], [nan, one, nan]]  # all agree; one does; two do
    sides = [Tensor(dtype, (3,), np.array(row, word).tobytes()) for row in rows]
    found = np.frombuffer(evaluate(sides, [0.5, 0.25, 0.25]), word)
    assert found.tolist() == [nan, oracle.CANONICAL[dtype], oracle.CANONICAL[dtype]]


def numbers(dtype: str, count: int, rng: np.random.Generator, *, low: float, high: float) -> Tensor:
    return Tensor(dtype, (count,), rng.uniform(low, high, count).astype(oracle.NUMPY[dtype]).tobytes())


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_order_of_sources_moves_the_last_bit_at_most(dtype: str) -> None:
    """Of numbers of one sign, whose partial sums never exceed the sum: fp32 rounds three products and two sums, each by half a
    unit at most, so two orders are 5 units of fp32 apart at most, which 16 bits see as one unit or none.
    """
    rng = np.random.default_rng(5)
    sides = [numbers(dtype, 5000, rng, low=1, high=2) for _ in range(3)]
    weights = shares([3, 2, 6])
    word = f"i{BITS[dtype] // 8}"
    found = [
        np.frombuffer(evaluate([sides[k] for k in order], [weights[k] for k in order]), word).astype(np.int64)
        for order in permutations(range(3))
    ]
    apart = max(np.abs(other - found[0]).max() for other in found)
    assert apart <= (5 if dtype == "F32" else 1)
    assert dtype != "F32" or apart > 0  # the definition has an order, and these numbers show it


def test_sums_that_are_exact_have_no_order() -> None:
    rng = np.random.default_rng(6)
    sides = [Tensor("F32", (999,), rng.integers(-1000, 1000, 999).astype(np.float32).tobytes()) for _ in range(4)]
    expected = evaluate(sides, [0.25] * 4)
    exact = sum(oracle.values(side) for side in sides) / 4
    assert expected == exact.astype(np.float32).tobytes()
    assert all(evaluate([sides[k] for k in order], [0.25] * 4) == expected for order in permutations(range(4)))


@pytest.mark.parametrize("count", range(3, 9))
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_mean_that_mergekit_and_others_take(dtype: str, count: int) -> None:
    """Within the bound of fp32: each of count weights, products and sums is rounded once, then the result to the dtype."""
    rng = np.random.default_rng([count, len(dtype)])
    sides = [Tensor(dtype, (4000,), rng.standard_normal(4000).astype(oracle.NUMPY[dtype]).tobytes()) for _ in range(count)]
    exact = np.mean([oracle.values(side) for side in sides], axis=0)
    size = np.mean([np.abs(oracle.values(side)) for side in sides], axis=0)
    found = np.frombuffer(evaluate(sides, [1 / count] * count), oracle.NUMPY[dtype]).astype(np.float64)
    unit = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 0.0}[dtype]  # half of the dtype's; fp32's own is among the sums'
    smallest = {"BF16": 0.0, "F16": 2.0**-25, "F32": 0.0}[dtype]
    in_fp32 = 1.01 * (count + 1) * 2.0**-24 * size
    assert (np.abs(found - exact) <= in_fp32 + 1.01 * unit * (np.abs(exact) + in_fp32) + smallest).all()
    theirs = np.mean([oracle.values(side).astype(np.float32) for side in sides], axis=0, dtype=np.float32).astype(np.float64)
    assert (np.abs(found - theirs) <= 2 * in_fp32 + 1.01 * unit * (np.abs(exact) + in_fp32) + smallest).all()


def test_operands_that_are_cast() -> None:
    rng = np.random.default_rng(8)
    sides = [numbers(dtype, 3000, rng, low=-2, high=2) for dtype in ("BF16", "F32", "F16", "F64")]
    as_used = [side if side.dtype == "BF16" else oracle.cast(side, "BF16") for side in sides]
    assert evaluate(sides, [0.25] * 4, cast="BF16") == oracle.average(as_used, [0.25] * 4)


@pytest.mark.parametrize(
    ("count", "piece"), [(3, OPERAND_BYTES // 2), (4, OPERAND_BYTES // 2), (8, OPERAND_BYTES // 4), (100, OPERAND_BYTES // 16)]
)
def test_many_operands_have_small_pieces(count: int, piece: int) -> None:
    """So that memory does not grow with their number, and pieces may end anywhere."""
    rng = np.random.default_rng(count)
    elements = OPERAND_BYTES // 2 + 77
    sides = [Tensor("BF16", (elements,), rng.integers(0x3F80, 0x4000, elements, np.uint16).tobytes()) for _ in range(3)]
    sides = [sides[k % 3] for k in range(count)]
    weights = [1 / count] * count
    made_of, memory = operands(sides)
    pieces = [bytes(chunk.data) for chunk in Evaluator(memory, kernels).chunks(Average(made_of, tuple(weights)))]  # type: ignore[arg-type]
    assert memory.longest == piece
    assert b"".join(pieces) == oracle.average(sides, weights)


def test_low_rank_changes_are_applied_before_averaging() -> None:
    """One operand with a change, whose sums are exact in fp32: so any order gives them."""
    rng = np.random.default_rng(9)
    whole = [rng.integers(-8, 8, (24, 8)).astype(np.float32) for _ in range(3)]
    a, b = rng.integers(-2, 3, (2, 8)).astype(np.float32), rng.integers(-2, 3, (24, 2)).astype(np.float32)
    made_of, memory = operands([Tensor("F32", (24, 8), side.tobytes()) for side in whole])
    for name, factor in (("a", a), ("b", b)):
        memory.tensors[name] = Tensor("F32", factor.shape, factor.tobytes())
    refs = [TensorRef(name, "f", DTYPES["F32"], factor.shape, 0, factor.nbytes) for name, factor in (("a", a), ("b", b))]
    sides = (made_of[0], Adapted(made_of[1].ref, refs[0], refs[1], 0.5), made_of[2])
    average = Average(sides, (0.5, 0.25, 0.25))
    assert [ref.role for ref in average.refs] == ["s0", "s1", "a", "b", "s2"]
    (chunk,) = Evaluator(memory, kernels).chunks(average)  # type: ignore[arg-type]
    expected = 0.5 * whole[0] + 0.25 * (whole[1] + 0.5 * (b @ a)) + 0.25 * whole[2]
    assert bytes(chunk.data) == expected.astype(np.float32).tobytes()


# On disk


def models(root: Path, roles: Sequence[str], shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Model]:
    made = {}
    for number, role in enumerate(roles):
        rng = np.random.default_rng([number, 3])
        made[role] = {name: tensor(dtype, shape, rng) for name, (dtype, shape) in shapes.items()}
        names = sorted(made[role])
        write_model(root / role, made[role], files=[names[::2], names[1::2]])
    return made


@pytest.mark.parametrize("digest", ["auto", "sha256"])
def test_surgery_on_five_sources_of_any_role_on_disk(tmp_path: Path, digest: Any) -> None:
    shapes = {f"layers.{n}.{dtype.lower()}.weight": (dtype, (33, 7)) for n in range(4) for dtype in FLOATS}
    roles = ("code", "law", "art", "bio", "math")
    made = models(tmp_path, roles, shapes)
    opened = [open_checkpoint(tmp_path / role, role=role) for role in roles]
    weights = [0.3, 0.1, 0.25, 0.15, 0.2]
    draft = (
        Draft.of(opened[0])
        .replace(layers(0, 1), opened[1])
        .blend(layers(1, 2), *zip(opened, weights, strict=True))
        .blend(layers(2, 3), (opened[2], 0.75), (opened[3], 0.25))
    )
    plan = lay_out(draft)
    assert [source.role for source in plan.sources] == ["math", "code", "law", "art", "bio"]
    manifest = execute(plan, into=tmp_path / "out", options=WriteOptions(digest=digest))
    found = read_model(tmp_path / "out")
    for name, made_by in found.items():
        sides = [made[role][name] for role in roles]
        expected = {
            "0": sides[1].data,
            "1": oracle.average(sides, weights),
            "2": oracle.blend(sides[2], sides[3], 0.25),
            "3": sides[0].data,
        }[name.split(".")[1]]
        assert made_by.data == expected, name
        assert (manifest.tensors[name].statistics is not None) is (name.split(".")[1] == "2")
    places = {role: tmp_path / role for role in roles}
    assert verify(tmp_path / "out", locations=places).to_json() == manifest.to_json()
    target = tmp_path / "out" / manifest.tensors["layers.1.f32.weight"].file
    raw = bytearray(target.read_bytes())
    raw[manifest.tensors["layers.1.f32.weight"].begin] ^= 1
    target.write_bytes(raw)
    with pytest.raises(VerificationError, match=r"tensor 'layers\.1\.f32\.weight'"):
        verify(tmp_path / "out", locations=places)
