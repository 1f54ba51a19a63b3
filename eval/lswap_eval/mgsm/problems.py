"""MGSM's problems and worked exemplars, read from a directory: values, and their digest.

A data directory holds `mgsm_<language>.tsv` (question, tab, answer; one problem per line) and `exemplars.json` (language ->
worked exemplars with question, answer and answer_number, cues included). Prompts use the exact texts, without normalisation.
Problems are numbered from 0; number n is the same problem in every language.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lswap_core.errors import FormatError, RecipeError
from lswap_core.text.strict_json import Node, parse_object

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")

EXEMPLARS_FILE = "exemplars.json"

_GOLD = re.compile(r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its question without a cue, and its answer, a whole number."""

    language: str
    number: int
    question: str
    gold: int


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A worked example: question and solution, each with its cue, exactly as in the data."""

    question: str
    solution: str
    gold: int


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The content of a data directory, for every language in it."""

    problems: Mapping[str, tuple[Problem, ...]]
    exemplars: Mapping[str, tuple[Exemplar, ...]]

    @property
    def sha256(self) -> str:
        """SHA-256 of the texts and golds, independent of the files that held them."""
        value = [
            [(p.language, p.number, p.question, p.gold) for each in sorted(self.problems) for p in self.problems[each]],
            [(each, e.question, e.solution, e.gold) for each in sorted(self.exemplars) for e in self.exemplars[each]],
        ]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()

    def golds(self) -> dict[str, list[int]]:
        """The right answers of every language, by problem number. A log's header keeps them for scoring."""
        return {language: [problem.gold for problem in problems] for language, problems in self.problems.items()}

    def choose(self, languages: Sequence[str], limit: int | None = None, half: str | None = None) -> list[Problem]:
        """Choose problems to ask: language by language, in order of number.

        limit: this many problems of each language, with the same numbers in every language (`fixed_numbers`). half: "dev" or
        "test" (`half_of`); applied to the limited problems. Raises RecipeError for an unknown language and a limit below 1.
        """
        chosen = []
        for language in check_languages(languages, self.problems):
            problems = self.problems[language]
            numbers = set(fixed_numbers(len(problems), limit))
            chosen += [p for p in problems if p.number in numbers and half in (None, half_of(p.number))]
        return chosen


def check_languages(languages: Sequence[str], there: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `languages`. Raises RecipeError where there are none, or one is unknown, repeated, or without problems."""
    known = f"known are {', '.join(LANGUAGES)}"
    if not languages:
        raise RecipeError(f"no language is named; {known}")
    for language in languages:
        if language not in LANGUAGES:
            raise RecipeError(f"language {language!r} is not known; {known}")
        if language not in there:
            raise RecipeError(
                f"there are no problems in language {language!r}; the data have {', '.join(sorted(there)) or 'none'}"
            )
    if len(set(languages)) < len(languages):
        raise RecipeError(f"a language is named twice in {','.join(languages)}")
    return tuple(languages)


def fixed_numbers(count: int, limit: int | None = None) -> list[int]:
    """The first `limit` of 0..count-1 in a fixed shuffled order, sorted. Raises RecipeError for a limit below 1.

    Shorter lists are part of longer ones, and the numbers from the dev and the test half differ by at most one.
    """
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise RecipeError(f"a limit of {limit} problems asks nothing; it must be at least 1")
    pairs = sorted(range((count + 1) // 2), key=lambda pair: _digest(f"order/{pair}"))
    numbers = [number for pair in pairs for number in (2 * pair, 2 * pair + 1) if number < count]
    return sorted(numbers[:limit])


def half_of(number: int) -> str:
    """The half that a problem belongs to in every language, "dev" or "test". A hash gives one of 2n and 2n+1 to each."""
    return "dev" if (number + _digest(f"half/{number // 2}")[0]) % 2 else "test"


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"lswap_eval/1/{text}".encode()).digest()


def read_problems(directory: str | os.PathLike[str]) -> ProblemSet:
    """Read a data directory. Raises RecipeError where it is none, and FormatError for a malformed file."""
    folder = Path(directory)
    if not folder.is_dir():
        raise RecipeError(f"{folder} is not a directory; expected one with mgsm_<language>.tsv files and {EXEMPLARS_FILE}")
    files = {language: folder / f"mgsm_{language}.tsv" for language in LANGUAGES}
    there = {language: path for language, path in files.items() if path.exists()}
    if not there or not (folder / EXEMPLARS_FILE).exists():
        missing = "mgsm_<language>.tsv files" if not there else EXEMPLARS_FILE
        raise RecipeError(f"{folder} is no MGSM data directory: it has no {missing}; --data hub downloads the data")
    exemplars = _parse_exemplars((folder / EXEMPLARS_FILE).read_bytes(), str(folder / EXEMPLARS_FILE))
    return ProblemSet({language: _parse_problems(path, language) for language, path in there.items()}, exemplars)


def _parse_problems(path: Path, language: str) -> tuple[Problem, ...]:
    try:
        lines = path.read_bytes().decode().split("\n")  # not splitlines(): questions may hold other separators
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 at byte {error.start}", path=str(path)) from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise FormatError("there are no problems in it", path=str(path))
    problems = []
    for number, line in enumerate(lines):
        question, tab, answer = line.partition("\t")
        if not question or not tab or not _GOLD.fullmatch(answer):
            raise FormatError(
                f"line {number + 1}: expected a question, a tab and a whole number, found {line!r:.60}", path=str(path)
            )
        problems.append(Problem(language, number, question, int(answer.replace(",", ""))))
    return tuple(problems)


def _parse_exemplars(raw: bytes, path: str) -> dict[str, tuple[Exemplar, ...]]:
    return {
        language: tuple(_parse_exemplar(item) for item in items.elements())
        for language, items in Node(parse_object(raw, path=path), path=path).items()
        if language in LANGUAGES
    }


def _parse_exemplar(node: Node) -> Exemplar:
    return Exemplar(node["question"].text(), node["answer"].text(), node["answer_number"].integer())
