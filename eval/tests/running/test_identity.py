"""One identity for what is the same model, others for all others, and no path in any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import lswap_core
from lswap_core import Draft, LayerSwap, execute, lay_out, layers
from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.errors import VerificationError
from lswap_eval.generate.identity import identify, identify_draft, identify_name

RECIPES = {
    "default": LayerSwap(bottom=2, top=1, transition=1),
    "other share": LayerSwap(bottom=2, top=1, transition=1, weight=0.25),
    "linear": LayerSwap(bottom=2, top=1, transition=2, ramp="linear"),
    "embed": LayerSwap(bottom=2, top=1, transition=1, embed="lang"),
    "embed blended": LayerSwap(bottom=2, embed="blend"),
    "embed blended otherwise": LayerSwap(bottom=2, embed="blend", weight=0.25),
    "norm": LayerSwap(bottom=2, top=1, transition=1, norm="lang"),
    "soup": LayerSwap(blend_layers=tuple(range(12))),
}


@pytest.fixture(scope="module")
def sources(experts: dict[str, Path]) -> dict[str, Checkpoint]:
    return {role: lswap_core.open_checkpoint(experts[role], role=role) for role in ("math", "lang")}


def digest(recipe: LayerSwap, sources: dict[str, Checkpoint]) -> str:
    return identify_draft(recipe.draft(**sources), name="any").digest


def test_every_recipe_has_its_own(sources: dict[str, Checkpoint]) -> None:
    digests = {name: digest(recipe, sources) for name, recipe in RECIPES.items()}
    assert len(set(digests.values())) == len(RECIPES)


def test_one_model_spelt_in_several_ways_has_one(sources: dict[str, Checkpoint], experts: dict[str, Path]) -> None:
    for same in (
        [LayerSwap(bottom=2, top=1, transition=1), LayerSwap(lang_layers=(0, 1, 11), blend_layers=(2, 10))],
        [LayerSwap(bottom=2, transition=1, weight=1.0), LayerSwap(bottom=3)],
        [LayerSwap(bottom=2), LayerSwap(bottom=2, transition=1, weight=0.0), LayerSwap(bottom=2, weight=0.9)],
    ):
        assert len({digest(recipe, sources) for recipe in same}) == 1
    whole = LayerSwap(bottom=12, embed="lang", norm="lang", head="lang")
    assert digest(whole, sources) == identify(experts["lang"]).digest == identify_draft(Draft.of(sources["lang"]), name="").digest
    assert digest(LayerSwap(), sources) == identify(experts["math"]).digest
    assert digest(LayerSwap(bottom=12), sources) not in (identify(experts["lang"]).digest, identify(experts["math"]).digest)


def test_where_it_lies_and_what_it_is_called_do_not_matter(experts: dict[str, Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(experts["math"], tmp_path / "elsewhere"))
    assert identify(moved).digest == identify(experts["math"]).digest
    assert identify(moved).name == "elsewhere"
    assert str(tmp_path) not in json.dumps(identify(moved).to_json())
    assert len({identify(path).digest for path in experts.values()}) == 3


def test_hand_made_surgery_has_its_plans(sources: dict[str, Checkpoint], tmp_path: Path) -> None:
    digests = set()
    for number in (1, 2):
        draft = Draft.of(sources["math"]).replace(layers(0, number), sources["lang"])
        for copy in ("once", "twice"):
            execute(lay_out(draft), into=tmp_path / f"{number} {copy}")
            digests.add(identify(tmp_path / f"{number} {copy}").digest)
        with pytest.raises(ValueError, match="only the drafts of a LayerSwap"):
            identify_draft(draft, name="any")
    assert len(digests) == 2


def test_a_merge_that_was_tuned_on_is_not_taken_for_the_merge(sources: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Saved over it, with the manifest left behind: sizes and headers are the same."""
    out = tmp_path / "merged"
    execute(lay_out(RECIPES["default"].draft(**sources)), into=out)
    shard = sorted(out.glob("*.safetensors"))[2]
    tensors = load_file(shard)
    name = min(tensors)
    tensors[name][..., 0] += 1
    header = shard.read_bytes()[:8]
    save_file(tensors, shard, {"format": "pt"})
    assert shard.read_bytes()[:8] == header
    with pytest.raises(VerificationError, match=f"was changed after it was merged; remove lswap_manifest.json.*tensor {name}"):
        identify(out)
    (out / "lswap_manifest.json").unlink()
    assert identify(out).digest not in (digest(RECIPES["default"], sources), identify(sources["math"].location).digest)


def test_a_name_is_an_identity_of_its_own() -> None:
    assert identify_name("a").digest != identify_name("b").digest
    assert identify_name("a").to_json() == {"identity": identify_name("a").digest, "name": "a"}
