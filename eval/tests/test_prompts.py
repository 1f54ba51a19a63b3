"""Prompts of every language, character by character: texts for problems written here, digests for MGSM's own."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path

import pytest

from lswap_core.errors import FormatError, RecipeError
from lswap_eval import build_prompt, read_problems, stop_strings
from lswap_eval.mgsm.problems import LANGUAGES, Exemplar, Problem, ProblemSet
from lswap_eval.mgsm.prompts import STYLES

AUTHORED = Path(__file__).parent / "authored"
TEXTS = json.loads((AUTHORED / "prompts.json").read_text(encoding="utf-8"))
DIGESTS = json.loads((AUTHORED / "mgsm_prompts.sha256.json").read_text())


@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts_are_the_golden_texts(authored: Path, language: str) -> None:
    data = read_problems(authored)
    problem = data.problems[language][0]
    for style in ("native_cot", "en_cot", "direct"):
        prompt = build_prompt(data, problem, style, 2)
        assert prompt.text == TEXTS[language][style]
        assert prompt.sha256 == hashlib.sha256(TEXTS[language][style].encode()).hexdigest()
        assert prompt.messages is None
        ending = TEXTS[language][style].rpartition("\n\n")[2]
        assert build_prompt(data, problem, style, 0).text == ending
    chat = build_prompt(data, problem, "chat", 2)
    assert chat.text is None
    assert chat.messages is not None
    assert [turn["content"] for turn in chat.messages] == TEXTS[language]["chat"]
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant", "user", "assistant", "user"]


def test_colons_are_as_the_languages_have_them(authored: Path) -> None:
    data = read_problems(authored)
    for language in LANGUAGES:
        text = build_prompt(data, data.problems[language][0], "native_cot", 0).text
        assert text is not None
        cue, question = (
            text.split("\n")[0][: text.index(data.problems[language][0].question)],
            data.problems[language][0].question,
        )
        assert cue[-1] == "：" if language in ("ja", "zh") else cue[-2:] == ": "
        assert (cue[-3] == " ") == (language == "fr")
        assert cue + question == text.split("\n")[0]
        assert text[-1] in "：:"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("style", STYLES)
def test_prompts_of_mgsm_have_the_golden_digests(mgsm: Path, language: str, style: str) -> None:
    data = read_problems(mgsm)
    for count in (0, 1, 8):
        whole = hashlib.sha256()
        for problem in data.problems[language]:
            whole.update(build_prompt(data, problem, style, count).sha256.encode())
        assert whole.hexdigest() == DIGESTS[language][f"{style}/{count}"]


def test_no_character_of_mgsm_is_lost_or_changed(mgsm: Path) -> None:
    data = read_problems(mgsm)
    exemplars = json.loads((mgsm / "exemplars.json").read_text(encoding="utf-8"))
    for language in LANGUAGES:
        rows = (mgsm / f"mgsm_{language}.tsv").read_bytes().decode().split("\n")
        for problem, row in zip(data.problems[language], rows, strict=False):
            text = build_prompt(data, problem, "native_cot").text
            assert text is not None
            assert row.split("\t")[0] + "\n" in text
            for exemplar in exemplars[language]:
                assert exemplar["question"] + "\n" + exemplar["answer"] + "\n\n" in text
    questions = [problem.question for problem in data.problems["bn"]]
    assert sum(unicodedata.normalize("NFC", question) != question for question in questions) == 238


def test_completions_stop_at_the_next_question(authored: Path) -> None:
    data = read_problems(authored)
    for language in LANGUAGES:
        (stop,) = stop_strings(data, language, "native_cot")
        prompt = build_prompt(data, data.problems[language][0], "native_cot", 2).text
        assert prompt is not None
        assert prompt.count(stop) == 2
        assert stop_strings(data, language, "direct") == (stop, "\n\n")
        assert stop_strings(data, language, "chat") == ()


@pytest.mark.parametrize(
    ("style", "count", "match"),
    [
        ("cot", 2, "prompt 'cot' is not known; known are native_cot"),
        ("chat", 3, "expected 0 to 2"),
        ("direct", -1, "-1 exemplars"),
    ],
)
def test_prompts_that_cannot_be_are_refused(authored: Path, style: str, count: int, match: str) -> None:
    data = read_problems(authored)
    with pytest.raises(RecipeError, match=match):
        build_prompt(data, data.problems["sw"][0], style, count)


def test_exemplars_without_one_cue_are_refused() -> None:
    exemplars = (Exemplar("Swali: 1?", "Jibu: 1", 1), Exemplar("Swal: 2?", "Jibu: 2", 2))
    data = ProblemSet({"sw": (Problem("sw", 0, "3?", 3),)}, {"sw": exemplars})
    with pytest.raises(FormatError, match="sw: expected exemplars whose questions all begin with one cue"):
        build_prompt(data, data.problems["sw"][0], "native_cot", 1)
