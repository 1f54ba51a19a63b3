"""The analysis: every figure against numpy in fp64 on the same tensors."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lswap_core import LayerSwap, analyze, open_checkpoint, read_manifest
from lswap_core.analysis.changes import ChangeMaps
from lswap_core.analysis.shared_base import check_shared_base
from lswap_core.analysis.suggestion import suggest
from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.cli.main import main
from lswap_core.errors import MismatchError, RecipeError
from tests.build import Model, Tensor, llama_like, normal, write_model

LAYERS = 6
Floats = NDArray[np.float64]


def values(tensor: Tensor) -> Floats:
    """A tensor in fp64."""
    if tensor.dtype == "BF16":
        flat = (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(tensor.data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[tensor.dtype])
    return flat.astype(np.float64).reshape(tensor.shape)


def tensor_of(array: Floats, dtype: str) -> Tensor:
    if dtype == "BF16":
        bits = array.astype(np.float32).view(np.uint32)
        data = (bits + 0x8000 >> 16).astype("<u2").tobytes()
    else:
        data = array.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
    return Tensor(dtype, array.shape, data)


def changed(base: Model, sizes: dict[str, float], seed: int) -> Model:
    """`base` with noise of that size, by tensor, added."""
    rng = np.random.default_rng(seed)
    return {name: tensor_of(values(t) + sizes.get(name, 0.0) * rng.standard_normal(t.shape), t.dtype) for name, t in base.items()}


def opened(root: Path, models: dict[str, Model]) -> dict[str, Checkpoint]:
    for role, model in models.items():
        names = sorted(model)
        write_model(root / role, model, files=[names[::2], names[1::2]], config={"num_hidden_layers": LAYERS})
    return {role: open_checkpoint(root / role, role=role) for role in models}


def trio(dtype: str, *, wide: bool = False) -> dict[str, Model]:
    rng = np.random.default_rng(7)
    base = llama_like(LAYERS, rng, dtype=dtype)
    if wide:  # several chunks, which do not end where rows do
        base["model.layers.3.mlp.up_proj.weight"] = normal(dtype, (1001, 1237), rng)
        base["model.layers.4.mlp.up_proj.weight"] = normal(dtype, (1, 900_001), rng)
    sizes = [{name: size * (1 + k % 3) for k, name in enumerate(base)} for size in (0.03, 0.05)]
    return {"base": base, "math": changed(base, sizes[0], 1), "lang": changed(base, sizes[1], 2)}


def expected(x: Floats, y: Floats, same: NDArray[np.bool_]) -> dict[str, float]:
    d = np.abs(y - x)
    return {
        "mean_abs": d.mean(),
        "rms": math.sqrt((d**2).mean()),
        "max_abs": d.max(),
        "relative_norm": float(np.linalg.norm(d) / np.linalg.norm(x)),
        "cosine": float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)),
        "changed": float((~same).mean()),
    }


def cosine(x: Floats, y: Floats) -> float:
    return float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_every_figure_is_what_numpy_gives_in_fp64(tmp_path: Path, dtype: str) -> None:
    models = trio(dtype, wide=dtype in ("BF16", "F64"))
    found = analyze(**opened(tmp_path, models), workers=2).to_json()["tensors"]
    assert found.keys() == models["math"].keys()
    pairs = {"difference": ("math", "lang"), "math": ("base", "math"), "lang": ("base", "lang")}
    for name, entry in found.items():
        sides = {role: values(model[name]) for role, model in models.items()}
        for side, (x, y) in pairs.items():
            bits = [np.frombuffer(models[r][name].data, np.uint8).reshape(sides[x].size, -1) for r in (x, y)]
            right = expected(sides[x], sides[y], (bits[0] == bits[1]).all(axis=1))
            for figure, value in right.items():
                assert entry[side][figure] == pytest.approx(value, rel=2e-6, abs=1e-12), (name, side, figure)
        changes = [sides[role] - sides["base"] for role in ("math", "lang")]
        assert entry["change_cosine"] == pytest.approx(cosine(*changes), abs=2e-5)
        by_math, by_lang = (np.abs(change).mean() for change in changes)
        assert entry["lang_share"] == pytest.approx((1 / by_lang) / (1 / by_lang + 1 / by_math), rel=1e-5)


@pytest.mark.parametrize("ratio", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("alike", [0.0, 0.8, 1.0])
def test_the_cosine_of_changes_is_as_exact_as_it_says(tmp_path: Path, ratio: float, alike: float) -> None:
    rng = np.random.default_rng(11)
    base = {"model.layers.0.w.weight": normal("F32", (400, 500), rng)}
    start = values(base["model.layers.0.w.weight"])
    first, second = rng.standard_normal((2, *start.shape)) * 0.1
    models = {"base": base}
    for role, change in (("math", first), ("lang", ratio * (alike * first + (1 - alike) * second))):
        models[role] = {"model.layers.0.w.weight": tensor_of(start + change, "F32")}
    for role, model in models.items():
        write_model(tmp_path / role, model)
    maps = analyze(**{role: open_checkpoint(tmp_path / role, role=role) for role in models})
    got = maps.tensors["model.layers.0.w.weight"].change.cosine
    sides = {role: values(model["model.layers.0.w.weight"]) for role, model in models.items()}
    right = cosine(sides["math"] - sides["base"], sides["lang"] - sides["base"])
    r = float(np.linalg.norm(sides["lang"] - sides["base"]) / np.linalg.norm(sides["math"] - sides["base"]))
    assert got == pytest.approx(right, abs=1e-5 * (r + 1 / r))


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("dtype", ["BF16", "F64"])
def test_profiles_are_the_means_of_rows_and_columns(tmp_path: Path, dtype: str, with_base: bool) -> None:
    models = trio(dtype, wide=True)
    if not with_base:
        del models["base"]
    maps = analyze(**opened(tmp_path, models), profiles=True, workers=2)
    for name, tensor in maps.tensors.items():
        if len(tensor.shape) != 2:
            assert not tensor.profiles
            continue
        assert set(tensor.profiles) == ({"math", "lang"} if with_base else {"difference"})
        for side, profile in tensor.profiles.items():
            x, y = ("base", side) if with_base else ("math", "lang")
            d = np.abs(values(models[y][name]) - values(models[x][name]))
            np.testing.assert_allclose(profile.rows, d.mean(axis=1), rtol=1e-6)
            np.testing.assert_allclose(profile.columns, d.mean(axis=0), rtol=1e-6)


def test_layers_matrices_and_parts_add_up_to_their_tensors(tmp_path: Path) -> None:
    models = trio("BF16")
    maps = analyze(**opened(tmp_path, models))
    sums = {
        role: {n: np.abs(values(t) - values(models["base"][n])).sum() for n, t in models[role].items()}
        for role in ("math", "lang")
    }
    assert list(maps.by_layer()) == list(range(LAYERS))
    for number, change in maps.by_layer().items():
        for role in ("math", "lang"):
            total = sum(s for n, s in sums[role].items() if n.startswith(f"model.layers.{number}."))
            assert change.side(role).sum_abs == pytest.approx(total, rel=1e-6)
    assert set(maps.by_matrix()) == {"input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.weight"}
    for matrix, change in maps.by_matrix().items():
        total = sum(s for n, s in sums["lang"].items() if ".layers." in n and n.endswith(matrix))
        assert change.lang.sum_abs == pytest.approx(total, rel=1e-6)
    assert set(maps.by_part()) == {"embed", "norm", "head"}
    places = {(maps.stack.layer_of(name), maps.matrix_of(name)) for name in maps.tensors} - {(None, None)}
    assert places == {(number, matrix) for number in range(LAYERS) for matrix in maps.by_matrix()}


def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    experts = opened(tmp_path, trio("BF16", wide=True))
    assert analyze(**experts, workers=1).to_json() == analyze(**experts, workers=5).to_json()


def test_json_comes_back_and_csv_has_the_same_figures(tmp_path: Path) -> None:
    experts = opened(tmp_path, trio("BF16"))
    for chosen in (experts, {role: experts[role] for role in ("math", "lang")}):
        maps = analyze(**chosen, profiles=True)
        document = maps.to_json()
        assert ChangeMaps.from_json(json.dumps(document).encode(), path="p") == maps
        rows = list(csv.DictReader(io.StringIO(maps.to_csv())))
        assert [row["tensor"] for row in rows] == list(document["tensors"])
        for row in rows:
            entry = document["tensors"][row["tensor"]]
            assert row["layer"] == ("" if entry["layer"] is None else str(entry["layer"]))
            for column, value in row.items():
                side, _, figure = column.partition("_")
                if side in ("difference", "math", "lang") and column != "lang_share":
                    assert float(value) == entry[side][figure]


def test_a_change_planted_in_one_matrix_is_found_there_alone(tmp_path: Path) -> None:
    base = llama_like(LAYERS, np.random.default_rng(0))
    math_model = changed(base, {"model.layers.3.mlp.up_proj.weight": 0.1}, 1)
    lang_model = changed(base, {"model.layers.0.self_attn.q_proj.weight": 0.1, "model.layers.5.self_attn.q_proj.weight": 0.1}, 2)
    maps = analyze(**opened(tmp_path, {"base": base, "math": math_model, "lang": lang_model}))
    for role, places in (
        ("math", {"model.layers.3.mlp.up_proj.weight"}),
        ("lang", {"model.layers.0.self_attn.q_proj.weight", "model.layers.5.self_attn.q_proj.weight"}),
    ):
        assert {name for name, tensor in maps.tensors.items() if tensor.change.side(role).differing} == places
    proposed = suggest(maps)
    assert (proposed.bottom, proposed.top) == (1, 1)
    assert maps.tensors["model.norm.weight"].change.cosine is None
    assert maps.by_layer()[0].lang_share is None


def test_dtypes_that_differ_are_compared_in_a_wider_one_and_integers_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    models: dict[str, Model] = {role: llama_like(LAYERS, rng, dtype=d) for role, d in (("math", "BF16"), ("lang", "F16"))}
    for model in models.values():
        model["model.ids"] = Tensor("I32", (2,), bytes(8))
    maps = analyze(**opened(tmp_path, models))
    assert maps.uncompared == ("model.ids",)
    assert {t.dtype.name for t in maps.tensors.values()} == {"F32"}
    name = "model.layers.1.mlp.up_proj.weight"
    d = np.abs(values(models["lang"][name]) - values(models["math"][name]))
    assert maps.tensors[name].change.difference.mean_abs == pytest.approx(d.mean(), rel=1e-6)


def test_elements_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    models = trio("F32")
    name = "model.layers.0.mlp.up_proj.weight"
    bad = values(models["lang"][name]).copy()
    bad[0, :3] = math.nan, math.inf, -math.inf
    models["lang"][name] = tensor_of(bad, "F32")
    maps = analyze(**opened(tmp_path, models), profiles=True)
    change = maps.tensors[name].change
    assert (change.lang.y_nonfinite, change.difference.y_nonfinite, change.math.y_nonfinite) == (3, 3, 0)
    assert change.cosine is None
    d = np.abs(bad - values(models["base"][name]))
    d[~np.isfinite(d)] = 0
    assert change.lang.sum_abs == pytest.approx(d.sum(), rel=1e-6)
    assert maps.tensors[name].profiles["lang"].rows == pytest.approx(d.mean(axis=1), rel=1e-6)


def test_tensors_that_are_not_in_all_in_one_shape_are_listed(tmp_path: Path) -> None:
    models = trio("F32")
    del models["lang"]["model.norm.weight"]
    models["lang"]["model.extra.weight"] = models["lang"]["lm_head.weight"]
    models["base"]["lm_head.weight"] = tensor_of(np.zeros((3, 3)), "F32")
    models["base"]["model.own.weight"] = models["base"]["lm_head.weight"]
    with pytest.raises(MismatchError) as caught:
        analyze(**opened(tmp_path, models))
    assert set(caught.value.issues) == {
        "tensor 'model.norm.weight' is not in lang",
        "tensor 'model.extra.weight' is in lang only",
        "tensor 'lm_head.weight' has shape [16, 8] in math, [3, 3] in base",
    }


def test_roles_that_are_mixed_up_are_refused(tmp_path: Path) -> None:
    experts = opened(tmp_path, trio("F32"))
    with pytest.raises(RecipeError, match="opened as lang, math"):
        analyze(math=experts["lang"], lang=experts["math"])


def test_mav_shares_are_what_numpy_gives_and_only_blended_layers_are_read(tmp_path: Path) -> None:
    from lswap_core.verbs.merge import draft_merge

    models = trio("BF16")
    experts = opened(tmp_path, models)
    recipe = LayerSwap(bottom=1, top=1, transition=1, ramp="mav")
    draft = draft_merge(recipe, **experts)
    assert draft.swap is not None
    shares = dict(enumerate(draft.swap.weights))
    for number in (1, 4):
        names = [n for n in models["base"] if n.startswith(f"model.layers.{number}.")]
        by_math, by_lang = (
            np.concatenate([np.abs(values(models[r][n]) - values(models["base"][n])).ravel() for n in names]).mean()
            for r in ("math", "lang")
        )
        assert shares.pop(number) == pytest.approx(by_math / (by_math + by_lang), rel=1e-6)
    assert shares == {0: 1.0, 2: 0.0, 3: 0.0, 5: 1.0}
    whole = analyze(**experts)
    assert draft_merge(recipe, math=experts["math"], lang=experts["lang"], changes=whole).swap == draft.swap
    assert set(analyze(**experts, layers=(1, 4)).by_layer()) == {1, 4}
    assert not analyze(**experts, layers=(1, 4)).by_part()


def test_where_an_expert_did_not_change_the_weight_is_taken_and_said(tmp_path: Path) -> None:
    from lswap_core.verbs.merge import draft_merge

    models = trio("BF16")
    models["math"] |= {n: t for n, t in models["base"].items() if n.startswith("model.layers.1.")}
    draft = draft_merge(LayerSwap(bottom=1, transition=2, ramp="mav", weight=0.25), **opened(tmp_path, models))
    assert draft.swap is not None
    assert draft.swap.weights[1] == 0.25
    assert draft.swap.weights[2] not in (0.25, 0, 1)
    assert [note for note in draft.swap.notes if note.startswith("layer 1: math or lang did not change")]
    assert draft.swap.base == "base"


def test_without_blended_layers_mav_needs_nothing_of_the_base(tmp_path: Path) -> None:
    from lswap_core.verbs.merge import draft_merge

    draft = draft_merge(LayerSwap(bottom=1, ramp="mav"), **opened(tmp_path, trio("BF16")))
    assert draft.swap is not None
    assert (draft.swap.base, draft.swap.weights) == (None, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0))


def test_maps_of_other_checkpoints_are_refused(tmp_path: Path) -> None:
    from lswap_core.verbs.merge import draft_merge

    experts: dict[str, Any] = opened(tmp_path / "a", trio("BF16"))
    models = trio("BF16")
    models["lang"] = changed(models["base"], dict.fromkeys(models["base"], 0.2), 9)
    other = analyze(**opened(tmp_path / "b", models))
    pair = {role: experts[role] for role in ("math", "lang")}
    recipe = LayerSwap(bottom=1, transition=1, ramp="mav")
    with pytest.raises(RecipeError, match=r"not measured on .*lang, but on another lang"):
        draft_merge(recipe, **pair, changes=other)
    with pytest.raises(RecipeError, match="without a base"):
        draft_merge(recipe, **pair, changes=analyze(**pair))
    with pytest.raises(RecipeError, match="layer 1 was not measured"):
        draft_merge(recipe, **pair, changes=analyze(**experts, layers=(2,)))
    with pytest.raises(RecipeError, match="either --base or --changes"):
        draft_merge(recipe, **pair)
    with pytest.raises(RecipeError, match="nothing here needs --base"):
        draft_merge(LayerSwap(bottom=1), **experts)
    with pytest.raises(RecipeError, match="leave out --bottom"):
        draft_merge(recipe, **experts, auto=True)
    with pytest.raises(RecipeError, match="give --base, or --changes"):
        recipe.draft(**pair)
    assert check_shared_base(other)


def test_a_soup_weighted_by_mav_takes_every_layers_share_from_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = trio("BF16")
    shares = {number: each.lang_share for number, each in analyze(**opened(tmp_path, models)).by_layer().items()}
    monkeypatch.chdir(tmp_path)
    sources = ["--math", "math", "--lang", "lang", "--base", "base"]
    assert main(["merge", *sources, "--method", "soup", "--ramp", "mav", "--out", "soup"]) == 0
    manifest = read_manifest("soup")
    assert manifest.swap is not None
    assert dict(enumerate(manifest.swap.weights)) == shares
    assert len(set(shares.values())) == LAYERS
    assert main(["verify", "soup", "--math", "math", "--lang", "lang"]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--auto", "--method", "soup"], "leave it out with --method soup"),
        (["--auto", "--method", "ties"], "--auto has no effect with --method ties"),
        (["--changes", "x.json", "--method", "task-arithmetic"], "--changes has no effect with --method task-arithmetic"),
    ],
)
def test_choosing_layers_is_for_layer_swaps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    opened(tmp_path, trio("BF16"))
    sources = [f"--{role}={tmp_path / role}" for role in ("math", "lang", "base")]
    assert main(["merge", *sources, *flags, "--out", str(tmp_path / "out")]) == 4
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
