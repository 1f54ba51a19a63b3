"""Surgery on sources of any role: plan, apply, parts, stores, verify, report and their messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lswap_core import (
    Average,
    Draft,
    LayerSwap,
    Part,
    TaskSum,
    WriteOptions,
    apply_part,
    execute,
    lay_out,
    layers,
    named,
    open_checkpoint,
    publish,
    read_manifest,
    verify,
    write_plan,
)
from lswap_core.cli.main import main
from lswap_core.errors import RecipeError, StalePlanError
from lswap_core.plan.plan import Plan
from lswap_core.report.card import default_name
from lswap_core.verbs.report import describe
from tests import oracle
from tests.buckets import Store, empty, moto_store, use
from tests.build import Model, Tensor, file_bytes, llama_like, normal, read_model, tree, write_model
from tests.catalogue import checkpoint, llama

ROLES = ("code", "law", "art", "math")
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
LAYERS = 4
MIB = 2**20


def make(root: Path, *, large: bool = False) -> dict[str, Model]:
    """Four experts, each under its role's name; large: 6 MiB in three layers, of which a store can copy pieces."""
    made = {}
    for number, role in enumerate(ROLES):
        rng = np.random.default_rng([number, 11])
        model = llama_like(LAYERS, rng)
        for n in (0, 1, 3) if large else ():
            raw = rng.integers(0x3F00, 0x4000, 3 * MIB, np.uint16)
            model[f"model.layers.{n}.mlp.down_proj.weight"] = Tensor("BF16", (1024, 3 * 1024), raw.tobytes())
        names = sorted(model)
        made[role] = model
        write_model(root / role, model, files=[names[::2], names[1::2]], config={"num_hidden_layers": LAYERS})
    return made


def plan_of(*places: str | Path) -> Plan:
    """Code's tensors; law's layer 0; in layer 1 the average of all four; in layer 2 a blend of two."""
    code, law, art, math = (open_checkpoint(place, role=role) for place, role in zip(places, ROLES, strict=True))
    draft = Draft.of(code).replace(layers(0, 1), law).blend(layers(1, 2), *zip((code, law, art, math), WEIGHTS, strict=True))
    return lay_out(draft.blend(layers(2, 3), (art, 0.75), (math, 0.25)))


def expected(made: dict[str, Model]) -> dict[str, bytes]:
    found = {}
    for name in made["code"]:
        number = int(name.split(".")[2]) if ".layers." in name else None
        code, law, art, math = (made[role][name] for role in ROLES)
        found[name] = code.data
        if number == 0:
            found[name] = law.data
        elif number == 1:
            found[name] = oracle.average((code, law, art, math), WEIGHTS)
        elif number == 2:
            found[name] = oracle.blend(art, math, 0.25)
    return found


@pytest.fixture
def experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path)


def moved(*roles: str) -> list[str]:
    return [word for role in roles for word in ("--source", f"{role}=elsewhere/{role}")]


def data_of(root: str) -> dict[str, bytes]:
    return {name: t.data for name, t in read_model(Path(root)).items()}


def test_apply_and_verify_find_sources_of_any_role_elsewhere(
    experts: dict[str, Model], capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(plan_of(*ROLES), "plan.json")
    execute(plan_of(*ROLES), into="here")
    assert data_of("here") == expected(experts)
    Path("elsewhere").mkdir()
    for role in ROLES:
        Path(role).rename(Path("elsewhere", role))
    assert main(["apply", "plan.json", "--out", "out", *moved("code", "law", "art"), "--math", "elsewhere/math"]) == 0
    assert tree(Path("out")) == tree(Path("here"))
    capsys.readouterr()
    assert main(["verify", "out", *moved(*ROLES)]) == 0
    assert "as code, law, art and math give them" in capsys.readouterr().out
    assert main(["verify", "out", *moved(*ROLES), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"] == ["manifest", *ROLES]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--source", "bio=code"],
            "--source bio=PATH is given, but nothing was made from bio; the sources are math, art, code and law",
        ),
        (["--lang", "law"], "--lang is given, but nothing was made from lang; the sources are math, art, code and law"),
        (["--source", "law=law", "--source", "law=code"], "law is given twice, as law and as code"),
        (["--math", "math", "--source", "math=art"], "math is given twice, as math and as art"),
        (["--source", "law"], "--source is 'law'; expected ROLE=PATH, such as code=models/code"),
        (["--source", "=law"], "'' is no role; expected a lower-case letter"),
        (["--source", "La w=law"], "'La w' is no role; expected a lower-case letter"),
    ],
)
@pytest.mark.parametrize("command", ["apply", "apply --part", "publish", "verify"])
def test_other_sources_are_refused_in_one_line_with_those_there_are(
    experts: dict[str, Model], capsys: pytest.CaptureFixture[str], command: str, flags: list[str], words: str
) -> None:
    plan = plan_of(*ROLES)
    write_plan(plan, "plan.json")
    if command == "verify":
        execute(plan, into="out")
    if command == "publish":
        apply_part(plan, Part(1, 1), into="out")
    argv = {
        "apply": ["apply", "plan.json", "--out", "out"],
        "apply --part": ["apply", "plan.json", "--out", "out", "--part", "1/1"],
        "publish": ["publish", "plan.json", "--out", "out"],
        "verify": ["verify", "out"],
    }[command]
    assert main([*argv, *flags]) == 4
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_verify_says_which_sources_are_missing(experts: dict[str, Model], capsys: pytest.CaptureFixture[str]) -> None:
    execute(plan_of(*ROLES), into="out", options=WriteOptions(digest="none"))
    assert main(["verify", "out", "--source", "law=law"]) == 4
    assert "give --math, --source code=PATH and --source art=PATH too" in capsys.readouterr().err
    assert main(["verify", "out"]) == 0
    assert "give --math, --source code=PATH, --source law=PATH and --source art=PATH to compare" in capsys.readouterr().out


def test_a_changed_source_is_named_by_its_role(experts: dict[str, Model]) -> None:
    plan = plan_of(*ROLES)
    file = next(Path("art").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StalePlanError, match="not the art file that was planned"):
        execute(plan, into="out")


@pytest.mark.parametrize("parts", [1, 3])
def test_parts(experts: dict[str, Model], parts: int) -> None:
    write_plan(plan_of(*ROLES), "plan.json")
    execute(plan_of(*ROLES), into="one", options=WriteOptions(copy_method="read_write"))
    Path("elsewhere").mkdir()
    for role in ROLES:
        Path(role).rename(Path("elsewhere", role))
    for number in range(parts, 0, -1):
        part = ["--part", f"{number}/{parts}", "--copy-method", "read_write", "--quiet"]
        assert main(["apply", "plan.json", "--out", "out", *part, *moved(*ROLES)]) == 0
    assert main(["publish", "plan.json", "--out", "out", *moved(*ROLES), "--quiet"]) == 0
    assert tree(Path("out")) == tree(Path("one"))


def test_a_run_that_was_cut_off_goes_on(experts: dict[str, Model]) -> None:
    class Stop:
        """Progress that interrupts when half is done."""

        left = 0

        def begin(self, total_bytes: int) -> None:
            self.left = total_bytes // 2

        def advance(self, done_bytes: int) -> None:
            self.left -= done_bytes
            if self.left < 0:
                raise KeyboardInterrupt

        def end(self) -> None:
            pass

    plan = plan_of(*ROLES)
    with pytest.raises(KeyboardInterrupt):
        execute(plan, into="out", progress=Stop(), workers=1)
    assert Path(".out.partial").is_dir()
    execute(plan, into="out")
    assert data_of("out") == expected(experts)
    verify("out", locations={role: role for role in ROLES})


def test_a_low_rank_change_of_any_source(experts: dict[str, Model]) -> None:
    """Factors whose products are exact, so that any order of sums gives them."""
    rng = np.random.default_rng(1)
    stem = "base_model.model.model.layers.1.self_attn.q_proj"
    a, b = (rng.integers(-2, 3, shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
    factors = {
        f"{stem}.lora_A.weight": Tensor("F32", (2, 8), a.tobytes()),
        f"{stem}.lora_B.weight": Tensor("F32", (8, 2), b.tobytes()),
    }
    Path("adapter").mkdir()
    Path("adapter/adapter_model.safetensors").write_bytes(file_bytes(factors, {"format": "pt"}))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "bias": "none"}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    plan = plan_of("code", "law+adapter", "art", "math")
    assert Plan.from_json(plan.to_json(), path="p") == plan
    execute(plan, into="out")
    name = "model.layers.1.self_attn.q_proj.weight"
    law = experts["law"][name]
    changed = (oracle.values(law).reshape(8, 8) + b.astype(np.float64) @ a).astype(np.float32).astype(oracle.NUMPY["BF16"])
    sides = [experts["code"][name], Tensor("BF16", (8, 8), changed.tobytes()), experts["art"][name], experts["math"][name]]
    assert data_of("out")[name] == oracle.average(sides, WEIGHTS)
    verify("out", locations={"code": "code", "law": "law+adapter", "art": "art", "math": "math"})


# Stores


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with moto_store() as server:
        use(server, monkeypatch, tmp_path / "none")
        for bucket in ("roles", "made"):
            server.client().create_bucket(Bucket=bucket)
        yield server
        for bucket in ("roles", "made"):
            empty(server, bucket)


@pytest.mark.parametrize("parts", [0, 2])
def test_sources_and_output_in_a_store(tmp_path: Path, store: Store, parts: int) -> None:
    made = make(tmp_path, large=True)
    for role in ROLES:
        store.load("roles", role, tmp_path / role)
    plan = plan_of(*(f"s3://roles/{role}" for role in ROLES))
    if parts:
        for number in range(parts, 0, -1):
            apply_part(plan, Part(number, parts), into="s3://made/out")
        publish(plan, into="s3://made/out")
    else:
        execute(plan, into="s3://made/out")
    for name, data in store.tree("made", "out").items():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(data)
    assert data_of(str(tmp_path / "out")) == expected(made)
    verify("s3://made/out", locations={role: f"s3://roles/{role}" for role in ROLES})


def test_eight_operands_in_a_store_take_no_more_requests_each_than_two(tmp_path: Path, store: Store) -> None:
    """They are read in turn, in pieces: with fewer open streams than sources, each piece would be a request of its own."""
    rng = np.random.default_rng(3)
    roles = [f"e{k}" for k in range(8)]
    for role in roles:
        raw = rng.integers(0x3F00, 0x4000, 4 * MIB, np.uint16)
        write_model(tmp_path / role, {"a.weight": Tensor("BF16", (4 * MIB,), raw.tobytes())})
        store.load("roles", role, tmp_path / role)
    sides = [open_checkpoint(f"s3://roles/{role}", role=role) for role in roles]
    each = []
    for count in (2, 8):
        plan = lay_out(Draft.of(sides[0]).blend(named("*"), *((side, 1 / count) for side in sides[:count])))
        store.calls.clear()
        execute(plan, into=tmp_path / f"out {count}", workers=1)
        each.append(sum(method == "GET" and path.endswith("model.safetensors") for method, path, _ in store.calls) / count)
    assert each[0] == each[1]


# Reports and names


def test_the_report_of_surgery_on_any_sources(experts: dict[str, Model]) -> None:
    execute(plan_of(*ROLES), into="out")
    page = describe("out")
    assert [source.role for source in page.sources] == ["math", "code", "law", "art"]
    assert page.origins is not None
    assert [row[0] for row in page.origins.giver] == ["law", "blend of code, law, art and math", "blend of art and math", "code"]
    assert all(share is None for row in page.origins.share for share in row)
    card = Path("out/README.md").read_text()
    assert "- **law**: `law`" in card
    assert default_name(plan_of(*ROLES)) == "math+code+2-more-surgery"
    assert main(["report", "out", "--quiet"]) == 0
    assert main(["inspect", "out", "--quiet"]) == 0
    assert main(["diff", "out", "code", "--quiet"]) == 1


def test_a_manifest_with_averages_is_read_again(experts: dict[str, Model]) -> None:
    manifest = execute(plan_of(*ROLES), into="out")
    assert read_manifest("out") == manifest
    averages = [record for record in manifest.tensors.values() if isinstance(record.made_of, Average)]
    assert len(averages) == 3
    assert all(record.statistics is None and record.digest is not None for record in averages)


def test_recipes_take_the_roles_that_they_are_written_for() -> None:
    math, lang, base, code = (checkpoint(llama(2), role) for role in ("math", "lang", "base", "code"))
    with pytest.raises(RecipeError, match="the sources are opened as 'math' and 'code'; expected 'math' and 'lang'"):
        LayerSwap(bottom=1).draft(math=math, lang=code)
    with pytest.raises(RecipeError, match="opened as 'math', 'lang' and 'code'; expected 'math', 'lang' and 'base'"):
        TaskSum("ties").draft(math=math, lang=lang, base=code)
    with pytest.raises(RecipeError, match="the sources are opened as 'code'; expected 'base'"):
        LayerSwap(bottom=1, revert_layers=(1,)).draft(math=math, lang=lang, base=code)
    assert TaskSum("ties").draft(math=math, lang=lang, base=base).tensors


def test_a_graft_and_a_rename_from_any_source(experts: dict[str, Model]) -> None:
    model = {"vision.weight": normal("F32", (3,), np.random.default_rng(2))}
    write_model(Path("eyes"), model)
    code, eyes = open_checkpoint("code", role="code"), open_checkpoint("eyes", role="vision_2")
    draft = Draft.of(code).graft(named("vision.*"), eyes).rename(named("vision.*"), lambda name: f"tower.{name}")
    execute(lay_out(draft), into="out")
    assert data_of("out")["tower.vision.weight"] == model["vision.weight"].data
    assert main(["verify", "out", "--source", "code=code", "--source", "vision_2=eyes", "--quiet"]) == 0
