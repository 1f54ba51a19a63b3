"""Plain English: no odd phrases, no endless sentences, in docstrings and papers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

ODD = (
    r"held against", r"holds? (?:\w+ ){1,4}against", r"\btells? of\b", r"\blies?\b", r"\bhangs? on\b", r"\bwho gives\b",
    r"\banew\b", r"\bown accord\b", r"\bby turns\b", r"\bas it is asked\b", r"\bthere is none\b", r"\bfurther ado\b",
    r"\bWhose the\b", r"\bas far as they\b", r"\bthat parts agree on\b", r"\bin the midst\b",
)  # fmt: skip
"""Phrases that a reader stumbles over, as regular expressions."""

MOST_WORDS = 40
"""In a sentence of a docstring."""

MOST_LINES = 20
"""In a module's docstring."""

MODULES = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("lswap_core", "eval/lswap_eval") for path in (ROOT / folder).rglob("*.py")
)

PAPERS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "eval" / "README.md")
)


def docstrings(module: str) -> Iterator[tuple[str, int, str]]:
    """Kind, line and text of every docstring, those of attributes included."""
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else []:
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant) and isinstance(child.value.value, str):
                yield type(node).__name__, child.lineno, child.value.value


def prose(text: str) -> str:
    """`text` without code: doctests, indented and fenced blocks, and what is quoted as code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    paragraphs = (paragraph for paragraph in text.split("\n\n") if not paragraph.lstrip().startswith(">>>"))
    return re.sub(r"`[^`\n]*`", "code", "\n\n".join(paragraphs))


def sentences(text: str) -> list[str]:
    """Sentences of a docstring. A paragraph, an item of a list and a line of a table each end one."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n\s*- |\n\s{8,}|(?m:^ {4}\S+ {2,})", prose(text)):
        parts += re.split(r"(?<=[.:;?!])\s+", " ".join(paragraph.split()))
    return parts


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_are_read_once(module: str) -> None:
    for kind, line, text in docstrings(module):
        for phrase in ODD:
            odd = re.search(phrase, prose(text), re.I)
            assert odd is None, f"{module}:{line}: {odd and odd[0]!r}"
        for sentence in sentences(text):
            assert len(sentence.split()) <= MOST_WORDS, f"{module}:{line}: {sentence}"
        assert kind != "Module" or line > 1 or len(text.strip().splitlines()) <= MOST_LINES, f"{module}: its docstring is long"


@pytest.mark.parametrize("paper", PAPERS)
def test_papers_have_no_odd_phrases(paper: str) -> None:
    for line in prose((ROOT / paper).read_text()).splitlines():
        for phrase in ODD:
            odd = re.search(phrase, line, re.I)
            assert odd is None, f"{paper}: {odd and odd[0]!r} in {line!r}"


def test_the_rules_are_tested() -> None:
    assert sentences("One. Two: three\n\n- four\n- five") == ["One.", "Two:", "three", "- four", "five"]
    assert [phrase for phrase in ODD if re.search(phrase, "The bytes lie there, held against a digest", re.I)] == [ODD[0], ODD[3]]
    assert len(MODULES) > 100
