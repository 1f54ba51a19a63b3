"""The report as data and as a file: held against the manifest, the change maps and the tensors themselves."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lswap_core as library
from lswap_core import Draft, LayerSwap, Manifest, layers
from lswap_core.analysis.changes import Change, ChangeMaps, TensorChange, figures, source_record
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.checkpoint.names import Stack
from lswap_core.cli.main import main
from lswap_core.errors import FormatError, RecipeError
from lswap_core.kernels.difference import DifferenceStats
from lswap_core.plan.layout import lay_out
from lswap_core.plan.manifest import StepRecord, compile_manifest
from lswap_core.recipe.draft import Draft as PlannedDraft
from lswap_core.report import html
from lswap_core.report.heatmaps import MEASURES, HeatMap
from lswap_core.report.page import Page, compile_page
from lswap_core.verbs import report
from tests.build import Model, normal, write_model
from tests.catalogue import checkpoint, llama
from tests.report.test_evaluations import comparison, scores, write

HOSTILE = "</script><img src=x onerror=alert(1)>%{z}<b>$<!--"
LARGEST = 6_000_000


def values(tensor: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """BF16 as fp64."""
    return (np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def experts(root: Path, *, matrix: str = "mlp.up_proj.weight", count: int = 6) -> dict[str, Model]:
    """A base and two experts with layers of a matrix, a norm and two small matrices that are numbered."""
    models: dict[str, Model] = {}
    for number, role in enumerate(("base", "math", "lang")):
        rng = np.random.default_rng(number)
        model: Model = {"model.embed_tokens.weight": normal("BF16", (16, 8), rng)}
        for n in range(count):
            model[f"model.layers.{n}.{matrix}"] = normal("BF16", (24, 8), rng)
            model[f"model.layers.{n}.norm.weight"] = normal("BF16", (8,), rng)
            model |= {f"model.layers.{n}.mlp.experts.{k}.w.weight": normal("BF16", (4, 8), rng) for k in range(2)}
        models[role] = model
        write_model(root / role, model, config={"num_hidden_layers": count})
    return models


@dataclasses.dataclass(frozen=True)
class Case:
    """A merge on disk, and what was measured of its experts."""

    root: Path
    out: Path
    changes: Path
    models: dict[str, Model]

    @property
    def manifest(self) -> Manifest:
        return library.read_manifest(self.out)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("page"))


def make_case(root: Path, **how: Any) -> Case:
    """Two experts of a base, merged and analysed."""
    models = experts(root, **how)
    library.merge(LayerSwap(bottom=1, top=1, transition=1), math=root / "math", lang=root / "lang", into=root / "swap")
    maps = library.analyze(**{role: library.open_checkpoint(root / role, role=role) for role in ("math", "lang", "base")})
    return Case(root, root / "swap", write(root / "changes.json", maps.to_json()), models)


def one(page: Page, key: str) -> HeatMap:
    return next(heat_map for heat_map in page.maps if heat_map.key == key)


def cell(heat_map: HeatMap, measure: str, layer: int, matrix: str) -> Any:
    return heat_map.measures[measure][heat_map.layers.index(layer)][heat_map.matrices.index(matrix)]


def expected(x: Any, y: Any) -> dict[str, float]:
    """In fp64, by numpy."""
    d = y - x
    norm = np.linalg.norm
    cosine = float(x @ y / norm(x) / norm(y))
    figures = (np.abs(d).mean(), math.sqrt((d * d).mean()), np.abs(d).max(), norm(d) / norm(x), (x != y).mean(), cosine)
    return dict(zip(MEASURES, map(float, figures), strict=True))


@pytest.mark.parametrize("measured", [False, True])
def test_cells_are_what_numpy_computes(case: Case, measured: bool) -> None:
    page = report.describe(case.out, changes=case.changes if measured else None)
    sides = {"difference": ("math", "lang"), "math": ("base", "math"), "lang": ("base", "lang")}
    for key, (x_role, y_role) in sides.items() if measured else [("difference", sides["difference"])]:
        heat_map = one(page, key)
        assert heat_map.layers == (tuple(range(6)) if measured else (1, 4))
        assert set(heat_map.matrices) == {"mlp.up_proj.weight", "norm.weight", "mlp.experts.*.w.weight"}
        for n in heat_map.layers:
            for matrix in heat_map.matrices:
                names = [f"model.layers.{n}.{matrix}"]
                if "*" in matrix:
                    names = [names[0].replace("*", str(k)) for k in range(2)]
                x, y = (np.concatenate([values(case.models[role][name]) for name in names]) for role in (x_role, y_role))
                for measure, value in expected(x, y).items():
                    assert cell(heat_map, measure, n, matrix) == pytest.approx(value, rel=1e-5, abs=1e-7), (
                        key,
                        measure,
                        n,
                        matrix,
                    )
    assert [heat_map.key for heat_map in page.maps] == (
        ["math", "lang", "agreement", "balance", "difference"] if measured else ["difference"]
    )


def test_cosines_of_changes_and_shares_are_what_numpy_computes(case: Case) -> None:
    page = report.describe(case.out, changes=case.changes)
    for n in range(6):
        base, math_, lang = (
            values(case.models[role][f"model.layers.{n}.mlp.up_proj.weight"]) for role in ("base", "math", "lang")
        )
        m, g = math_ - base, lang - base
        cosine = float(m @ g / np.linalg.norm(m) / np.linalg.norm(g))
        assert cell(one(page, "agreement"), "change_cosine", n, "mlp.up_proj.weight") == pytest.approx(cosine, abs=1e-4)
        share = float(np.abs(m).mean() / (np.abs(m).mean() + np.abs(g).mean()))
        assert cell(one(page, "balance"), "lang_share", n, "mlp.up_proj.weight") == pytest.approx(share, rel=1e-5)


def test_maps_of_blends_are_the_manifests_statistics(case: Case) -> None:
    page = report.describe(case.out)
    for n in (1, 4):
        said = case.manifest.tensors[f"model.layers.{n}.norm.weight"].statistics
        assert said is not None
        for measure in MEASURES:
            assert cell(one(page, "difference"), measure, n, "norm.weight") == figures(said)[measure]


def test_origins_follow_the_manifest(case: Case) -> None:
    page = report.describe(case.out)
    assert page.origins is not None
    assert page.origins.layers == tuple(range(6))
    for row, giver, share in zip(
        page.origins.giver, ("lang", "blend", "math", "math", "blend", "lang"), page.origins.share, strict=True
    ):
        assert set(row) == {giver}
        assert set(share) == {{"lang": 1.0, "blend": 0.5, "math": 0.0}[giver]}
    assert page.shares == (1, 0.5, 0, 0, 0.5, 1)


def test_origins_of_parts_of_a_layer_and_of_mixed_ones() -> None:
    math_, lang = checkpoint(llama(2)), checkpoint(llama(2), "lang")
    draft = Draft.of(math_).replace(layers(0, 1) & (lambda name: "attn" in name), lang)  # type: ignore[arg-type]
    page = compile_page("x", by_hand(draft))
    assert page.origins is not None
    assert dict(zip(page.origins.matrices, page.origins.giver[0], strict=True))["attn.weight"] == "lang"
    assert set(page.origins.giver[1]) == {"math"}
    assert (page.command, page.parts, page.maps) == (None, None, ())
    mixed = {f"model.layers.0.experts.{k}.weight": ("BF16", (2, 2)) for k in range(4)}
    math_, lang = checkpoint(mixed), checkpoint(mixed, "lang")
    page = compile_page("x", by_hand(Draft.of(math_).replace(lambda name: "experts.1" in name, lang)))  # type: ignore[arg-type]
    assert page.origins is not None
    assert (page.origins.giver, page.origins.share) == ((("several",),), ((0.25,),))


def by_hand(draft: PlannedDraft) -> Manifest:
    plan = lay_out(draft)
    return compile_manifest(plan, [StepRecord(step.name, None) for step in plan.steps], tool="lswap_core test")


def test_tensors_in_no_layers_have_tables_alone(tmp_path: Path) -> None:
    page = compile_page("x", by_hand(Draft.of(checkpoint({"t": ("U8", (1,))}))))
    assert (page.origins, page.maps, page.parts) == (None, (), None)
    assert "put together by hand" in html.render(page)


def test_the_command_repeats_the_merge(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.root)
    out = tmp_path / "out"
    math_, lang = (library.open_checkpoint(role, role=role) for role in ("math", "lang"))
    recipe = LayerSwap(bottom=1, top=1, transition=1)
    library.execute(library.lay_out(recipe.draft(math=math_, lang=lang), 1200), into=out)
    page = report.describe(out)
    assert page.command is not None
    assert main([*page.command.split()[1:], "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert library.read_manifest(tmp_path / "again").plan_digest == page.plan_sha256


@pytest.mark.parametrize(
    ("flags", "givers", "title"),
    [
        (["--method", "ties"], {"base and what was changed of it"}, "Who gives what"),
        (["--method", "task-arithmetic"], {"base and what was changed of it"}, "Who gives what"),
        (["--bottom", "1", "--revert-layers", "3"], {"lang", "math", "base"}, "Lang&#x27;s weight"),
        (["--method", "soup", "--ramp", "mav"], {"blend"}, "Lang&#x27;s weight"),
    ],
)
def test_other_methods(case: Case, tmp_path: Path, flags: list[str], givers: set[str], title: str) -> None:
    sources = [f"--{role}={case.root / role}" for role in ("math", "lang", "base")]
    assert main(["merge", *sources, *flags, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    page = report.describe(tmp_path / "out")
    assert page.origins is not None
    assert {giver for row in page.origins.giver for giver in row} == givers
    assert title in html.render(page)


def test_json_is_the_same_for_equal_pages_and_round_trips(case: Case) -> None:
    page = report.describe(case.out, changes=case.changes)
    text = json.dumps(page.to_json(), allow_nan=False)
    assert json.loads(text)["format"] == "lswap-report/1"
    assert json.loads(text)["maps"][0]["measures"]["mean_abs"] == [list(row) for row in page.maps[0].measures["mean_abs"]]
    assert text == json.dumps(report.describe(case.out, changes=case.changes).to_json())
    assert html.render(page) == html.render(report.describe(case.out, changes=case.changes))


def test_results_and_logs_beside_the_output(case: Case, tmp_path: Path) -> None:
    library.merge(LayerSwap(bottom=1), math=case.root / "math", lang=case.root / "lang", into=tmp_path / "out")
    (tmp_path / "out.sw.jsonl").write_text("{}\n")
    page = report.describe(tmp_path / "out")
    assert (page.evaluations, page.unscored) == ((), ("out.sw.jsonl",))
    assert "out.sw.jsonl</code>: not scored yet" in html.render(page)
    write(tmp_path / "out.eval.json", scores())
    write(tmp_path / "eval.json", comparison())
    page = report.describe(tmp_path / "out")
    assert [found.name for found in page.evaluations] == ["out.eval.json", "eval.json"]
    text = html.render(page)
    assert "<td>sw</td><td class=n>250</td><td class=n>25.0</td><td class=n>20.0 to 31.0</td>" in text
    assert "<td>soup</td><td class=n>50.0<small> 25.0 to 75.0</small></td>" in text
    named = report.describe(tmp_path / "out", evaluation=write(tmp_path / "else.json", scores()))
    assert [found.name for found in named.evaluations] == ["else.json"]
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(FormatError, match="no results"):
        report.describe(tmp_path / "out")


def test_changes_of_other_experts_are_refused(case: Case, tmp_path: Path) -> None:
    experts(tmp_path, count=5)
    opened = {role: library.open_checkpoint(tmp_path / role, role=role) for role in ("math", "lang")}
    other = write(tmp_path / "changes.json", library.analyze(**opened).to_json())
    with pytest.raises(RecipeError, match="not measured on the math that was merged"):
        report.describe(case.out, changes=other)


class Reader(HTMLParser):
    """What a browser would make elements of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    models = experts(tmp_path, matrix=f"{HOSTILE}.weight")
    names = [name for name in models["math"] if HOSTILE in name]
    assert len(names) == 6
    math_ = library.open_checkpoint(tmp_path / "math", role="math", name=HOSTILE)
    lang = library.open_checkpoint(tmp_path / "lang", role="lang", name="x\n\x1b[2J\u202e")
    out = tmp_path / "<i>out"
    library.execute(library.lay_out(LayerSwap(bottom=1, transition=1).draft(math=math_, lang=lang)), into=out)
    opened = {role: library.open_checkpoint(tmp_path / role, role=role) for role in ("math", "lang", "base")}
    changes = write(tmp_path / "changes.json", library.analyze(**opened).to_json())
    results = scores()
    results["rule"] = results["scores"][0]["language"] = HOSTILE
    page = report.describe(out, changes=changes, evaluation=write(tmp_path / "e.json", results))
    text = html.render(page)
    read = Reader(text)
    assert "img" not in {tag for tag, _ in read.elements}
    assert sum(tag == "script" for tag, _ in read.elements) == 3
    assert not [tag for tag, held in read.elements if any(name.startswith("on") for name in held)]
    assert "<i>out" in read.texts  # the heading
    assert HOSTILE in read.texts  # a source's name, as text
    assert not set(text[: text.index("/**")]) & {"\x1b", "\u202e"}
    drawn = json.loads(text.split('id="figures">')[1].split("</script>")[0])
    assert any("&lt;/script&gt;" in name for name in drawn["origins"]["matrices"])
    assert "<" not in json.dumps([drawing["matrices"] + drawing["labels"] for drawing in drawn.values()])


def test_the_page_loads_nothing(case: Case) -> None:
    text = html.render(report.describe(case.out, changes=case.changes))
    read = Reader(text)
    for _, held in read.elements:
        for attribute in ("src", "href", "srcset", "data", "poster", "action"):
            assert (held.get(attribute) or "data:").startswith("data:")
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in read.elements}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(held["content"] for tag, held in read.elements if held.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def large_manifest(count: int) -> tuple[Manifest, ChangeMaps]:
    """Of a model with Llama's nine matrices, with random figures in every digit."""
    rng = np.random.default_rng(3)
    matrices = [f"self_attn.{x}_proj.weight" for x in "qkvo"] + [f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
    matrices += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    shapes = {f"model.layers.{n}.{matrix}": ("BF16", (4, 4)) for n in range(count) for matrix in matrices}
    math_, lang, base = (checkpoint(shapes, role) for role in ("math", "lang", "base"))
    swap = LayerSwap(lang_layers=(), blend_layers=tuple(range(count)))

    def stats() -> DifferenceStats:
        return DifferenceStats(16, 15, *(float(figure) for figure in rng.random(6)))

    plan = lay_out(swap.draft(math=math_, lang=lang))
    manifest = compile_manifest(plan, [StepRecord(step.name, None, stats()) for step in plan.steps], tool="lswap_core test")
    tensors = {name: TensorChange(DTYPES["BF16"], (4, 4), Change(stats(), stats(), stats())) for name in shapes}
    return manifest, ChangeMaps(tuple(map(source_record, (math_, lang, base))), Stack("model.layers", count), tensors)


def test_a_page_of_the_largest_model_is_small_enough() -> None:
    manifest, changes = large_manifest(126)
    page = compile_page("405B", manifest, changes)
    assert [(len(one.layers), len(one.matrices)) for one in page.maps] == [(126, 9)] * 5
    assert len(html.render(page).encode()) < LARGEST


def test_what_is_too_large_for_a_picture_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {f"model.layers.{n}.m{k}.weight": ("BF16", (1,)) for n in range(2) for k in range(10_001)}
    page = compile_page("x", by_hand(Draft.of(checkpoint(shapes))))
    assert page.origins is not None
    assert page.origins.cells == 20_002
    text = html.render(page)
    assert "2 layers and 10001 matrices are too many for a picture" in text
    assert len(text.encode()) < LARGEST


def test_figures_that_are_not_finite_are_shown_as_what_they_are() -> None:
    math_, lang = checkpoint(llama(3)), checkpoint(llama(3), "lang")
    plan = lay_out(LayerSwap(bottom=1, transition=1).draft(math=math_, lang=lang))
    odd = {"attn.weight": math.inf, "mlp.weight": math.nan, "norm.weight": 1.0}
    records = [
        StepRecord(step.name, None, DifferenceStats(4, 4, odd[step.name.split(".", 3)[3]], x_squares=1.0))
        if step.name.startswith("model.layers.1.")
        else StepRecord(step.name, None)
        for step in plan.steps
    ]
    page = compile_page("x", compile_manifest(plan, records, tool="x"))
    (heat_map,) = page.maps
    row = dict(zip(heat_map.matrices, heat_map.measures["mean_abs"][0], strict=True))
    assert row == {"attn.weight": "inf", "mlp.weight": "nan", "norm.weight": 0.25}
    assert json.dumps(page.to_json(), allow_nan=False)
    assert len(html.render(page)) > 4_000_000


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_line(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "swap"
    library.merge(LayerSwap(bottom=1, top=1, transition=1), math=case.root / "math", lang=case.root / "lang", into=out)
    before = sorted(path.name for path in out.iterdir())
    status, said, err = run(capsys, "report", str(out))
    assert (status, err) == (0, "")
    assert f"{tmp_path / 'swap-report.html'}: 4.8 MB" in said
    first = (tmp_path / "swap-report.html").read_bytes()
    status, _, err = run(capsys, "report", str(out), "--changes", str(case.changes))
    assert status == 4
    assert "exists" in err
    assert "--html" in err
    assert (tmp_path / "swap-report.html").read_bytes() == first
    status, _, err = run(capsys, "report", str(out), "--html", str(out / "x.html"))
    assert status == 4
    assert "would be in" in err
    assert sorted(path.name for path in out.iterdir()) == before
    monkeypatch.chdir(out)  # its name is found from within, too
    (tmp_path / "swap-report.html").unlink()
    assert run(capsys, "report", ".", "--quiet") == (0, "", "")
    assert (tmp_path / "swap-report.html").read_bytes() == first
    status, said, _ = run(capsys, "report", str(out), "--changes", str(case.changes), "--json")
    assert json.loads(said) == json.loads(json.dumps(report.describe(out, changes=case.changes).to_json()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["swap", "swap-report.html"]
    assert run(capsys, "report", str(case.root / "math"))[0] == 1
    assert run(capsys, "report", str(out), "--changes", str(out / "config.json"), "--html", str(tmp_path / "y"))[0] == 3
    assert run(capsys, "report", str(out), "--json", "--html", str(tmp_path / "z.html"))[0] == 0
    assert (tmp_path / "z.html").read_bytes() == first


def test_without_plotly_there_is_json_alone(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    place = tmp_path / "x.html"
    status, _, err = run(capsys, "report", str(case.out), "--html", str(place))
    assert status == 4
    assert "lswap-core[report]" in err
    assert not place.exists()
    assert run(capsys, "report", str(case.out), "--json")[0] == 0


def test_half_a_page_is_none(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "render", lambda _: "\ud800")  # no text that could be written
    with pytest.raises(UnicodeEncodeError):
        report.write_page(report.describe(case.out), case.out, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
