"""The report as a reader sees it: opened from disk in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lswap_core.report import html
from lswap_core.report.page import compile_page
from lswap_core.verbs.report import describe, write_page
from tests.report.test_evaluations import comparison, scores, write
from tests.report.test_page import HOSTILE, Case, large_manifest, make_case

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive a browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to open the report in")
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
SHOTS = os.environ.get("LSWAP_SCREENSHOTS")
"""A directory to leave the screenshots in, to look at them."""
Z = "id => document.getElementById(id).data[0].z.map(row => Array.from(row))"
PLACE = """([id, row, column]) => {
  const plot = document.getElementById(id);
  plot.scrollIntoView({block: "center"});
  const {xaxis, yaxis} = plot._fullLayout;
  const box = plot.getBoundingClientRect();
  return [box.left + xaxis._offset + xaxis.l2p(column), box.top + yaxis._offset + yaxis.l2p(row)];
}"""


@dataclass
class Opened:
    """A page in the browser, and all that it complained of, asked for or popped up."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # a container has neither the privileges for the sandbox nor much shared memory
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def show(browser: Any) -> Iterator[Any]:
    contexts = []

    def opened(path: Path, width: int = 1280, scheme: str = "light") -> Opened:
        for context in contexts:
            context.close()
        contexts[:] = [browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)]
        found = Opened(contexts[0].new_page())
        found.page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("dialog", lambda dialog: (found.dialogs.append(dialog.message), dialog.dismiss()))
        found.page.goto(path.as_uri())
        found.page.wait_for_selector("html[data-drawn=yes]")
        return found

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("browser"), count=12)


@pytest.fixture(scope="module")
def report(case: Case) -> Path:
    """The page with everything that there can be on one."""
    write(case.root / "swap.eval.json", scores())
    write(case.root / "eval.json", comparison())
    return write_page(describe(case.out, changes=case.changes), case.out)


@pytest.fixture(scope="module")
def opened(show: Any, report: Path) -> Any:
    """One page for several looks at it; no other is opened between them."""
    return show(report).page


def drawable(rows: Any) -> list[list[float | None]]:
    return [[cell if isinstance(cell, float) else None for cell in row] for row in rows]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_opens_without_complaint_at_any_width(show: Any, report: Path, width: int, scheme: str, tmp_path: Path) -> None:
    opened = show(report, width, scheme)
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    plots = page.evaluate(
        "Array.from(document.querySelectorAll('.plot'), plot => [plot.id, plot.querySelectorAll('.hm image').length])"
    )
    assert plots == [[name, 1] for name in ("origins", "map-math", "map-lang", "map-agreement", "map-balance", "map-difference")]
    sticking_out = "Array.from(document.querySelectorAll('.plot .xtick text, .plot .ytick text'), text => [text, text.getBoundingClientRect(), text.closest('.plot').getBoundingClientRect()]).filter(([, a, b]) => a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1).map(([text]) => text.textContent)"
    assert page.evaluate(sticking_out) == []
    shot = (Path(SHOTS) if SHOTS else tmp_path) / f"report-{width}-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    assert struct.unpack(">I", shot.read_bytes()[16:20]) == (width,)


def test_cells_carry_the_values_of_the_json(opened: Any, case: Case) -> None:
    maps = json.loads(json.dumps(describe(case.out, changes=case.changes).to_json()))["maps"]
    page = opened
    for heat_map in maps:
        for measure, rows in heat_map["measures"].items():
            if len(heat_map["measures"]) > 1:
                page.select_option("#measure", measure)
            assert page.evaluate(Z, f"map-{heat_map['key']}") == drawable(rows)


def test_hovering_shows_place_and_values(opened: Any, case: Case) -> None:
    described = describe(case.out, changes=case.changes)
    page = opened
    for heat_map in described.maps:
        row, column = 7, heat_map.matrices.index("mlp.experts.*.w.weight")
        page.mouse.move(*page.evaluate(PLACE, [f"map-{heat_map.key}", row, column]))
        hover = page.locator(f"#map-{heat_map.key} .hoverlayer .hovertext")
        hover.wait_for()
        lines = hover.locator("tspan.line").all_text_contents()
        assert lines[:2] == ["layer 7", "mlp.experts.*.w.weight"]
        said = [float(line.rpartition(": ")[2]) for line in lines[2:]]
        assert said == pytest.approx([rows[row][column] for rows in heat_map.measures.values()], rel=1e-5)
        page.mouse.move(0, 0)
    page.mouse.move(*page.evaluate(PLACE, ["origins", 1, 0]))
    lines = page.locator("#origins .hoverlayer .hovertext tspan.line").all_text_contents()
    assert lines[0] == "layer 1"
    assert lines[2:] == ["from blend", "lang's weight: 0.5"]


def test_colours_grow_with_the_values(opened: Any, case: Case) -> None:
    """Darkness, as painted, is in the order of the figures: the picture itself is right, not only its data."""
    heat_map = next(one for one in describe(case.out, changes=case.changes).maps if one.key == "lang")
    page = opened
    page.select_option("#measure", "mean_abs")
    image = "document.querySelector('#map-lang .hm image').getAttribute('href')"
    painted = page.evaluate(
        f"""async ([rows, columns]) => {{
          const image = new Image();
          image.src = {image};
          await image.decode();
          const canvas = document.createElement("canvas");
          canvas.width = image.width; canvas.height = image.height;
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const at = (row, column) => context.getImageData(
            Math.floor((column + 0.5) * image.width / columns), Math.floor((rows - row - 0.5) * image.height / rows), 1, 1).data;
          return Array.from({{length: rows}}, (_, r) => Array.from({{length: columns}}, (_, c) => Array.from(at(r, c))));
        }}""",
        [len(heat_map.layers), len(heat_map.matrices)],
    )
    cells = [
        (value, sum(painted[r][c][:3]))
        for r, row in enumerate(heat_map.measures["mean_abs"])
        for c, value in enumerate(row)
        if isinstance(value, float)
    ]
    ordered = [brightness for _, brightness in sorted(cells)]
    assert len(cells) == 36
    assert all(low <= high + 3 for high, low in pairwise(ordered))
    assert ordered[0] > ordered[-1] + 50


def test_plots_follow_the_colour_scheme_and_the_width(show: Any, report: Path) -> None:
    page = show(report, 1280, "light").page
    colours = "(plot => [JSON.stringify(plot.data[0].colorscale), plot.layout.font.color])(document.getElementById('map-lang'))"
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => ({colours})[1] !== before", arg=light[1])
    assert page.evaluate(colours)[0] != light[0]
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.getElementById('map-lang')._fullLayout.width < 390")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_hostile_names_do_nothing(show: Any, tmp_path: Path) -> None:
    case = make_case(tmp_path, matrix=f"{HOSTILE}.weight")
    results = scores()
    results["rule"] = results["scores"][0]["language"] = HOSTILE
    page = describe(case.out, changes=case.changes, evaluation=write(tmp_path / "e.json", results))
    opened = show(write_page(page, case.out, tmp_path / "x.html"))
    assert (opened.complaints, opened.dialogs, len(opened.requests)) == ([], [], 1)
    column = page.maps[0].matrices.index(f"{HOSTILE}.weight")
    opened.page.mouse.move(*opened.page.evaluate(PLACE, ["map-math", 0, column]))
    shown = opened.page.locator("#map-math .hoverlayer .hovertext tspan.line").all_text_contents()
    assert shown[1] == f"{HOSTILE}.weight"
    assert opened.page.evaluate("document.querySelectorAll('img, .plot b, .plot a').length") == 0


def test_the_policy_stops_what_slips_through(show: Any, report: Path) -> None:
    opened = show(report)
    opened.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.slipped = 1";
          document.body.append(script);
          const holder = document.createElement("div");
          holder.innerHTML = "<img src='data:,x' onerror='window.slipped = 2'><img src='https://example.org/x'>";
          document.body.append(holder);
        }"""
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.slipped") is None
    assert opened.page.evaluate("performance.getEntriesByType('resource').filter(e => e.transferSize > 0).length") == 0
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_a_model_of_126_layers_can_be_read(show: Any, tmp_path: Path) -> None:
    manifest, changes = large_manifest(126)
    place = tmp_path / "large.html"
    place.write_text(html.render(compile_page("large", manifest, changes)))
    opened = show(place)
    overlapping = """kind => Array.from(document.querySelectorAll('.plot')).flatMap(plot => {
      const boxes = Array.from(plot.querySelectorAll(`.${kind} text`), text => text.getBoundingClientRect());
      const begin = kind === 'xtick' ? 'left' : 'top', end = kind === 'xtick' ? 'right' : 'bottom';
      boxes.sort((a, b) => a[begin] - b[begin]);
      return boxes.slice(1).filter((box, at) => box[begin] < boxes[at][end] - 1);
    }).length"""
    for width in WIDTHS:
        opened.page.set_viewport_size({"width": width, "height": 844})
        opened.page.wait_for_function("w => document.getElementById('map-lang')._fullLayout.width < w", arg=min(width, 640))
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        assert [opened.page.evaluate(overlapping, kind) for kind in ("xtick", "ytick")] == [0, 0]
        if SHOTS:
            opened.page.screenshot(path=Path(SHOTS) / f"large-{width}.png", full_page=True)
    assert opened.complaints == []
