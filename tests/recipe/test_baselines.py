"""Soups, task arithmetic, TIES, swaps by module and layers back to base, on disk, against numpy and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lswap_core import Blend, LayerSwap, MismatchError, RecipeError, TaskSum, merge, open_checkpoint, soup, verify
from lswap_core.checkpoint.names import module_of
from lswap_core.cli.main import main
from tests import oracle
from tests.build import Model, Tensor, llama_like, read_model, write_model

LAYERS = 6


@pytest.fixture
def trio(tmp_path: Path) -> dict[str, Model]:
    """math, lang and base in tmp_path, F32; math and lang are base with changes."""
    rng = np.random.default_rng(1)
    base = llama_like(LAYERS, rng, dtype="F32")
    models = {"base": base}
    for role in ("math", "lang"):
        models[role] = {
            name: Tensor("F32", t.shape, (values(t) + 0.1 * rng.standard_normal(t.shape).astype(np.float32)).tobytes())
            for name, t in base.items()
        }
    names = sorted(base)
    for role, model in models.items():
        write_model(tmp_path / role, model, files=[names[::2], names[1::2]], config={"num_hidden_layers": LAYERS})
    return models


def values(t: Tensor) -> np.ndarray:
    return np.frombuffer(t.data, np.float32).reshape(t.shape)


def run(tmp_path: Path, recipe: LayerSwap | TaskSum, *, base: bool = True) -> Model:
    merge(recipe, math=tmp_path / "math", lang=tmp_path / "lang", base=tmp_path / "base" if base else None, into=tmp_path / "out")
    manifest = verify(tmp_path / "out")
    used = [source.role for source in manifest.sources]
    verify(tmp_path / "out", locations={role: tmp_path / role for role in used})
    return read_model(tmp_path / "out")


def test_task_arithmetic(tmp_path: Path, trio: dict[str, Model]) -> None:
    found = run(tmp_path, TaskSum("task-arithmetic", scale=0.7))
    scale = np.float32(0.7)
    for name, base in trio["base"].items():
        b, x, y = (values(trio[role][name]) for role in ("base", "math", "lang"))
        assert found[name].data == (b + scale * (x - b) + scale * (y - b)).tobytes()
        assert found[name].shape == base.shape


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_ties_tensor_by_tensor_is_what_peft_gives(tmp_path: Path, trio: dict[str, Model], density: float) -> None:
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    found = run(tmp_path, TaskSum("ties", scale=0.9, density=density))
    for name in trio["base"]:
        b, x, y = (values(trio[role][name]) for role in ("base", "math", "lang"))
        merged = merge_utils.ties([torch.from_numpy(x - b), torch.from_numpy(y - b)], torch.ones(2), density).numpy()
        expected = b + np.float32(0.9) * merged
        assert np.abs(values(found[name]) - expected).max() <= np.spacing(np.abs(expected)).max()


def test_a_soup_is_the_average_of_everything(tmp_path: Path, trio: dict[str, Model]) -> None:
    recipe = soup(open_checkpoint(tmp_path / "math", role="math"), LayerSwap(weight=0.25))
    found = run(tmp_path, recipe, base=False)
    assert found == oracle.swapped(trio["math"], trio["lang"], dict.fromkeys(trio["math"], 0.25))


@pytest.mark.parametrize("kinds", [("attn",), ("mlp", "norms"), ("attn", "mlp", "norms")])
def test_a_swap_by_module(tmp_path: Path, trio: dict[str, Model], kinds: tuple[str, ...]) -> None:
    found = run(tmp_path, LayerSwap(bottom=2, transition=1, swap=kinds), base=False)
    shares = {0: 1.0, 1: 1.0, 2: 0.5}
    of_name = {"attn": "self_attn", "mlp": "mlp", "norms": "norm"}
    chosen = {
        name: shares.get(int(name.split(".")[2]), 0.0)
        for name in trio["math"]
        if ".layers." in name and any(of_name[kind] in name for kind in kinds)
    }
    assert found == oracle.swapped(trio["math"], trio["lang"], chosen)


def test_layers_back_to_base(tmp_path: Path, trio: dict[str, Model]) -> None:
    found = run(tmp_path, LayerSwap(bottom=1, top=1, revert_layers=(2, 3)))
    for name, t in found.items():
        number = int(name.split(".")[2]) if ".layers." in name else None
        role = {0: "lang", 5: "lang", 2: "base", 3: "base"}.get(number, "math") if number is not None else "math"
        assert t == trio[role][name]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| layers 2-3 | base |" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--method", "ties"), "--method ties needs --base"),
        (("--method", "ties", "--base", "base", "--density", "0"), "--density is 0.0"),
        (("--method", "task-arithmetic", "--base", "base", "--density", "0.5"), "--density has no effect without --method ties"),
        (("--method", "ties", "--base", "base", "--bottom", "1"), "--bottom has no effect with --method ties"),
        (("--bottom", "1", "--scale", "2"), "--scale has no effect with --method layer-swap"),
        (("--method", "soup", "--bottom", "1"), "--method soup blends every layer"),
        (("--bottom", "1", "--swap", "heads"), "--swap is 'heads'; expected some of attn, mlp, norms"),
        (("--bottom", "1", "--revert-layers", "3"), "--revert-layers needs --base"),
        (("--bottom", "1", "--revert-layers", "0", "--base", "base"), "layers 0 are in --revert-layers, but they are lang's"),
        (("--bottom", "1", "--revert-layers", "6", "--base", "base"), "layers 6 do not exist"),
    ],
)
def test_impossible_requests(
    tmp_path: Path, trio: dict[str, Model], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["merge", "--math", "math", "--lang", "lang", *flags]) == 4
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "soup"])
def test_from_the_command_line(
    tmp_path: Path, trio: dict[str, Model], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = ["--math", "math", "--lang", "lang", *(["--base", "base"] if method != "soup" else [])]
    assert main(["plan", *sources, "--method", method, "--out", "plan.json"]) == 0
    assert main(["apply", "plan.json"]) == 0
    (made,) = (path for path in tmp_path.iterdir() if path.name.startswith("math+lang"))
    assert main(["verify", made.name, *sources]) == 0
    text = (made / "README.md").read_text()
    command = next(line for line in text.splitlines() if line.startswith("lswap-core merge"))
    assert main([*command.split()[1:], "--out", "again"]) == 0
    assert read_model(tmp_path / "again") == read_model(made)
    capsys.readouterr()


def test_a_base_of_another_shape_is_refused(tmp_path: Path, trio: dict[str, Model]) -> None:
    write_model(tmp_path / "other", {**trio["base"], "model.norm.weight": Tensor("F32", (4,), bytes(16))})
    with pytest.raises(MismatchError, match=r"'model.norm.weight' has shape \[8\] in math, \[4\] in base"):
        merge(TaskSum("ties"), math=tmp_path / "math", lang=tmp_path / "lang", base=tmp_path / "other", into=tmp_path / "out")


@pytest.mark.parametrize("edit", [{"method": "soup"}, {"scale": "x"}, {"density": 2}, {"unknown": 1}])
def test_a_plan_that_contradicts_itself_is_refused(
    tmp_path: Path,
    trio: dict[str, Model],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    edit: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--math", "math", "--lang", "lang", "--base", "base", "--method", "ties", "--out", "p.json"]) == 0
    document = json.loads((tmp_path / "p.json").read_text())
    document["swap"]["options"] |= edit
    (tmp_path / "p.json").write_text(json.dumps(document))
    assert main(["apply", "p.json"]) == 3
    assert "swap.options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "attn"), ("transformer.h.3.attn.c_attn.bias", "attn"),
        ("transformer.h.3.ln_1.weight", "norms"), ("model.layers.1.input_layernorm.weight", "norms"),
        ("model.layers.1.post_attention_layernorm.weight", "norms"), ("model.layers.1.self_attn.k_norm.weight", "attn"),
        ("model.layers.1.block_sparse_moe.experts.3.w1.weight", "mlp"), ("layers.1.feed_forward.w1.weight", "mlp"),
        ("model.layers.1.post_feedforward_layernorm.weight", "norms"), ("model.layers.1.mlp.gate.weight", "mlp"),
        ("model.layers.1.conv.weight", "other"), ("model.norm.weight", "other"),
    ],
)  # fmt: skip
def test_kinds_of_modules(name: str, kind: str) -> None:
    assert module_of(name) == kind


def test_a_soup_blends_what_there_is_outside_the_layers(tmp_path: Path, trio: dict[str, Model]) -> None:
    experts = {}
    for role in ("math", "lang"):
        bare = {name: tensor for name, tensor in trio[role].items() if name.startswith("model.layers.")}
        write_model(tmp_path / f"bare-{role}", bare)
        experts[role] = open_checkpoint(tmp_path / f"bare-{role}", role=role)
    swap = soup(experts["math"])
    assert (swap.embed, swap.norm, swap.head) == ("math", "math", "math")
    made = swap.draft(**experts)
    assert made.tensors
    assert all(isinstance(made_of, Blend) for made_of in made.tensors.values())


def test_a_swap_of_a_kind_that_no_tensor_is_of(tmp_path: Path) -> None:
    model = {f"h.{n}.x.weight": Tensor("F32", (1,), bytes(4)) for n in range(2)}
    for role in ("math", "lang"):
        write_model(tmp_path / role, model)
    experts = {role: open_checkpoint(tmp_path / role, role=role) for role in ("math", "lang")}
    with pytest.raises(RecipeError, match="--swap attn: no tensor of these layers is recognised as such"):
        LayerSwap(bottom=1, swap=("attn",)).draft(**experts)


def test_layers_are_not_reverted_to_a_base_of_another_shape(tmp_path: Path, trio: dict[str, Model]) -> None:
    write_model(tmp_path / "other", {**trio["base"], "model.norm.weight": Tensor("F32", (4,), bytes(16))})
    with pytest.raises(MismatchError, match=r"'model.norm.weight' has shape \[8\] in math, \[4\] in base"):
        merge(
            LayerSwap(bottom=1, revert_layers=(2,)),
            math=tmp_path / "math", lang=tmp_path / "lang", base=tmp_path / "other", into=tmp_path / "out",
        )  # fmt: skip


def test_a_sum_by_another_method_is_refused() -> None:
    with pytest.raises(RecipeError, match="--method is 'slerp'; expected one of"):
        TaskSum("slerp")  # type: ignore[arg-type]
