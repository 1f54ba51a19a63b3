"""MGSM's problems and worked exemplars, from a directory: values, and their digest.

A data directory holds `mgsm_<language>.tsv` (question, tab, answer; one problem a line) and `exemplars.json` (language ->
worked exemplars with question, answer and answer_number, cues included). Texts are kept to the character: prompts are
built from them unnormalised. Problems are numbered from 0; number n is the same problem in every language.
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
from lswap_core.strict_json import Node, parse_object

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")

EXEMPLARS_FILE = "exemplars.json"

_GOLD = re.compile(r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its question without a cue, and the whole number that answers it."""

    language: str
    number: int
    question: str
    gold: int


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A worked example: question and solution, each with its cue, as they stand in the data."""

    question: str
    solution: str
    gold: int


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """All that a data directory holds, for every language that it has."""

    problems: Mapping[str, tuple[Problem, ...]]
    exemplars: Mapping[str, tuple[Exemplar, ...]]

    @property
    def sha256(self) -> str:
        """Digest of the texts and golds, whatever files they came from."""
        value = [
            [(p.language, p.number, p.question, p.gold) for each in sorted(self.problems) for p in self.problems[each]],
            [(each, e.question, e.solution, e.gold) for each in sorted(self.exemplars) for e in self.exemplars[each]],
        ]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()

    def golds(self) -> dict[str, list[int]]:
        """The right answers of every language, by problem number: what a log's header keeps for scoring."""
        return {language: [problem.gold for problem in problems] for language, problems in self.problems.items()}

    def choose(self, languages: Sequence[str], limit: int | None = None, half: str | None = None) -> list[Problem]:
        """Problems to ask: language by language, in order of number.

        `limit`: so many problems of each language, the same numbers in every one (`fixed_numbers`). `half`: "dev" or "test"
        (`half_of`); of the limited ones. RecipeError: a language that is not there, a limit below 1.
        """
        chosen = []
        for language in check_languages(languages, self.problems):
            problems = self.problems[language]
            numbers = set(fixed_numbers(len(problems), limit))
            chosen += [p for p in problems if p.number in numbers and half in (None, half_of(p.number))]
        return chosen


def check_languages(languages: Sequence[str], there: Mapping[str, Any]) -> tuple[str, ...]:
    """`languages`, each once. RecipeError: none, an unknown one, one twice, one without problems."""
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
    """The first `limit` of 0..count-1 in a fixed shuffled order, sorted: shorter lists are part of longer ones, and as
    many are of the dev half as of the test half, but for one. RecipeError: a limit below 1.
    """
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise RecipeError(f"a limit of {limit} problems asks nothing; it must be at least 1")
    pairs = sorted(range((count + 1) // 2), key=lambda pair: _digest(f"order/{pair}"))
    numbers = [number for pair in pairs for number in (2 * pair, 2 * pair + 1) if number < count]
    return sorted(numbers[:limit])


def half_of(number: int) -> str:
    """The half that a problem belongs to, "dev" or "test", in every language. Of 2n and 2n+1, a coin sends one to each."""
    return "dev" if (number + _digest(f"half/{number // 2}")[0]) % 2 else "test"


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"lswap_eval/1/{text}".encode()).digest()


def read_problems(directory: str | os.PathLike[str]) -> ProblemSet:
    """Everything in a data directory. RecipeError: it is none. FormatError: a file in it is not as it should be."""
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
        lines = path.read_bytes().decode().split("\n")  # by newlines alone: questions may hold what splitlines() splits at
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
