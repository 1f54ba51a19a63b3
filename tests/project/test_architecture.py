"""The papers name files, functions and rows: each of them must exist, and the picture must be the contract."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent.parent
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PAPERS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROW = re.compile(r"^\| (.*?) \| `([^`]+\.py)` \| `([\w.]+)` \|$", re.M)
PLACES = [(file, name) for _, file, name in ROW.findall(ARCHITECTURE)]
SVG = "{http://www.w3.org/2000/svg}"


def chapter(number: int) -> str:
    return ARCHITECTURE.split(f"\n## {number}. ")[1].split("\n## ")[0]


@cache
def defined(path: Path) -> frozenset[str]:
    """Functions and classes of a file, those in classes as `Class.method`; conditional ones too."""
    names: set[str] = set()

    def visit(node: ast.AST, above: str) -> None:
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(above + inner.name)
            if isinstance(inner, ast.ClassDef):
                visit(inner, f"{above}{inner.name}.")
            elif isinstance(inner, ast.If | ast.Try):
                visit(inner, above)

    visit(ast.parse(path.read_text()), "")
    return frozenset(names)


@pytest.mark.parametrize(("file", "name"), sorted(set(PLACES)))
def test_every_place_in_a_table_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file(), f"{file} is named in ARCHITECTURE.md and does not exist"
    assert name in defined(ROOT / file), f"{file} defines no {name}"


def test_there_are_twenty_questions_and_each_has_one_answer() -> None:
    questions = [question for question, _, _ in ROW.findall(chapter(4))]
    assert len(questions) >= 20
    assert len(set(questions)) == len(questions)
    assert all(question.endswith("?") for question in questions)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.relative_to(ROOT).as_posix())
def test_every_path_in_the_papers_exists(paper: Path) -> None:
    named = re.findall(r"`((?:lswap_core|lswap_eval|eval|tests|benchmarks|csrc|docs)/[\w./-]*)`", paper.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.relative_to(ROOT).as_posix())
def test_every_link_between_the_papers_leads_somewhere(paper: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", paper.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (paper.parent / file).resolve() if file else paper
        assert there.exists(), f"{paper.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{paper.name}: {target}"


def contract() -> list[set[str]]:
    """The rows of lswap_core in the import contract, the highest first."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in tool["contracts"] if c["type"] == "layers" and c["containers"] == ["lswap_core"]]
    return [set(re.split(r"\s*[|:]\s*", layer)) for layer in layers]


def test_the_picture_is_the_contract() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "architecture.svg")
    groups = [[t.text or "" for t in g.iter(f"{SVG}text") if t.get("class") == "name"] for g in picture.iter(f"{SVG}g")]
    assert [set(names) for names in groups if names] == contract()


def test_the_first_chapter_lists_every_wing_from_the_top() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", chapter(1), re.M)
    rows = contract()
    assert set(listed) == set().union(*rows[:-1])
    assert sorted(listed, key=lambda wing: next(n for n, row in enumerate(rows) if wing in row)) == listed
    wings = {path.name for path in (ROOT / "lswap_core").iterdir() if path.is_dir() and any(path.glob("**/*.py"))}
    assert wings == (set(listed) | {"text"}) - {"torch"}


def test_decisions_are_indexed_and_have_their_headings() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [path.name for path in pages] == re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index)
    for number, path in enumerate(pages, 1):
        text = path.read_text()
        title = text.splitlines()[0]
        assert path.name.startswith(f"{number:04d}-")
        assert title.startswith(f"# {number}. ")
        assert title.removeprefix("# ") in index
        assert re.search(r"^Date: \d{4}-\d\d-\d\d", text, re.M), path.name
        for heading in ("Context", "Decision", "Consequences"):
            assert f"\n## {heading}\n" in text, f"{path.name}: {heading}"
