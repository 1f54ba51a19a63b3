"""Turns a log into scores: a pure function of the outputs and the right answers, with the rules of several harnesses.

    lswap               `extract_answer`; of an output that was cut off, only an answer that is flagged
    lm-eval-strict      the language's sentence, first match, as in lm-evaluation-harness 0.4.13
    lm-eval-flexible    the last of its numbers
    simple-evals        the last number after the language's word for answer, as in OpenAI's simple-evals

The other harnesses' rules allow a comparison with published numbers, so their quirks are kept. lm-eval drops punctuation, so
1.8 and -18 pass for 18, and its Bengali sentence is the English one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lswap_core.errors import RecipeError
from lswap_eval.log import Header, Key, Record
from lswap_eval.mgsm.answers import extract_answer

RULES = ("lswap", "lm-eval-strict", "lm-eval-flexible", "simple-evals")
LM_EVAL_SENTENCES = {
    "bn": r"The answer is (\-?[0-9\.\,]+)",
    "de": r"Die Antwort lautet (\-?[0-9\.\,]+)",
    "en": r"The answer is (\-?[0-9\.\,]+)",
    "es": r"La respuesta es (\-?[0-9\.\,]+)",
    "fr": r"La réponse est (\-?[0-9\.\,]+)",
    "ja": r"答えは(\-?[0-9\.\,]+)です。",
    "ru": r"Ответ — (\-?[0-9\.\,]+)",
    "sw": r"Jibu ni (\-?[0-9\.\,]+)",
    "te": r"సమాధానం (\-?[0-9\.\,]+)",
    "th": r"คำตอบคือ (\-?[0-9\.\,]+)",
    "zh": r"答案是 (\-?[0-9\.\,]+)。",
}
LM_EVAL_NUMBERS = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
_SIMPLE_EVALS_WORDS = {
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
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one generation. value: the answer under the rule, as text, or None."""

    key: Key
    correct: bool
    value: str | None
    found_by: str
    cut_off: bool

    @property
    def category(self) -> str:
        """One of "correct", "wrong", "unparsable" and "truncated" (cut off at the limit of tokens before the answer)."""
        if self.correct:
            return "correct"
        if self.cut_off:
            return "truncated"
        return "unparsable" if self.value is None else "wrong"


def score_log(
    header: Header, records: Sequence[Record], rule: str = "lswap", golds: Mapping[str, Sequence[int]] | None = None
) -> dict[Key, Score]:
    """Score a log. Returns scores by key, in the order of the log. golds: language -> right answers; by default the header's.

    Raises RecipeError for an unknown rule, without golds, and for a record without a gold.
    """
    if rule not in RULES:
        raise RecipeError(f"rule {rule!r} is not known; known are {', '.join(RULES)}")
    golds = header.golds if golds is None else golds
    if golds is None:
        raise RecipeError("the log does not hold the right answers; name the data it was made from with --data")
    style = str(header.settings.get("prompt", "native_cot"))
    scores = {}
    for record in records:
        right = golds.get(record.language, ())
        if record.problem >= len(right):
            raise RecipeError(
                f"there is no right answer to problem {record.problem} in language {record.language!r}; is --data another set?"
            )
        scores[record.key] = _score(record, right[record.problem], rule, style)
    return scores


def _score(record: Record, gold: int, rule: str, style: str) -> Score:
    cut_off = record.finish_reason == "length"
    if rule == "lswap":
        answer = extract_answer(record.output, record.language)
        if answer.value is None or (cut_off and not answer.flagged):
            return Score(record.key, False, None, answer.rule, cut_off)
        return Score(record.key, answer.value == gold, str(answer.value), answer.rule, cut_off)
    if rule == "simple-evals":
        value = simple_evals_answer(record.output, record.language)
        correct = str(gold) == (value.rstrip("0").rstrip(".") if "." in value else value)
        return Score(record.key, correct, value or None, rule, cut_off)
    flexible = rule == "lm-eval-flexible"
    taken = lm_eval_flexible(record.output) if flexible else lm_eval_strict(record.output, record.language, style)
    correct = taken is not None and taken.lower().translate(_NO_PUNCTUATION) == str(gold)
    return Score(record.key, correct, taken or None, rule, cut_off)


def lm_eval_strict(output: str, language: str, style: str) -> str | None:
    """The match of lm-eval's strict filter: of worked solutions the sentence, of direct answers everything."""
    if style == "direct":
        return output.strip()
    match = re.search(LM_EVAL_SENTENCES["en" if style == "en_cot" else language], output)
    return match[1] if match else None


def lm_eval_flexible(output: str) -> str | None:
    """The match of lm-eval's flexible filter: the last of its numbers, which may have dollar signs and points."""
    matches = re.findall(LM_EVAL_NUMBERS, output)
    return (matches[-1][0] or matches[-1][1]) if matches else None


def simple_evals_answer(output: str, language: str) -> str:
    """The match of simple-evals: the last number after the last of the language's words for answer; "" without one."""
    _, word, behind = output.rpartition(_SIMPLE_EVALS_WORDS[language])
    numbers = re.findall(r"\d+\.?\d*", behind.replace(",", "")) if word else []
    return str(numbers[-1]).rstrip(".") if numbers else ""
