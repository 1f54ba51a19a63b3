"""Builds prompts from the exemplars, character by character.

Cues are not listed here: every exemplar of a language begins with them (`Swali:`, `Question :`; in ja and zh with a
full-width colon). What follows the colon there, a space or nothing, follows it in every prompt. A completion prompt has
exemplars and problem, separated by an empty line, and ends with the cue of the answer.

    native_cot   worked solutions in the problem's language
    en_cot       the problem's language, worked solutions in English
    direct       the answer alone
    chat         turns for a model's own template: a question with the cue of a worked solution, and the solution
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from lswap_core.errors import FormatError, RecipeError
from lswap_eval.mgsm.problems import EXEMPLARS_FILE, Exemplar, Problem, ProblemSet, check_languages

STYLES = ("native_cot", "en_cot", "direct", "chat")
MAX_EXEMPLARS = 8
Message = dict[str, str]
_CUE = re.compile(r"[^:：\n]+[:：] ?")
# A direct answer has no exemplar to take its cue from. The word is that with which the exemplars state results;
# the colon is that of the language's other cues.
_ANSWER_WORDS = {
    "bn": "উত্তর",
    "de": "Antwort",
    "en": "Answer",
    "es": "Respuesta",
    "fr": "Réponse",
    "ja": "答え",
    "ru": "Ответ",
    "sw": "Jibu",
    "te": "సమాధానం",
    "th": "คำตอบ",
    "zh": "答案",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to complete, or messages (role and content) to answer; the other is None."""

    text: str | None
    messages: tuple[Message, ...] | None

    @property
    def sha256(self) -> str:
        """SHA-256 of the text as UTF-8, or of the messages as compact JSON, as hex."""
        text = self.text if self.text is not None else json.dumps(self.messages, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Cues:
    """What precedes questions and solutions of a language, with the space after the colon where there is one."""

    question: str
    solution: str


def find_cues(data: ProblemSet, language: str) -> Cues:
    """Find the cues that begin every exemplar of a language. Raises FormatError where there are none, or they differ."""
    exemplars = data.exemplars.get(language, ())
    parts = []
    for part, texts in (("question", [e.question for e in exemplars]), ("answer", [e.solution for e in exemplars])):
        cue = _CUE.match(texts[0]) if texts else None
        if cue is None or not all(text.startswith(cue[0]) for text in texts):
            raise FormatError(
                f"{language}: expected exemplars whose {part}s all begin with one cue and a colon", path=EXEMPLARS_FILE
            )
        parts.append(cue[0])
    return Cues(*parts)


def build_prompt(data: ProblemSet, problem: Problem, style: str, exemplars: int = MAX_EXEMPLARS) -> Prompt:
    """Build the prompt for `problem`, after the first `exemplars` (0 to 8) worked examples, in the order of the data.

    Raises RecipeError for an unknown style, and for more exemplars than there are.
    """
    check_prompts(data, style, exemplars, problem.language)
    cues = find_cues(data, problem.language)
    ahead = "en" if style == "en_cot" else problem.language
    question = cues.question + problem.question
    shown = list(zip(data.exemplars[problem.language][:exemplars], data.exemplars[ahead][:exemplars], strict=True))
    if style == "chat":
        turns = []
        for exemplar, _ in shown:
            turns += [_turn("user", f"{exemplar.question}\n{cues.solution.rstrip(' ')}")]
            turns += [_turn("assistant", exemplar.solution.removeprefix(cues.solution))]
        return Prompt(None, (*turns, _turn("user", f"{question}\n{cues.solution.rstrip(' ')}")))
    cue = _direct_cue(problem.language, cues) if style == "direct" else find_cues(data, ahead).solution
    blocks = [f"{exemplar.question}\n{_solve(solved, style, cue)}" for exemplar, solved in shown]
    return Prompt("\n\n".join([*blocks, f"{question}\n{cue.rstrip(' ')}"]), None)


def check_prompts(data: ProblemSet, style: str, exemplars: int, *languages: str) -> None:
    """Raises RecipeError unless such prompts can be built in these languages."""
    check_languages(languages, data.problems)
    if style not in STYLES:
        raise RecipeError(f"prompt {style!r} is not known; known are {', '.join(STYLES)}")
    needed = {*languages, "en"} if style == "en_cot" else {*languages}
    there = min(len(data.exemplars.get(language, ())) for language in needed)
    if not 0 <= exemplars <= min(MAX_EXEMPLARS, there):
        raise RecipeError(f"{exemplars} exemplars are not to be had; expected 0 to {min(MAX_EXEMPLARS, there)}")


def stop_strings(data: ProblemSet, language: str, style: str) -> tuple[str, ...]:
    """Strings that end a completion: the cue of the next question. A direct answer also ends with its paragraph; a chat model
    ends by itself.
    """
    if style == "chat":
        return ()
    question = "\n" + find_cues(data, language).question.rstrip(" ")
    return (question, "\n\n") if style == "direct" else (question,)


def _solve(exemplar: Exemplar, style: str, cue: str) -> str:
    return f"{cue}{exemplar.gold}" if style == "direct" else exemplar.solution


def _direct_cue(language: str, cues: Cues) -> str:
    colon = re.search(r"[ \u00a0\u202f]?[:：] ?$", cues.question)
    assert colon is not None, "a cue ends with its colon"
    return _ANSWER_WORDS[language] + colon[0]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
