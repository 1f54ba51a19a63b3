"""A model swapped in place answers as the same setting merged to disk, in every setting of the ablation table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import lswap_core
from lswap_core import Draft, LayerSwap, execute, lay_out
from lswap_core.errors import RecipeError, StalePlanError
from lswap_eval.ablate.resident import ResidentModel
from lswap_eval.ablate.settings import Setting, Sizes, ablation
from lswap_eval.generate.identity import identify, identify_draft
from lswap_eval.generate.local_model import TransformersGenerator, load_model
from lswap_eval.generate.protocol import Completion, Decoding
from lswap_eval.mgsm.prompts import Prompt

SETTINGS = ablation(tiny.LAYERS, Sizes().scaled(tiny.LAYERS), base=True)
NEW = 10


class Resident:
    """A resident model of some experts, with a generator on it."""

    def __init__(self, experts: dict[str, Path], **options: Any) -> None:
        self.experts = experts
        self.sources = {role: lswap_core.open_checkpoint(path, role=role) for role, path in experts.items()}
        self.model = tiny.own_memory(load_model(experts["math"], device="cpu", **options))
        self.generator = TransformersGenerator(self.model, experts["math"], Decoding(max_new_tokens=NEW))
        self.resident = ResidentModel(self.model, self.sources["math"], self.sources)

    def draft(self, setting: Setting) -> Draft:
        return setting.draft(**self.sources)

    def answers(self, draft: Draft, prompts: list[Prompt]) -> list[Completion]:
        self.resident.swap(draft)
        self.generator.reset()
        return self.generator.complete(prompts, stop=[], seed=0)


@pytest.fixture(scope="module")
def prompts(questions: list[str]) -> list[Prompt]:
    return [Prompt(question[: 40 + number], None) for number, question in enumerate(questions)]


@pytest.fixture(scope="module")
def resident(experts: dict[str, Path]) -> Iterator[Resident]:
    made = Resident(experts)
    yield made
    made.resident.close()


@pytest.fixture(scope="module")
def swapped(resident: Resident, prompts: list[Prompt]) -> dict[str, list[Completion]]:
    """Answers of every setting, one after another in one model, from the back of the table to its front."""
    return {setting.id: resident.answers(resident.draft(setting), prompts) for setting in reversed(SETTINGS)}


def merged(draft: Draft, into: Path, *, dtype: str = "auto") -> TransformersGenerator:
    execute(lay_out(draft), into=into)
    return on_disk(into, dtype=dtype)


def on_disk(path: Path, *, dtype: str = "auto") -> TransformersGenerator:
    model = tiny.own_memory(load_model(path, device="cpu", dtype=dtype))
    return TransformersGenerator(model, path, Decoding(max_new_tokens=NEW))


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.id for setting in SETTINGS])
def test_swapped_in_place_answers_as_merged_to_disk(
    setting: Setting, resident: Resident, swapped: dict[str, list[Completion]], prompts: list[Prompt], tmp_path: Path
) -> None:
    if setting.recipe in ("base", "math", "lang"):
        generator = on_disk(resident.experts[setting.recipe])
    else:
        generator = merged(resident.draft(setting), tmp_path / "merged")
    assert generator.complete(prompts, stop=[], seed=0) == swapped[setting.id]


def test_the_settings_answer_differently(swapped: dict[str, list[Completion]]) -> None:
    texts = {setting: tuple(answer.text for answer in answers) for setting, answers in swapped.items()}
    assert len(texts) == 16
    assert len(set(texts.values())) == 16


@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_tied_embeddings_and_a_policy_outside(
    tied: bool, questions: list[str], prompts: list[Prompt], tmp_path: Path
) -> None:
    experts = tiny.make_experts(tmp_path / "experts", questions, tied=tied, dtype=torch.bfloat16)
    resident = Resident(experts)
    recipe = LayerSwap(bottom=2, top=3, transition=2, ramp="linear", embed="lang", norm="blend")
    swapped = resident.answers(recipe.draft(math=resident.sources["math"], lang=resident.sources["lang"]), prompts)
    draft = recipe.draft(math=resident.sources["math"], lang=resident.sources["lang"])
    again = merged(draft, tmp_path / "merged")
    assert again.complete(prompts, stop=[], seed=0) == swapped
    held, loaded = resident.model.state_dict(), again.model.state_dict()
    assert [name for name in loaded if not torch.equal(held[name].view(torch.int16), loaded[name].view(torch.int16))] == []
    assert (held["lm_head.weight"].data_ptr() == held["model.embed_tokens.weight"].data_ptr()) is tied
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    resident.answers(Draft.of(resident.sources["math"]), prompts)
    original = load_file_all(experts["math"])
    assert [name for name in original if not torch.equal(resident.model.state_dict()[name], original[name])] == []


def load_file_all(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_model_loaded_in_another_dtype_is_rounded_as_loading_rounds(
    experts: dict[str, Path], prompts: list[Prompt], tmp_path: Path
) -> None:
    resident = Resident(experts, dtype="bfloat16")
    draft = resident.draft(SETTINGS[4])
    swapped = resident.answers(draft, prompts)
    assert merged(draft, tmp_path / "merged", dtype="bfloat16").complete(prompts, stop=[], seed=0) == swapped


def test_only_what_is_made_of_something_else_is_written(experts: dict[str, Path]) -> None:
    resident = Resident(experts)
    math, lang = resident.sources["math"], resident.sources["lang"]
    layer_bytes = sum(ref.size_bytes for name, ref in math.tensors.items() if ".layers.0." in name)

    def swap(**options: int) -> int:
        return resident.resident.swap(LayerSwap(**options).draft(math=math, lang=lang))

    assert swap() == 0
    assert swap(bottom=2, top=1) == 3 * layer_bytes
    assert swap(bottom=3, top=1) == layer_bytes
    assert swap(bottom=3, top=1) == 0
    assert swap(bottom=3, transition=1) == 2 * layer_bytes
    assert swap() == 4 * layer_bytes


def test_another_language_expert_is_attached(experts: dict[str, Path], prompts: list[Prompt]) -> None:
    """base stands in for a second language expert."""
    resident = Resident(experts)
    math, lang = resident.sources["math"], resident.sources["lang"]
    first = resident.answers(LayerSwap(bottom=4).draft(math=math, lang=lang), prompts)
    other = lswap_core.open_checkpoint(experts["base"], role="lang")
    resident.resident.attach({"math": math, "lang": other})
    second = resident.answers(LayerSwap(bottom=4).draft(math=math, lang=other), prompts)
    fresh = Resident({"math": experts["math"], "lang": experts["base"]})
    assert fresh.answers(LayerSwap(bottom=4).draft(math=math, lang=other), prompts) == second != first
    with pytest.raises(ValueError, match="not among the sources"):
        resident.resident.attach({"lang": lang})


def test_a_source_that_changes_is_noticed_and_what_was_left_undone_is_done(experts: dict[str, Path], tmp_path: Path) -> None:
    lang = Path(shutil.copytree(experts["lang"], tmp_path / "lang"))
    resident = Resident({**experts, "lang": lang})
    draft = LayerSwap(bottom=3).draft(math=resident.sources["math"], lang=resident.sources["lang"])
    shard = next(iter(sorted(lang.glob("*.safetensors"))))
    content, status = shard.read_bytes(), shard.stat()
    shard.write_bytes(content[:-8])
    with pytest.raises(StalePlanError, match=str(shard)):
        resident.resident.swap(draft)
    shard.write_bytes(content)
    import os

    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    resident.resident.swap(draft)
    expected = {**load_file_all(experts["math"])}
    of_lang = load_file_all(lang)
    held = resident.model.state_dict()
    for name, tensor in expected.items():
        from_lang = any(name.startswith(f"model.layers.{number}.") for number in range(3))
        assert torch.equal(held[name], of_lang[name] if from_lang else tensor)


def test_a_model_that_does_not_hold_what_the_file_says_is_refused(experts: dict[str, Path]) -> None:
    sources = {role: lswap_core.open_checkpoint(path, role=role) for role, path in experts.items()}
    model = load_model(experts["math"], device="cpu")
    with torch.no_grad():
        model.model.layers[5].mlp.up_proj.weight.mul_(2)
    with pytest.raises(RecipeError, match=r"does not hold 'model.layers.5.mlp.up_proj.weight' as the file does"):
        ResidentModel(model, sources["math"], sources)


def test_a_base_of_another_shape_is_refused(experts: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(experts["base"], tmp_path / "base"))
    (base / "model.safetensors.index.json").unlink()
    tensors = load_file_all(base)
    for file in base.glob("*.safetensors"):
        file.unlink()
    tensors["lm_head.weight"] = torch.cat([tensors["lm_head.weight"]] * 2)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    resident = Resident({**experts, "base": base})
    with pytest.raises(RecipeError, match=r"'lm_head.weight' is F32 \[1200, 32\], which does not fit into \[600, 32\]"):
        resident.resident.swap(Draft.of(resident.sources["base"]))


def test_a_disk_merge_and_the_swap_in_memory_have_one_identity(resident: Resident, tmp_path: Path) -> None:
    seen = set()
    for setting in SETTINGS:
        draft = resident.draft(setting)
        identity = identify_draft(draft, name=setting.id)
        execute(lay_out(draft, 200_000), into=tmp_path / setting.id)
        if draft.swap is not None:
            assert identify(tmp_path / setting.id).digest == identity.digest
        else:
            assert identify(resident.experts[str(setting.recipe)]).digest == identity.digest
        seen.add(identity.digest)
        assert str(tmp_path) not in str(identity.to_json())
    assert len(seen) == 16
