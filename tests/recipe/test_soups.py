"""Soups of any number of experts, by the library and on the command line, against the oracle."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lswap_core import (
    Average,
    Blend,
    Copy,
    LayerSwap,
    MismatchError,
    RecipeError,
    Soup,
    execute,
    lay_out,
    merge,
    open_checkpoint,
    read_manifest,
    read_plan,
    soup,
    verify,
    write_plan,
)
from lswap_core.cli.main import main
from lswap_core.errors import FormatError
from lswap_core.plan.plan import Plan
from lswap_core.verbs.report import describe
from tests import oracle
from tests.build import Model, llama_like, normal, read_model, tensor, tree, write_model
from tests.catalogue import checkpoint, llama

ROLES = ("math", "lang", "code", "law")
LAYERS = 3


@pytest.fixture
def experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """Four experts in tmp_path, the working directory, each under its role's name."""
    monkeypatch.chdir(tmp_path)
    made = {}
    for number, role in enumerate(ROLES):
        rng = np.random.default_rng(number)
        model = llama_like(LAYERS, rng) | {"steps": tensor("I64", (1,), rng), "model.extra.weight": normal("F32", (9,), rng)}
        made[role] = model
        names = sorted(model)
        config = {"num_hidden_layers": LAYERS, "initializer_range": number}
        write_model(tmp_path / role, model, files=[names[::2], names[1::2]], config=config)
    return made


def expected(experts: dict[str, Model], roles: tuple[str, ...], weights: list[float]) -> dict[str, bytes]:
    found = {}
    for name, first in experts[roles[0]].items():
        sides = [experts[role][name] for role in roles]
        if first.dtype == "I64":
            found[name] = first.data
        else:
            found[name] = oracle.average(sides, weights) if len(roles) > 2 else oracle.blend(sides[0], sides[1], weights[1])
    return found


def data_of(root: str) -> dict[str, bytes]:
    return {name: t.data for name, t in read_model(Path(root)).items()}


def open_all(*roles: str) -> list[Any]:
    return [open_checkpoint(role, role=role) for role in roles]


@pytest.mark.parametrize("roles", [("code", "law"), ("math", "lang", "code"), ("law", "code", "lang", "math")])
def test_a_uniform_soup(experts: dict[str, Model], roles: tuple[str, ...]) -> None:
    plan = lay_out(Soup().draft(*open_all(*roles)))
    assert plan.primary == roles[0]
    manifest = execute(plan, into="out")
    assert data_of("out") == expected(experts, roles, [1 / len(roles)] * len(roles))
    assert verify("out", locations={role: role for role in roles}) == read_manifest("out")
    assert Path("out/config.json").read_bytes() == Path(roles[0], "config.json").read_bytes()
    assert manifest.swap is not None
    assert manifest.swap.options == {"method": "soup", "weights": dict.fromkeys(roles, 1.0)}
    assert f"average of {roles[0]} ({1 / len(roles):.6g})" in manifest.swap.notes[0]
    assert f"1 tensors hold no floating-point numbers and are {roles[0]}'s" in manifest.swap.notes


def test_weights_are_divided_by_their_sum(experts: dict[str, Model]) -> None:
    recipe = Soup({"code": 1, "math": 5, "lang": 2})  # by role, whatever their order
    execute(lay_out(recipe.draft(*open_all("math", "lang", "code"))), into="out")
    assert data_of("out") == expected(experts, ("math", "lang", "code"), [5 / 8, 2 / 8, 1 / 8])


def test_two_experts_give_the_bytes_of_the_soup_that_is_a_layer_swap(experts: dict[str, Model]) -> None:
    (math, lang) = open_all("math", "lang")
    both, swap = Soup({"math": 3, "lang": 1}).draft(math, lang), soup(math, LayerSwap(weight=0.25)).draft(math=math, lang=lang)
    blended = {name for name, made_of in swap.tensors.items() if isinstance(made_of, Blend)}
    assert {name: both.tensors[name] for name in blended} == {name: swap.tensors[name] for name in blended}
    others = both.tensors.keys() - blended
    assert {name: type(both.tensors[name]) for name in others} == {"steps": Copy, "model.extra.weight": Blend}


def test_the_same_on_the_command_line(experts: dict[str, Model], capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["--source", "math=math", "--source", "lang=lang", "--source", "code=code"]
    assert main(["merge", "--method", "soup", *sources, "--weights", "math=5,lang=2,code=1", "--out", "out"]) == 0
    assert data_of("out") == expected(experts, ("math", "lang", "code"), [5 / 8, 2 / 8, 1 / 8])
    said = capsys.readouterr().out
    assert "blend of math, lang and code" in said
    assert "average of math (0.625), lang (0.25) and code (0.125)" in said
    mixed = ["--math", "math", "--lang", "lang", "--source", "code=code", "--weights", "code=1,math=5,lang=2"]
    assert main(["plan", "--method", "soup", *mixed, "--out", "plan.json"]) == 0
    assert main(["apply", "plan.json", "--out", "again"]) == 0
    assert tree(Path("again")) == tree(Path("out"))
    capsys.readouterr()
    assert main(["verify", "out", *sources]) == 0
    assert "all as its manifest says, and as math, lang and code give them" in capsys.readouterr().out


def test_the_card_and_the_report_repeat_it(experts: dict[str, Model]) -> None:
    argv = ["merge", "--method", "soup"]
    for role in ("code", "math", "law", "lang"):
        argv += ["--source", f"{role}={role}"]
    assert main([*argv, "--weights", "code=2,math=1,law=1,lang=4.5", "--quiet"]) == 0
    out = "math+lang+2-more-soup"
    card = Path(out, "README.md").read_text()
    assert "by soup, without training" in card
    assert "| all tensors | blend of code, math, law and lang | - |" in card
    (command,) = [line for line in card.splitlines() if line.startswith("lswap-core merge")]
    assert command == describe(out).command
    assert main([*shlex.split(command)[1:], "--out", "again", "--quiet"]) == 0
    assert tree(Path("again")) == tree(Path(out))
    page = describe(out)
    assert page.origins is not None
    assert {giver for row in page.origins.giver for giver in row} == {"blend of code, math, law and lang"}
    assert {share for row in page.origins.share for share in row} == {None}
    assert (page.seams, page.maps) == (None, ())
    assert main(["report", out, "--quiet"]) == 0
    html = Path(f"{out}-report.html").read_text()
    assert '<span class="role math">math</span>' in html
    assert '<span class="role ">law</span>' in html
    assert "code: 2.0, math: 1.0, law: 1.0, lang: 4.5" in html


def test_a_uniform_soup_is_repeated_without_weights(experts: dict[str, Model]) -> None:
    sources = ["--source", "law=law", "--source", "code=code"]
    assert main(["merge", "--method", "soup", *sources, "--shard-size", "5KB", "--out", "out", "--quiet"]) == 0
    command = "lswap-core merge --method soup --source law=law --source code=code --shard-size 5000"
    assert command in Path("out/README.md").read_text()


def test_other_dtypes_are_cast_on_request(experts: dict[str, Model], capsys: pytest.CaptureFixture[str]) -> None:
    model = {name: normal("F32", t.shape, np.random.default_rng(9)) for name, t in experts["law"].items() if t.dtype != "I64"}
    config = {"num_hidden_layers": LAYERS}
    write_model(Path("wide"), model | {"steps": experts["law"]["steps"]}, config=config)
    argv = ["merge", "--method", "soup", "--source", "a=math", "--source", "b=wide", "--source", "c=code", "--out", "out"]
    assert main(argv) == 4
    assert "is BF16 in a, F32 in b (--cast brings it to a's)" in capsys.readouterr().err
    assert main([*argv, "--cast", "--quiet"]) == 0
    name = "model.norm.weight"
    sides = [experts["math"][name], oracle.cast(model[name], "BF16"), experts["code"][name]]
    assert data_of("out")[name] == oracle.average(sides, [1 / 3] * 3)
    assert "--cast" in Path("out/README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--source", "code=code"], "a soup takes two experts at least, each with a role of its own, not code"),
        (["--weights", "math=1,lang=1"], "a soup takes two experts at least, each with a role of its own, not none"),
        (["--source", "code"], "--source is 'code'; expected ROLE=PATH"),
        (["--source", "code="], "--source is 'code='; expected ROLE=PATH"),
        (["--source", "Code=code"], "'Code' is no role"),
        (["--source", "code=code", "--source", "code=law"], "code is given twice, as code and as law"),
        (["--math", "math", "--source", "math=law"], "math is given twice, as math and as law"),
        (["--source", "a=math", "--source", "b=law", "--weights", "a=1"], "a soup has two experts at least; give each a weight"),
        (
            ["--source", "a=math", "--source", "b=law", "--weights", "a=1,c=1"],
            "has weights for a and c, but its experts are a and b",
        ),
        (
            ["--source", "a=math", "--source", "b=law", "--weights", "a=1,b=0"],
            "the weight of b in a soup is 0.0; expected a number",
        ),
        (["--source", "a=math", "--source", "b=law", "--weights", "a=1,b=inf"], "the weight of b in a soup is inf"),
        (["--source", "a=math", "--source", "b=law", "--weights", "a=1,b=nan"], "the weight of b in a soup is nan"),
        (["--source", "a=math", "--source", "b=law", "--weights", "a=1,b=1e-60"], "the weight of b in the soup is too small"),
        (["--source", "a=math", "--source", "b=law", "--weights", "a=1,a=2,b=1"], "--weights has two weights for a"),
        (["--source", "a=math", "--source", "b=law", "--weights", "1,2"], "expected ROLE=W,ROLE=W, such as math=2,code=1"),
        (["--source", "a=math", "--source", "b=law", "--weights", ""], "expected ROLE=W,ROLE=W, such as math=2,code=1"),
        (["--source", "a=math", "--source", "b=law", "--weight", "0.5"], "--weight has no effect on a soup by --source"),
        (["--source", "a=math", "--source", "b=law", "--bottom", "1"], "--bottom has no effect on a soup by --source"),
        (["--source", "a=math", "--source", "b=law", "--base", "code"], "--base has no effect on a soup by --source"),
        (["--source", "a=math", "--source", "b=law", "--auto"], "--auto has no effect on a soup by --source"),
        (["--source", "a=math", "--source", "b=law", "--method", "ties"], "--source has no effect with --method ties"),
        (["--math", "math", "--lang", "lang", "--weights", "math=1", "--method", "layer-swap"], "--weights has no effect with"),
    ],
)
def test_impossible_requests(experts: dict[str, Model], capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    before = sorted(Path().iterdir())
    assert main(["merge", "--method", "soup", *flags]) == 4
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("missing", [["--math"], ["--lang"], ["--math", "--lang"]])
@pytest.mark.parametrize("method", ["soup", "layer-swap", "ties"])
def test_math_and_lang_are_needed_where_no_source_is_given(
    capsys: pytest.CaptureFixture[str], missing: list[str], method: str
) -> None:
    given = [word for option in ("--math", "--lang") if option not in missing for word in (option, "x")]
    with pytest.raises(SystemExit) as caught:
        main(["merge", "--method", method, *given])
    assert caught.value.code == 2
    assert f"the following arguments are required: {', '.join(missing)}" in capsys.readouterr().err


def test_experts_that_do_not_fit_are_refused_with_all_that_differs() -> None:
    sides = [checkpoint(llama(2), role, config={"hidden_size": n}) for n, role in enumerate(("a", "b", "c"))]
    with pytest.raises(MismatchError, match="/models/a, /models/b and /models/c cannot be combined") as caught:
        Soup().draft(*sides)
    assert caught.value.issues == (
        "config.json: hidden_size is 0 in a, 1 in b",
        "config.json: hidden_size is 0 in a, 2 in c",
    )
    with pytest.raises(RecipeError, match="not a and a"):
        Soup().draft(sides[0], sides[0])


@pytest.mark.parametrize(("code", "scale"), [("I8", "F32"), ("F8_E4M3", "F32"), ("I32", "F16"), ("U8", "F8_E8M0")])
def test_quantised_weights_are_no_part_of_a_soup(code: str, scale: str) -> None:
    shapes = llama(2) | {"model.layers.0.q.weight": (code, (4, 4)), "model.layers.0.q.weight_scale": (scale, (4,))}
    with pytest.raises(MismatchError, match="quantised weights cannot be blended") as caught:
        Soup().draft(*(checkpoint(shapes, role) for role in ("a", "b", "c")))
    assert caught.value.issues == (f"tensor 'model.layers.0.q.weight' is {code} with a scale beside it",)


def test_numbers_that_are_no_weights_and_scales_that_are_no_quantisation_are_fine() -> None:
    shapes = llama(2) | {"logit_scale": ("F32", ()), "model.position_ids": ("I64", (4,)), "model.layers.0.f8": ("F8_E5M2", (4,))}
    draft = Soup().draft(*(checkpoint(shapes, role) for role in ("a", "b", "c")))
    kinds = {name: type(made_of) for name, made_of in draft.tensors.items()}
    assert {name for name, kind in kinds.items() if kind is not Average} == {"model.position_ids"}


@pytest.mark.parametrize(
    "edit",
    [
        {"weights": 5}, {"weights": {"a": 1.0}}, {"weights": {"a": "x", "b": 1.0, "c": 1.0}}, {"cast": 1}, {"bottom": 3},
        {"weights": {"A": 1.0, "b": 1.0, "c": 1.0}}, {"weights": {"a": 10**400, "b": 1.0, "c": 1.0}}, {"weights": {"a": True, "b": 1, "c": 1}},
        {"weights": {"a": 1, "b": 1, "d": 1}}, {"weights": {"a": 1, "b": 1}}, {"method": "soupe"},
    ],
)  # fmt: skip
def test_a_stored_plan_of_a_soup_that_says_something_else_is_refused(tmp_path: Path, edit: dict[str, Any]) -> None:
    plan = lay_out(Soup({"a": 2, "b": 1, "c": 1}).draft(*(checkpoint(llama(2), role) for role in ("a", "b", "c"))))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").to_json() == plan.to_json()
    document = json.loads(plan.to_json())
    document["swap"]["options"] |= edit
    (tmp_path / "edited.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"swap\.(options|shares)") as caught:
        read_plan(tmp_path / "edited.json")
    assert "\n" not in str(caught.value)


def test_shares_are_for_layers(tmp_path: Path) -> None:
    plan = lay_out(Soup().draft(*(checkpoint(llama(2), role) for role in ("a", "b", "c"))))
    document = json.loads(plan.to_json())
    document["swap"]["shares"] = [0.5]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert Plan.from_json(json.dumps(document), path="p").swap is not None
    with pytest.raises(FormatError, match=r"swap\.shares: not what swap\.options give"):
        read_plan(tmp_path / "plan.json")


def test_a_soup_is_a_value() -> None:
    assert Soup.from_json(Soup({"a": 2, "b": 1}, cast=True).to_json()) == Soup({"a": 2, "b": 1}, cast=True)
    assert Soup().to_json() == {"method": "soup"}
    with pytest.raises(RecipeError, match="no options of a soup"):
        Soup.from_json({"method": "soup"})


def test_merge_takes_two_experts_as_before(experts: dict[str, Model]) -> None:
    merge(soup(open_checkpoint("math", role="math")), math="math", lang="lang", into="library")
    assert main(["merge", "--math", "math", "--lang", "lang", "--method", "soup", "--out", "command", "--quiet"]) == 0
    assert tree(Path("library")) == tree(Path("command"))
    options = json.loads(Path("command/lswap_manifest.json").read_text())["swap"]["options"]
    assert options == {"blend_layers": [0, 1, 2], "embed": "blend", "norm": "blend", "head": "blend"}
