"""Numbers read back in every rendering, near misses refused, and the answer found where a reader would look for it."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lswap_eval import Answer, extract_answer
from lswap_eval.mgsm.answers import RULES
from lswap_eval.mgsm.numbers import find_numbers, make_plain

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
SENTENCES = {
    "bn": "উত্তর হল {}।",
    "de": "Die Antwort lautet {}.",
    "en": "The answer is {}.",
    "es": "La respuesta es {}.",
    "fr": "La réponse est {}.",
    "ja": "答えは{}です。",
    "ru": "Ответ — {}.",
    "sw": "Jibu ni {}.",
    "te": "సమాధానం {}.",
    "th": "คำตอบคือ {}",
    "zh": "答案是 {}。",
}
LABELS = {
    "bn": "উত্তর: {}",
    "de": "**Antwort:** {}",
    "en": "Answer: {}",
    "es": "Respuesta: {}",
    "fr": "Réponse : {}",
    "ja": "答え：{}",
}
LABELS |= {"ru": "Ответ: {}", "sw": "Jibu: {}", "te": "సమాధానం: {}", "th": "คำตอบ: {}", "zh": "答案：{}"}
ZEROS = {"ascii": "0", "bengali": "০", "telugu": "౦", "thai": "๐", "full width": "\uff10", "devanagari": "०", "arabic": "٠"}
SEPARATORS = (",", ".", " ", "\u00a0", "\u202f", "\u2009", "'", "\u2019", "\uff0c")
WRAPPERS = (
    "{}",
    "**{}**",
    "${}",
    "{} €",
    "{} $",
    "₹{}",
    "¥{}",
    "￥{}",
    "{}%",
    "+{}",
    r"\boxed{{{}}}",
    r"$\boxed{{{}}}$",
    "`{}`",
    r"\({}\)",
)
WRAPPERS += ("Rs. {}", "\u200e{}\u200f", '"{}"', "「{}」", "\\${}", "\\[\n{}\n\\]", "\n\n**{}**")


def grouped(number: int, separator: str) -> str:
    return f"{number:,}".replace(",", separator)


def grouped_as_in_india(number: int) -> str:
    digits = str(number)
    head, tail = digits[:-3], digits[-3:]
    parts = []
    while head:
        parts.insert(0, head[-2:])
        head = head[:-2]
    return ",".join([*parts, tail])


def renderings(number: int) -> Iterator[str]:
    """`number` in every script of digits, separator and form of decimals."""
    for shape in dict.fromkeys((str(number), grouped_as_in_india(number), *(grouped(number, s) for s in SEPARATORS))):
        for zero in ZEROS.values():
            yield "".join(chr(ord(zero) + int(c)) if c in "0123456789" else c for c in shape)
    yield from (f"{number}.00", f"{number},00", f"{number}.0", f"{grouped(number, ',')}.00", f"{grouped(number, '.')},00")


def near_misses(number: int) -> Iterator[str]:
    yield from (str(number + 1), str(-number), f"−{number}", f"-{grouped(number, ',')}", f"$-{number}", f"-${number}")
    yield from (f"{number // 10}.{number % 10}", f"{number // 10},{number % 10}", f"{number}0", f"{number}.5", f"{number}/7")


def golds(mgsm: Path, language: str) -> list[int]:
    lines = (mgsm / f"mgsm_{language}.tsv").read_text(encoding="utf-8").splitlines()
    return [int(line.split("\t")[1].replace(",", "")) for line in lines]


SOME = [1, 2, 7, 10, 18, 99, 100, 255, 999, 1000, 1002, 2050, 9999, 10000, 12345, 100000, 114201, 276001, 1234567]


def share(numbers: list[int], count: int, seed: str) -> list[int]:
    """All of them in the long run; otherwise some, others for each seed, and the largest."""
    return numbers if "LSWAP_LONG" in os.environ else [*random.Random(seed).sample(numbers, count), max(numbers)]


def check(language: str, number: int) -> None:
    for text in renderings(number):
        for template in (SENTENCES[language], "9 - 4 = 5. " + SENTENCES[language], LABELS[language]):
            found = extract_answer(template.format(text), language)
            assert found.value == number, (template, text, found)
            assert found.flagged, (template, text, found)
        assert extract_answer(f"9 9 9. {text}", language) == Answer(Fraction(number), "last_number"), text
    for text in near_misses(number):
        for template in (SENTENCES[language], LABELS[language], "{}"):
            assert extract_answer(template.format(text), language).value not in (number, None), (template, text)


@pytest.mark.long
@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_read_back_in_every_rendering_and_near_misses_are_refused(language: str) -> None:
    for number in share(SOME, 6, language):
        check(language, number)


@pytest.mark.long
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_gold_reads_back_in_every_rendering_and_near_misses_are_refused(mgsm: Path, language: str) -> None:
    numbers = golds(mgsm, language)
    assert len(numbers) == 250
    for number in share(numbers, 12, language):
        check(language, number)


@pytest.mark.long
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_numbers_read_back(language: str, wrapper: str) -> None:
    for number in share(SOME, 6, language + wrapper):
        for text in (str(number), grouped(number, ",")):
            for template in (SENTENCES[language], LABELS[language], "{}"):
                assert extract_answer(template.format(wrapper.format(text)), language).value == number, (template, text)


def test_the_exemplars_solutions_give_their_answers_by_their_final_sentences(mgsm: Path) -> None:
    exemplars = json.loads((mgsm / "exemplars.json").read_text(encoding="utf-8"))
    assert sum(map(len, exemplars.values())) == 88
    for language, solved in exemplars.items():
        for exemplar in solved:
            assert extract_answer(exemplar["answer"], language) == Answer(Fraction(exemplar["answer_number"]), "sentence")


HELD_OUT = json.loads((Path(__file__).parent / "authored" / "outputs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", HELD_OUT, ids=lambda case: f"{case['language']}: {case['output'][:30]!r}")
def test_outputs_written_by_hand(case: dict[str, str]) -> None:
    found = extract_answer(case["output"], case["language"])
    expected = None if case["value"] is None else Fraction(case["value"])
    assert (found.value, found.rule) == (expected, case["rule"])


def test_what_runs_on_into_another_problem_does_not_count() -> None:
    text = "5 + 6 = 11. Jibu ni 11.\n\nSwali: Kuna 3.\nJibu la Hatua kwa Hatua: Jibu ni 3."
    assert extract_answer(text, "sw").value == 11
    assert extract_answer("Question: 5 and 6?\nThe answer is 11.", "en").value == 11
    assert extract_answer("\n\nQuestion: 5 and 6?\nThe answer is 11.", "en").value == 11


@settings(deadline=None)
@given(st.text(), st.sampled_from(LANGUAGES))
def test_any_text_has_an_answer_or_none(text: str, language: str) -> None:
    found = extract_answer(text, language)
    assert found.rule in RULES
    assert (found.value is None) == (found.rule == "none") == (not any(c.isdecimal() for c in text))


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=1), st.sampled_from([" plus ", "; ", " + ", "\n", " ... ", "、"]))
def test_plain_integers_are_all_found(numbers: list[int], glue: str) -> None:
    assert [n.value for n in find_numbers(make_plain(glue.join(map(str, numbers))))] == numbers


@settings(deadline=None)
@given(st.text("0123456789.,' -–$/+()x=", max_size=30))
@example(".0.0")
def test_numbers_do_not_overlap_and_miss_no_digit(text: str) -> None:
    plain = make_plain(text)
    found = list(find_numbers(plain))
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    covered = {at for number in found for at in range(number.start, number.end)}
    assert {at for at, c in enumerate(plain) if c.isdigit()} <= covered


@pytest.mark.parametrize("loop", ["The answer is ", "Answer: ", "\nQuestion: 5?", "1,234,", r"\boxed{", "####", "the answer of "])
def test_extraction_takes_linear_time_on_outputs_that_loop(loop: str) -> None:
    def seconds(count: int) -> float:
        """Of this thread's processor."""
        text = loop * count + "0.123"
        begin = time.thread_time()
        extract_answer(text, "en")
        return time.thread_time() - begin

    short, long = map(min, zip(*((seconds(500), seconds(4000)) for _ in range(4)), strict=True))
    assert long < 28 * short  # 8 where it is linear, 64 where it is quadratic
