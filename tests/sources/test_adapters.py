"""Checkpoints with a LoRA adapter: against PEFT's own merge of the same files, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

import lswap_core as library
from lswap_core import LayerSwap
from lswap_core.cli.main import main
from lswap_core.kernels.low_rank import change_of
from lswap_core.plan.plan import Plan
from lswap_core.sources.adapters import open_source, places_of
from tests import build, oracle
from tests.build import Model, Tensor, llama_like, read_model, tensor, tree, write_model
from tests.products import fp32_bound, last_place

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's, about what it corrects and saves
    pytest.mark.filterwarnings("ignore:.*did not match any targeted module:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT asks transformers by an old name
]

LAYERS = 4
VOCABULARY = 8200
"""Embeddings of 1.2 MB in bf16 and 2.4 MB in fp32, so that pieces of a mebibyte end inside them."""
ANOTHER_ORDER = "torch's library adds up in another order on this machine"
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def llama() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=72, intermediate_size=88, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip


def gpt2() -> PretrainedConfig:
    return GPT2Config(vocab_size=VOCABULARY, n_embd=72, n_layer=LAYERS, n_head=4, n_positions=32)


@dataclass(frozen=True)
class Case:
    """A model and its adapter. values: of the factors. exact: fp32 rounds nothing that depends on the order of the sums."""

    config: Callable[[], PretrainedConfig]
    lora: dict[str, Any]
    dtype: torch.dtype = torch.float32
    values: str = "normal"
    exact: bool = True
    edit: dict[str, Any] = field(default_factory=dict)


ATTENTION = ["q_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "k_proj", "up_proj", "down_proj", "gate_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]
RANKS = {"rank_pattern": {"down_proj": 2, "^model.layers.1.self_attn.q_proj": 6, "layers.[23].mlp.up_proj": 3}}
ALPHAS = {"alpha_pattern": {"layers.0.mlp.(up|down)_proj": 3, "q_proj": 5, "model.layers.0.self_attn.q_proj": 9}}
CASES = {
    "rank one": Case(llama, {"r": 1, "lora_alpha": 3, "target_modules": LINEAR}),
    "rank one in bf16": Case(llama, {"r": 1, "lora_alpha": 3, "target_modules": LINEAR}, torch.bfloat16),
    "any rank where sums are exact": Case(llama, {"r": 8, "lora_alpha": 16, "target_modules": LINEAR}, values="grid"),
    "any rank": Case(llama, {"r": 8, "lora_alpha": 12, "target_modules": LINEAR}, exact=False),
    "any rank in bf16": Case(llama, {"r": 8, "lora_alpha": 12, "target_modules": LINEAR}, torch.bfloat16, exact=False),
    "any rank in fp16": Case(llama, {"r": 8, "lora_alpha": 12, "target_modules": LINEAR}, torch.float16, exact=False),
    "a rank of several chains": Case(llama, {"r": 256, "lora_alpha": 100, "target_modules": LINEAR}, exact=False),
    "any rank of embeddings": Case(llama, {"r": 16, "lora_alpha": 5, "target_modules": ["embed_tokens", "lm_head"]}, exact=False),
    "any rank of GPT-2": Case(gpt2, {"r": 32, "lora_alpha": 7, "target_modules": [*CONV1D, "wte"], "fan_in_fan_out": True}, exact=False),
    "rsLoRA": Case(llama, {"r": 5, "lora_alpha": 4, "target_modules": ATTENTION, "use_rslora": True}, exact=False),
    "rsLoRA with exact sums": Case(llama, {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": LINEAR}, values="grid"),
    "patterns": Case(llama, {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **RANKS, **ALPHAS}, exact=False),
    "patterns of alpha": Case(llama, {"r": 1, "lora_alpha": 8, "target_modules": LINEAR, **ALPHAS}),
    "embeddings and head": Case(llama, {"r": 1, "lora_alpha": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embeddings in bf16": Case(llama, {"r": 1, "lora_alpha": 2, "target_modules": ["embed_tokens", "lm_head"]}, torch.bfloat16),
    "modules to save": Case(llama, {"r": 1, "target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm", "embed_tokens"]}),
    "GPT-2": Case(gpt2, {"r": 1, "lora_alpha": 3, "target_modules": [*CONV1D, "wte"], "fan_in_fan_out": True}),
    "GPT-2, a square matrix alone": Case(gpt2, {"r": 1, "target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
    "GPT-2, the flag wrong": Case(gpt2, {"r": 1, "target_modules": CONV1D}, edit={"fan_in_fan_out": False}),
    "GPT-2, a square matrix alone, the flag wrong": Case(gpt2, {"r": 1, "target_modules": ["attn.c_proj"]}, edit={"fan_in_fan_out": False}),
    "Llama, the flag wrong": Case(llama, {"r": 1, "target_modules": LINEAR}, edit={"fan_in_fan_out": True}),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def make_base(case: Case, root: Path) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(case.config(), dtype=case.dtype).save_pretrained(root)
    return root


def make_adapter(case: Case, base: Path, root: Path, seed: int = 2) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=case.dtype)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **case.lora))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data = (torch.round(drawn * 32) / 32 if case.values == "grid" else drawn).to(parameter.dtype)
        elif "modules_to_save" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    adapted.save_pretrained(root)
    edit_config(root, case.edit)
    return root


def edit_config(adapter: Path, changes: dict[str, Any]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    """What PEFT makes of it in `dtype`, tensor by tensor."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged = peft.PeftModel.from_pretrained(model, adapter).to(dtype).merge_and_unload()
    return {name: value.detach().numpy() for name, value in merged.state_dict().items()}


def sums_of_magnitudes(base: Path, adapter: Path, scratch: Path) -> dict[str, np.ndarray]:
    """|base| + |scale| * (|b| @ |a|), element by element: how large the terms of each sum are. The merge of magnitudes."""
    shutil.copytree(base, scratch / "base")
    shutil.copytree(adapter, scratch / "adapter")
    for path in (scratch / "base/model.safetensors", scratch / "adapter/adapter_model.safetensors"):
        save_file({name: value.abs() for name, value in load_file(path).items()}, path, {"format": "pt"})
    merged = merged_by_peft(scratch / "base", scratch / "adapter", torch.float64)
    return {name: value.reshape(-1) for name, value in merged.items()}


def by_definition(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """What the kernels' own definition makes of PEFT's factors and scales, in fp32: the tensors that the adapter changes."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(model, adapter).to(torch.float32)
    found = {}
    for name, module in adapted.get_base_model().named_modules():
        if len(getattr(module, "lora_A", ())):
            b, a, turned = module.lora_B["default"].weight, module.lora_A["default"].weight, module.fan_in_fan_out
        elif len(getattr(module, "lora_embedding_A", ())):
            b, a, turned = module.lora_embedding_B["default"], module.lora_embedding_A["default"], True
        else:
            continue
        left, right, weight = (values.detach().numpy() for values in (b, a, module.get_base_layer().weight))
        rows, columns = len(left), right.shape[1]
        change = change_of(left, right, module.scaling["default"], first=0, count=rows * columns).reshape(rows, columns)
        found[f"{name}.weight"] = weight + (change.T if turned else change)
    return found


def as_model(values: dict[str, np.ndarray], like: Model) -> Model:
    """The same, rounded once to the dtypes of `like`."""
    found = {}
    for name, t in like.items():
        rounded = values[name].astype(oracle.NUMPY[t.dtype])
        found[name] = Tensor(t.dtype, t.shape, rounded.tobytes())
    return found


def merge_alone(where: str, into: Path, lang: Path) -> Model:
    """The adapted expert as an output of its own."""
    library.merge(LayerSwap(), math=where, lang=lang, into=into)
    return read_model(into)


@pytest.mark.parametrize("name", CASES)
def test_an_adapted_checkpoint_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base = make_base(case, tmp_path / "base")
    adapter = make_adapter(case, base, tmp_path / "adapter")
    ours = merge_alone(f"{base}+{adapter}", tmp_path / "ours", base)
    before, theirs = read_model(base), merged_by_peft(base, adapter)
    expected = as_model(theirs, before)
    assert sorted(ours) == sorted(before)
    changed = {n for n in before if expected[n].data != before[n].data}
    assert len(changed) >= 2
    if case.exact:
        assert [n for n in ours if ours[n] != expected[n]] == []
    assert [n for n in ours if n not in changed and ours[n] != before[n]] == []
    defined = by_definition(base, adapter)
    assert defined.keys() <= changed
    assert defined.keys() == changed or "modules_to_save" in case.lora
    assert [n for n, t in as_model(defined, {n: before[n] for n in defined}).items() if ours[n] != t] == []
    # Another library has another order of sums, and no two orders agree to the last place where terms cancel. Any is as near
    # to the exact sum as the error analysis of sums allows.
    exact, terms = merged_by_peft(base, adapter, torch.float64), sums_of_magnitudes(base, adapter, tmp_path / "magnitudes")
    rank = max(case.lora.get("r", 8), *case.lora.get("rank_pattern", {"": 0}).values())
    for n in changed:
        both = [oracle.values(merged) for merged in (ours[n], expected[n])]
        if case.dtype is torch.float32:
            assert all((np.abs(sums - exact[n].reshape(-1)) <= fp32_bound(terms[n], rank)).all() for sums in both)
        else:
            assert (np.abs(both[0] - both[1]) <= last_place(terms[n], NAMES[case.dtype])).all()
            assert (np.abs(both[0] - exact[n].reshape(-1)) <= last_place(terms[n], NAMES[case.dtype])).all()
    differing = [n for n in changed if ours[n] != expected[n]]
    if differing:
        pytest.skip(f"within the bounds, with other bits in {len(differing)} tensors: {ANOTHER_ORDER}")


@pytest.mark.parametrize("name", ["rank one in bf16", "any rank in bf16", "any rank in fp16"])
def test_peft_itself_rounds_once_where_the_base_has_16_bits(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base = make_base(case, tmp_path / "base")
    adapter = make_adapter(case, base, tmp_path / "adapter")
    ours = merge_alone(f"{base}+{adapter}", tmp_path / "ours", base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=case.dtype)
    state = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    terms = sums_of_magnitudes(base, adapter, tmp_path / "magnitudes")
    differing = 0
    for n, value in state.items():
        theirs = value.to(torch.float64).reshape(-1).numpy()
        assert (np.abs(oracle.values(ours[n]) - theirs) <= last_place(terms[n], NAMES[case.dtype])).all()
        differing += ours[n].data != value.contiguous().view(torch.int16).numpy().tobytes()
    if differing:
        assert not case.exact
        pytest.skip(f"within the bound, with other bits in {differing} tensors: {ANOTHER_ORDER}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swap_of_adapted_experts(dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = {"r": 1, "lora_alpha": 2, "target_modules": [*LINEAR, "embed_tokens", "lm_head"]}
    cases = {"math": Case(llama, lora, dtype), "lang": Case(llama, {**lora, "target_modules": LINEAR}, dtype)}
    base = make_base(cases["math"], tmp_path / "base")
    adapters = {role: make_adapter(case, base, tmp_path / role, seed) for seed, (role, case) in enumerate(cases.items(), 5)}
    where = {role: f"{base}+{adapter}" for role, adapter in adapters.items()}
    experts = {role: as_model(merged_by_peft(base, adapter), read_model(base)) for role, adapter in adapters.items()}

    recipe = LayerSwap(bottom=1, top=1, transition=1, weight=0.3, embed="blend", head="lang")
    draft = recipe.draft(math=open_source(where["math"], "math"), lang=open_source(where["lang"], "lang"))
    plan = library.lay_out(draft)
    assert Plan.from_json(plan.to_json(), path="plan") == plan
    library.write_plan(plan, tmp_path / "plan.json")
    assert main(["apply", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out"), "--quiet"]) == 0

    shares = {f"model.layers.{n}.": share for n, share in enumerate((1, 0.3, 0.3, 1))}
    shares |= {"model.embed_tokens.": 0.3, "lm_head.": 1}
    share_of = {name: share for name in experts["math"] for prefix, share in shares.items() if name.startswith(prefix)}
    assert read_model(tmp_path / "out") == oracle.swapped(experts["math"], experts["lang"], share_of)
    sources = ["--math", where["math"], "--lang", where["lang"]]
    assert main(["verify", str(tmp_path / "out"), *sources, "--quiet"]) == 0
    assert main(["verify", str(tmp_path / "out"), "--math", str(base), "--lang", where["lang"]]) == 6
    assert "adapter_model.safetensors is not the file that was merged" in capsys.readouterr().err

    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model:\n- "base"\n- "math"\n- "lang"\n' in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "lswap_manifest.json").read_text()
    # an adapter that changes after it was planned
    path = adapters["lang"] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert main(["apply", str(tmp_path / "plan.json"), "--out", str(tmp_path / "late")]) == 5
    assert main(["verify", str(tmp_path / "out"), *sources]) == 6
    assert not (tmp_path / "late").exists()


# Small adapters, written without PEFT


PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
Q_PROJ = "base_model.model.model.layers.{}.self_attn.q_proj"


def factors(prefix: str = Q_PROJ, layers: int = 2, *, rank: int = 2, m: int = 8, n: int = 8) -> Model:
    rng = np.random.default_rng(3)
    made: Model = {}
    for layer in range(layers):
        made[f"{prefix.format(layer)}.lora_A.weight"] = build.normal("F32", (rank, n), rng)
        made[f"{prefix.format(layer)}.lora_B.weight"] = build.normal("F32", (m, rank), rng)
    return made


def write_adapter(root: Path, tensors: Model | None = None, **options: object) -> Path:
    root.mkdir(parents=True)
    given = {key: value for key, value in {**PLAIN, **options}.items() if value is not ...}
    (root / "adapter_config.json").write_text(json.dumps(given))
    (root / "adapter_model.safetensors").write_bytes(build.file_bytes(factors() if tensors is None else tensors))
    return root


def write_base(root: Path, model: Model | None = None, **config: object) -> Path:
    rng = np.random.default_rng(4)
    held = llama_like(2, rng, dtype="F32") if model is None else model
    return write_model(root, held, config={"num_hidden_layers": 2, **config})


def test_inspect_says_what_is_adapted_and_diff_compares_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path="/home/somebody/other-base")
    where = f"{base}+{adapter}"
    q_proj = [f"model.layers.{n}.self_attn.q_proj.weight" for n in range(2)]
    assert main(["inspect", where, "--json", "--tensors"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["adapted"] == q_proj
    assert [row["tensor"] for row in shown["list"] if row["adapter"]] == q_proj
    assert {row["adapter"] for row in shown["list"]} == {"", "rank 2, scale 2"}
    assert main(["inspect", where]) == 0
    said = capsys.readouterr().out
    assert "with an adapter: 2 tensors changed, 0 tensors given in full" in said
    assert "trained on 'other-base', its base here is 'base'" in said
    assert "somebody" not in said
    assert main(["diff", str(base), where, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["bytes"] == q_proj
    merge_alone(where, tmp_path / "merged", base)
    assert main(["diff", where, str(tmp_path / "merged")]) == 0
    assert main(["diff", where, where]) == 0


def test_the_plus_of_a_path_that_exists_is_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "a+b")
    assert open_source(base, "math").adapter is None
    adapter = write_adapter(tmp_path / "x+y")
    opened = open_source(f"{base}+{adapter}", "math")
    assert (opened.name, opened.location) == ("a+b+x+y", f"{base}+{adapter}")
    assert places_of(opened.location) == (str(base), str(adapter))
    assert places_of(str(base)) == (str(base),)
    write_base(tmp_path / f"a+b+{adapter.name}")
    assert open_source(tmp_path / "a+b+x+y", "math").adapter is None
    assert main(["inspect", f"{base}+{tmp_path}/nothing"]) == 1
    assert capsys.readouterr().err == f"lswap-core: error: {tmp_path}/nothing: No such file or directory\n"
    assert main(["inspect", f"{tmp_path}/none+{adapter}"]) == 1


def test_there_is_one_adapter_after_the_plus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter, other = write_base(tmp_path / "base"), write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b")
    assert main(["inspect", f"{base}+"]) == 4
    assert capsys.readouterr().err == f"lswap-core: error: {base}+: there is nothing after the plus; expected BASE+ADAPTER\n"
    assert main(["inspect", f"{base}+{adapter}+{other}"]) == 4
    error = capsys.readouterr().err
    assert f"{adapter} and {other} are two adapters over one base; expected one: merge {base}+{adapter} first" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("inside", ["base", "adapter"])
def test_no_output_lies_in_base_or_adapter(inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    before = tree(tmp_path)
    place = str(tmp_path / inside / "out")
    arguments = ["--math", f"{base}+{adapter}", "--lang", str(base), "--bottom", "1", "--out", place]
    for command in (["merge"], ["merge", "--dry-run"], ["plan"]):
        assert main([*command, *arguments]) == 4
        assert "is inside the source" in capsys.readouterr().err
    assert tree(tmp_path) == before


def bare(name: str) -> str:
    return name.removeprefix("model.")


@pytest.mark.parametrize("shorter", ["base", "adapter"])
def test_a_base_may_lack_a_prefix_or_have_one_more(shorter: str, tmp_path: Path) -> None:
    model, prefix = llama_like(2, np.random.default_rng(4), dtype="F32"), Q_PROJ
    if shorter == "base":
        model = {bare(name): t for name, t in model.items()}
    else:
        prefix = "base_model.model.layers.{}.self_attn.q_proj"
    base = write_base(tmp_path / "base", model)
    opened = open_source(f"{base}+{write_adapter(tmp_path / 'adapter', factors(prefix))}", "math")
    assert opened.adapter is not None
    expected = [name for name in model if "q_proj" in name]
    assert list(opened.adapter.low_rank) == expected


def test_a_tensor_in_full_is_rounded_to_what_it_replaces(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    model = llama_like(2, rng, dtype="BF16")
    base = write_base(tmp_path / "base", model)
    head, whole = build.normal("F32", (16, 8), rng), build.normal("F32", (16, 8), rng)
    embed = "base_model.model.model.embed_tokens"
    given = {f"{embed}.base_layer.weight": whole, "base_model.model.lm_head.modules_to_save.weight": head}
    a, b = build.normal("F32", (2, 16), rng), build.normal("F32", (8, 2), rng)
    given |= {f"{embed}.lora_embedding_A": a, f"{embed}.lora_embedding_B": b}
    adapter = write_adapter(tmp_path / "adapter", {**factors(), **given}, modules_to_save=["lm_head"])
    merged = merge_alone(f"{base}+{adapter}", tmp_path / "merged", base)
    assert merged["lm_head.weight"] == oracle.cast(head, "BF16")
    left, right = (np.frombuffer(t.data, np.float32).reshape(t.shape) for t in (a, b))
    change = sum((np.outer(left[k], right[:, k]) for k in range(2)), np.zeros((16, 8), np.float32))
    exact = np.frombuffer(whole.data, np.float32).reshape(16, 8) + np.float32(2) * change
    assert merged["model.embed_tokens.weight"].data == exact.astype(ml_dtypes.bfloat16).tobytes()
    assert library.diff(base, f"{base}+{adapter}").dtypes == ()


RNG = np.random.default_rng(0)
HEAD = "base_model.model.lm_head"
REFUSALS: dict[str, tuple[int, str, dict[str, Any], dict[str, Any]]] = {
    "another method": (4, "peft_type: is 'IA3'", {"peft_type": "IA3"}, {}),
    "DoRA": (4, "use_dora: is True", {"use_dora": True}, {}),
    "DoRA's tensors": (4, "is DoRA", {"tensors": {**factors(), f"{Q_PROJ.format(0)}.lora_magnitude_vector": build.normal("F32", (8,), RNG)}}, {}),
    "biases": (4, "bias: is 'lora_only'", {"bias": "lora_only"}, {}),
    "a bias of the change": (4, "lora_bias: is True", {"lora_bias": True}, {}),
    "trained tokens": (4, "trainable_token_indices: is [1, 2]", {"trainable_token_indices": [1, 2]}, {}),
    "trained tokens' tensors": (4, "is trained tokens", {"tensors": {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": build.normal("F32", (2, 8), RNG)}}, {}),
    "PiSSA": (4, "which changes the base's weights", {"init_lora_weights": "pissa_niter_4"}, {}),
    "an unknown option": (4, "use_magic: is 1", {"use_magic": 1}, {}),
    "parameters": (4, "target_parameters", {"target_parameters": ["experts.up"]}, {}),
    "no rank": (3, "'r' is missing", {"r": ...}, {}),
    "a rank of nothing": (3, "expected a whole number from 1", {"r": 0}, {}),
    "an alpha of text": (3, "lora_alpha: expected a number", {"lora_alpha": "x"}, {}),
    "an alpha that is infinite": (3, "not valid JSON", {"lora_alpha": float("inf")}, {}),
    "a flag that is none": (3, "use_rslora: expected true or false", {"use_rslora": 1}, {}),
    "a pattern that is none": (3, "not a regular expression", {"rank_pattern": {"(": 1}}, {}),
    "a pattern without end": (3, "has 2000 characters", {"alpha_pattern": {"x" * 2000: 1}}, {}),
    "a rank that its pattern denies": (4, "has a change of rank 2, the adapter's config says 4", {"rank_pattern": {"layers.1.*": 4}}, {}),
    "a missing target": (4, "'model.layers.2.self_attn.q_proj.weight' is not in the base", {"tensors": factors(layers=3)}, {}),
    "a tied head": (4, "head and embeddings are one tensor", {"tensors": factors(HEAD, 1, m=16)}, {"model": llama_like(2, RNG, dtype="F32", tied=True), "tie_word_embeddings": True}),
    "a shape that does not fit": (4, "has shape [8, 8], its change has [8, 7]", {"tensors": factors(n=7)}, {}),
    "a resized vocabulary": (4, "resize the base first", {"tensors": {f"{HEAD}.weight": build.normal("F32", (17, 8), RNG)}}, {}),
    "an unknown tensor": (4, "'model.bogus' is not in the base", {"tensors": {"base_model.model.model.bogus": build.normal("F32", (1,), RNG)}}, {}),
    "another prefix": (3, "does not begin with 'base_model.model.'", {"tensors": {"lora_A.weight": build.normal("F32", (1,), RNG)}}, {}),
    "half a pair": (3, "has no lora_B", {"tensors": {k: t for k, t in factors().items() if "lora_A" in k}}, {}),
    "two of one factor": (3, "has two changes", {"tensors": factors() | {f"{Q_PROJ.format(0)}.lora_A.default.weight": build.normal("F32", (2, 8), RNG)}}, {}),
    "the same tensor twice": (3, "is there twice", {"tensors": {f"{HEAD}{part}.weight": build.normal("F32", (16, 8), RNG) for part in ("", ".base_layer")}}, {}),
    "a convolution": (3, "convolutions cannot be adapted", {"tensors": {f"{Q_PROJ.format(0)}.lora_{s}.weight": build.normal("F32", (2, 2, 1), RNG) for s in "AB"}}, {}),
    "factors of whole numbers": (3, "expected floating point", {"tensors": {f"{Q_PROJ.format(0)}.lora_{s}.weight": tensor("I32", d, RNG) for s, d in (("A", (2, 8)), ("B", (8, 2)))}}, {}),
    "nothing": (3, "changes nothing", {"tensors": {}}, {}),
    "other LoRA": (4, "is no plain LoRA", {"tensors": {f"{Q_PROJ.format(0)}.lora_E": build.normal("F32", (2, 1), RNG)}}, {}),
    "a quantised base": (4, "quantised", {"tensors": factors(layers=1)}, {"model": {**llama_like(2, RNG), "model.layers.0.self_attn.q_proj.weight": tensor("I8", (8, 8), RNG)}}),
    "a base in FP8 with scales": (4, "quantised", {"tensors": factors(layers=1)}, {"model": {**llama_like(2, RNG), "model.layers.0.self_attn.q_proj.weight": tensor("F8_E4M3", (8, 8), RNG), "model.layers.0.self_attn.q_proj.weight_scale_inv": build.normal("F32", (1, 1), RNG)}}),
    "a packed base": (4, "is quantised in the base", {"tensors": factors(layers=1)}, {"model": {k.replace("q_proj.weight", "q_proj.qweight"): t for k, t in llama_like(2, RNG).items()}}),
    "whole numbers in full": (4, "is F32, the adapter's is I32", {"tensors": {f"{HEAD}.weight": tensor("I32", (16, 8), RNG)}}, {}),
    "two for one": (4, "would both be", {"tensors": factors(layers=1) | factors("base_model.model.x.model.layers.0.self_attn.q_proj", 1)}, {}),
    "one for two": (4, "could be", {"tensors": factors("base_model.model.q_proj", 1)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_applied_is_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, adapter, model = REFUSALS[name]
    base = write_base(tmp_path / "base", **model)
    write_adapter(tmp_path / "adapter", **adapter)
    before = tree(tmp_path)
    sources = ["--math", f"{base}+{tmp_path / 'adapter'}", "--lang", str(base)]
    assert main(["merge", *sources, "--bottom", "1", "--out", str(tmp_path / "out")]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert str(tmp_path / "adapter") in error
    assert tree(tmp_path) == before


def test_what_is_no_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")

    def refused(adapter: Path, said: str, status: int = 3) -> None:
        assert main(["inspect", f"{base}+{adapter}"]) == status
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    refused(base, "there is no adapter_config.json in it")
    adapter = write_adapter(tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    refused(adapter, "adapter_model.bin, which runs code when read")
    (adapter / "adapter_model.bin").rename(adapter / "elsewhere")
    refused(adapter, "no adapter: there is no adapter_model.safetensors in it")
    weights.write_bytes(b"short")
    refused(adapter, "at least 8 bytes")
    weights.unlink()
    weights.symlink_to(base / "model.safetensors")
    refused(adapter, "leads out of the checkpoint's directory")
    (adapter / "adapter_config.json").write_text("[]")
    refused(adapter, "expected a JSON object")
    (base / "model.safetensors").rename(base / "adapter_model.safetensors")
    other = write_adapter(tmp_path / "other")
    base = base / "adapter_model.safetensors"
    refused(other, "a base's file cannot be called adapter_model.safetensors", 4)


def test_paths_are_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")
    assert main(["inspect", f"{base}+{write_adapter(tmp_path / chr(0xDCFF))}"]) == 4
    assert "is no Unicode text" in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["q_proj", "layers.1", "^model.layers.0.self_attn.q_proj", "self_attn.(q|k)_proj", ".*", "x", "0.self_attn.q_proj", "^layers"]), unique=True),
    st.lists(st.sampled_from(["q_proj", "self_attn", "model.layers.0.self_attn.q_proj", "k_proj|q_proj", ".*1.*"]), unique=True),
    st.booleans(),
)  # fmt: skip
def test_scales_are_pefts(tmp_path_factory: pytest.TempPathFactory, ranks: list[str], alphas: list[str], rooted: bool) -> None:
    """Scaling of every module as PEFT gives it to a model that it wraps with the same config."""
    root = tmp_path_factory.mktemp("scales")
    options = {
        "rank_pattern": {pattern: 1 + n for n, pattern in enumerate(ranks)},
        "alpha_pattern": {pattern: 3 + 2 * n for n, pattern in enumerate(alphas)},
        "use_rslora": rooted,
    }
    attention = torch.nn.ModuleDict({"self_attn": torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8, bias=False)})})
    layers = torch.nn.ModuleList([attention, deepcopy(attention)])
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": layers})})
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=7, lora_alpha=11, target_modules=["q_proj"], **options))
    theirs, made = {}, {}
    for name, module in wrapped.named_modules():
        if name.endswith(".q_proj"):
            theirs[name.removeprefix("base_model.model.") + ".weight"] = module.scaling["default"]
            made |= factors(name, 1, rank=module.r["default"])
    adapter = write_adapter(root / "adapter", made, r=7, lora_alpha=11, **options)
    opened = open_source(f"{write_base(root / 'base')}+{adapter}", "math")
    assert opened.adapter is not None
    assert {name: change.scale for name, change in opened.adapter.low_rank.items()} == theirs


def test_what_peft_saves_is_all_used(tmp_path: Path) -> None:
    case = CASES["modules to save"]
    base = make_base(case, tmp_path / "base")
    adapter = make_adapter(case, base, tmp_path / "adapter")
    opened = open_source(f"{base}+{adapter}", "lang")
    assert opened.adapter is not None
    used = [ref for change in opened.adapter.low_rank.values() for ref in (change.a, change.b)]
    used += opened.adapter.replaced.values()
    assert len(used) == len(load_file(adapter / "adapter_model.safetensors"))
    assert {ref.role for ref in used} == {"lang"}
