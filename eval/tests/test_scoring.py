"""Scores are a function of the log; the rules of other harnesses keep their quirks; nothing that was cut off passes for parsed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lswap_core.errors import RecipeError
from lswap_eval import Header, Record, score_log
from lswap_eval.score.scoring import RULES, lm_eval_flexible, lm_eval_strict, simple_evals_answer

GOLDS = {"sw": [18, 2125], "bn": [18, 3], "en": [18, 3]}
HEADER = Header({"identity": "ab"}, {"prompt": "native_cot"}, "cd", GOLDS)


def record(output: str, language: str = "sw", problem: int = 0, finish: str = "stop") -> Record:
    return Record(language, problem, 0, "ef", output, finish)


def outcome(
    output: str, rule: str, language: str = "sw", problem: int = 0, finish: str = "stop", style: str = "native_cot"
) -> tuple[str, str | None]:
    header = Header({"identity": "ab"}, {"prompt": style}, "cd", GOLDS)
    (score,) = score_log(header, [record(output, language, problem, finish)], rule).values()
    return score.category, score.value


@pytest.mark.parametrize(
    ("output", "language", "expected"),
    [
        # what each of RULES makes of it
        ("9 * 2 = 18. Jibu ni 18.", "sw", ["correct"] * 4),
        ("Jibu ni 1.8", "sw", ["wrong", "correct", "correct", "wrong"]),  # punctuation is dropped
        ("Jibu ni -18", "sw", ["wrong", "correct", "correct", "correct"]),
        ("The answer is 18", "sw", ["correct", "unparsable", "correct", "unparsable"]),
        ("উত্তর হল ১৮।", "bn", ["correct", "unparsable", "unparsable", "wrong"]),
        ("উত্তর হল 18।", "bn", ["correct", "unparsable", "correct", "correct"]),  # its Bengali sentence is the English one
        ("The answer is 17. The answer is 18.", "en", ["correct", "wrong", "correct", "unparsable"]),  # the first counts
        ("The answer is 18. That is 3 more than 15", "en", ["correct", "correct", "wrong", "unparsable"]),
        ("Answer: 18.0", "en", ["correct", "unparsable", "wrong", "correct"]),
        ("eighteen", "en", ["unparsable"] * 4),
        ("", "en", ["unparsable"] * 4),
    ],
)
def test_each_rule_has_its_own_view(output: str, language: str, expected: list[str]) -> None:
    assert [outcome(output, rule, language)[0] for rule in RULES] == expected


def test_direct_and_english_prompts_have_their_own_strict_rules() -> None:
    assert outcome("The answer is 18", "lm-eval-strict", style="en_cot")[0] == "correct"
    assert outcome(" 18", "lm-eval-strict", style="direct") == ("correct", "18")
    assert outcome(" 18 eggs", "lm-eval-strict", style="direct")[0] == "wrong"


def test_what_was_cut_off_counts_apart_unless_it_had_answered() -> None:
    assert outcome("so 9 * 2 = 18", "lswap") == ("correct", "18")
    assert outcome("so 9 * 2 = 18", "lswap", finish="length") == ("truncated", None)
    assert outcome("so 9 * 2 = 17. Jibu ni 17. Halafu", "lswap", finish="length") == ("truncated", "17")
    assert outcome("so 9 * 2 = 18. Jibu ni 18. Halafu", "lswap", finish="length") == ("correct", "18")
    assert outcome("so 9 * 2 = 18", "lm-eval-flexible", finish="length") == ("correct", "18")


def test_scores_are_keyed_and_in_order() -> None:
    records = [record("Jibu ni 2,125", problem=1), record("Jibu ni 18")]
    scores = score_log(HEADER, records)
    assert list(scores) == [("sw", 1, 0), ("sw", 0, 0)]
    assert all(score.correct for score in scores.values())
    assert score_log(HEADER, records) == scores


def test_golds_must_be_there() -> None:
    bare = Header({"identity": "ab"}, {}, "cd")
    with pytest.raises(RecipeError, match="does not hold the right answers; name the data .* --data"):
        score_log(bare, [record("18")])
    assert score_log(bare, [record("18")], golds=GOLDS)["sw", 0, 0].correct
    with pytest.raises(RecipeError, match="no right answer to problem 2 in language 'sw'"):
        score_log(HEADER, [record("18", problem=2)])
    with pytest.raises(RecipeError, match="rule 'mine' is not known; known are lswap, lm-eval-strict"):
        score_log(HEADER, [], "mine")


def test_the_exemplars_solutions_under_every_rule(mgsm: Path) -> None:
    """Ours reads all 88. The strict rule misses Bengali, and what follows the sentence in other words than it knows."""
    right = dict.fromkeys(RULES, 0)
    for language, solved in json.loads((mgsm / "exemplars.json").read_text(encoding="utf-8")).items():
        golds = {language: [exemplar["answer_number"] for exemplar in solved]}
        records = [record(exemplar["answer"], language, number) for number, exemplar in enumerate(solved)]
        for rule in RULES:
            right[rule] += sum(score.correct for score in score_log(HEADER, records, rule, golds).values())
    assert right["lswap"] == 88
    assert right["lm-eval-strict"] < 88 - 8
    assert right["lm-eval-flexible"] == 88


def test_what_the_foreign_rules_take() -> None:
    assert lm_eval_strict("Ответ — 1,200.", "ru", "native_cot") == "1,200."
    assert lm_eval_strict("Ответ: 1,200.", "ru", "native_cot") is None
    assert lm_eval_flexible("costs $1,200.50 for 2 or 3.") == "3."
    assert lm_eval_flexible("wait...") == "..."
    assert simple_evals_answer("Jibu: 5 + 6 = 11.", "sw") == "11"
    assert simple_evals_answer("11", "sw") == ""
