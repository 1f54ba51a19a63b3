"""Reads the answer from a model's output, and reports which rule read it.

A flagged answer comes first: in a box, after #### or in a language's sentence for a result. Of several the last counts.
Without a flag, the last number counts. Number words do not count; an output without digits has no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from lswap_eval.mgsm.numbers import Number, find_numbers, make_plain

RULES = ("box", "hashes", "sentence", "label", "last_number", "none")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer, or None, and the rule of `RULES` that read it."""

    value: Fraction | None
    rule: str

    @property
    def flagged(self) -> bool:
        """Whether the output marks this as its answer."""
        return self.rule not in ("last_number", "none")


# A sentence that states the result: the words before the number. Other words may follow it.
_SENTENCES = {
    "en": r"\banswer\b(?: \S+){0,4}? (?:is|was|equals|would be|should be|comes to|=)(?![^\W\d_])",
    "bn": r"উত্তর(?:টি|টা)?\s*(?:হল|হলো|হবে|হচ্ছে|হয়|=)",
    "de": r"\b(?:antwort|ergebnis|lösung)\b(?: \S+){0,3}? (?:ist|lautet|beträgt|wäre|=)(?![^\W\d_])",
    "es": r"\b(?:respuesta|resultado)\b(?: \S+){0,3}? (?:es|sería|será|=)(?![^\W\d_])",
    "fr": r"\b(?:réponse|résultat)\b(?: \S+){0,3}? (?:est|serait|sera|=)(?![^\W\d_])",
    "ja": r"(?:答え|答|回答|解答|正解)は",
    "ru": r"\bответ(?:ом)?\b(?: \S+){0,2}?(?:\s*—|\s+[-–](?=\s)| равен| равна| равно| является| составляет| будет|\s*=)",
    "sw": r"\bjibu\b(?: \S+){0,3}? (?:ni|litakuwa|=)(?![^\W\d_])",
    "te": r"సమాధానం(?=\s*[-–$₹*\\(\[{]*\s*\d)|సమాధానం\s*=",
    "th": r"คำตอบ(?:สุดท้าย|ที่ถูกต้อง)?\s*(?:คือ|เท่ากับ|เป็น|=)",
    "zh": r"(?:答案|结果|結果)\s*(?:就)?(?:是|为|為|等于|=)",
}
# A word and a colon. Cues of a worked solution look the same, so the number must follow directly and alone.
_LABELS = {
    "en": "answer",
    "bn": "উত্তর",
    "de": "antwort|ergebnis|lösung",
    "es": "respuesta|resultado",
    "fr": "réponse|résultat",
    "ja": "答え?|回答|解答|正解",
    "ru": "ответ",
    "sw": "jibu",
    "te": "సమాధానం",
    "th": "คำตอบ(?:สุดท้าย)?",
    "zh": "答案|答|解答",
}
# The word that begins the next problem, where a completion runs on.
_QUESTIONS = {
    "en": "question",
    "bn": "প্রশ্ন",
    "de": "frage",
    "es": "pregunta",
    "fr": "question",
    "ja": "問題",
    "ru": "задача",
    "sw": "swali",
    "te": "ప్రశ్న",
    "th": "โจทย์",
    "zh": "问题",
}
_STEPS = "(?<!step )(?<!schritt-)(?<!ধাপে )(?<!ごとの)(?<!దశలవారీగా )(?<!逐步)"
"""A label after one of these begins a worked solution."""
_MARKUP = re.compile(r"[\s*_`$({\[\\\"'“”«»„「『<>~=:]*")
_CURRENCY = re.compile(r"(?:[-–]?(?:Rs|KSh|Ksh|TSh|Tsh|USD|EUR|US)?\.?[ $€£¥₹฿৳₽]*)?")
_CALCULATES = re.compile(r"[ $%)*€£¥₹]*(?:[^\W\d_]+ ?)?[ $(*)]*[-–+*/×÷·=xX]| ?% ?[^\W\d_]+ \W*\d")  # also 20% of 90 =
_ENDS = re.compile(r"[*_$)}\]\"'€%]*[.。।](?=\s|[*_]|$)")
_PASSAGE = 1000
"""Characters after a flag in which its number must begin and end. The bound makes reading linear in time, even where a model
in a loop repeats a flag thousands of times."""
_MADE_UP = 8
"""Problems that a model makes up after its answer and that are examined one by one, before the rest is taken as a whole."""
_BOX = re.compile(r"\\boxed\s*\{|\\fbox\s*\{")
_HASHES = re.compile(r"####(?!#)")
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"'*)$\]}]|$)|[。।|\n]|[.](?=[^\W\d_])")


def extract_answer(text: str, language: str) -> Answer:
    """The answer in `text`, the output of a model asked in `language`. English flags count in every language.

    >>> extract_answer("5 + 6 = 11. Jibu ni 11.", "sw")
    Answer(value=Fraction(11, 1), rule='sentence')
    >>> extract_answer("সব মিলিয়ে ১,১৪,২০০ টাকা", "bn").value
    Fraction(114200, 1)
    """
    plain = make_plain(text)
    ends = (match.start() for match in _next_problem(language).finditer(plain))
    for end in (*islice(ends, _MADE_UP), len(plain)):
        if (answer := _flagged(plain[:end], language)) is not None:
            return answer
    numbers = list(find_numbers(plain))
    return Answer(numbers[-1].value, "last_number") if numbers else Answer(None, "none")


def _flagged(plain: str, language: str) -> Answer | None:
    """The last flagged answer. A flag without a number after it does not count."""
    answers: list[tuple[int, Answer]] = []
    for match in _BOX.finditer(plain):
        if (number := _result(plain, match.end(), _closing(plain, match.end()))) is not None:
            answers.append((number.end, Answer(number.value, "box")))
    for match in _HASHES.finditer(plain):
        if (number := _result(plain, match.end(), _line_end(plain, match.end()))) is not None:
            answers.append((number.end, Answer(number.value, "hashes")))
    for match in _pattern(_SENTENCES, language).finditer(plain):
        if (number := _result(plain, *_rest_of_sentence(plain, match.end()))) is not None:
            answers.append((number.end, Answer(number.value, "sentence")))
    for match in _label_pattern(language).finditer(plain):
        if (number := _labelled(plain, match.end())) is not None:
            answers.append((number.end, Answer(number.value, "label")))
    return max(answers, key=lambda pair: pair[0])[1] if answers else None  # of equal ends the first, which has the stronger flag


def _result(plain: str, start: int, end: int) -> Number | None:
    """The number that a passage states: the first, or, where that begins a calculation, the first after the last equals sign."""
    first = next(find_numbers(plain, start, end), None)
    if first is not None and _CALCULATES.match(plain, first.end, end):
        equals = [match.end() for match in re.finditer("=", plain[first.end : end])]
        if equals:
            return next(find_numbers(plain, first.end + equals[-1], end), first)
    return first


def _labelled(plain: str, start: int) -> Number | None:
    """The number directly after a label, if it ends the sentence or if it and its calculation are all numbers of the line."""
    begin = _until_text(plain, start)
    end = _line_end(plain, begin)
    number = _result(plain, start, end)
    first = next(find_numbers(plain, start, end), None)
    if number is None or first is None or first.start > _CURRENCY.match(plain, begin, end).end():  # type: ignore[union-attr]
        return None
    alone = next(find_numbers(plain, number.end, end), None) is None
    return number if alone or _ENDS.match(plain, number.end) else None


def _until_text(plain: str, start: int) -> int:
    """Position where text begins after a flag: on its line, or on a later line after nothing but markup."""
    markup = _MARKUP.match(plain, start, start + _PASSAGE)
    return start if markup is None else markup.end()


def _rest_of_sentence(plain: str, start: int) -> tuple[int, int]:
    most = start + _PASSAGE
    stop = _SENTENCE_END.search(plain, _until_text(plain, start), most)
    return start, stop.start() if stop else min(len(plain), most)


def _line_end(plain: str, start: int) -> int:
    most = min(len(plain), start + _PASSAGE)
    end = plain.find("\n", start, most)
    return most if end < 0 else end


def _closing(plain: str, start: int) -> int:
    """Position where the brace that was opened before `start` closes, or where the line ends."""
    depth = 1
    for at in range(start, _line_end(plain, start)):
        depth += {"{": 1, "}": -1}.get(plain[at], 0)
        if depth == 0:
            return at
    return _line_end(plain, start)


def _joined(table: dict[str, str], language: str) -> str:
    return "|".join(make_plain(table[code]) for code in dict.fromkeys((language, "en")) if code in table)


def _pattern(table: dict[str, str], language: str) -> re.Pattern[str]:
    return re.compile(_joined(table, language), re.IGNORECASE)  # `re` keeps the compiled ones


def _label_pattern(language: str) -> re.Pattern[str]:
    return re.compile(rf"{make_plain(_STEPS)}(?:{_joined(_LABELS, language)})[*_]*\s*:", re.IGNORECASE)


def _next_problem(language: str) -> re.Pattern[str]:
    return re.compile(rf"\n[\s*#]*(?:{_joined(_QUESTIONS, language)})[\s\d*]*:", re.IGNORECASE)
