"""lm-evaluation-harness on the same texts: its filters and metric against our re-scoring, and our task files in its hands."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

import lswap_eval
from lswap_eval import Header, Record, build_prompt, read_problems, score_log, stop_strings
from lswap_eval.mgsm.problems import LANGUAGES
from lswap_eval.score.scoring import LM_EVAL_NUMBERS, LM_EVAL_SENTENCES, lm_eval_flexible, lm_eval_strict

TASKS = Path(lswap_eval.__file__).parent / "lm_eval_tasks"
STYLES = ("native_cot", "en_cot", "direct")
OUTPUTS = json.loads((Path(__file__).parent / "authored" / "outputs.json").read_text(encoding="utf-8"))


class _Loader(yaml.SafeLoader):
    """Reads task files without importing what they name."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def task_file(style: str, language: str) -> dict[str, Any]:
    return dict(yaml.load((TASKS / f"lswap_mgsm_{style}_{language}.yaml").read_text(encoding="utf-8"), _Loader))


def texts() -> list[str]:
    drawn = random.Random(7)
    pieces = [s.replace(r"(\-?[0-9\.\,]+)", "{}") for s in LM_EVAL_SENTENCES.values()] + ["{}", "${}.", "({})", "{},", " {}\n"]
    made = [
        "".join(
            drawn.choice(pieces).format(drawn.choice(["18", "-18", "1.8", "1,8", "২৮", "１８", "$", "...", "2,125", "x"]))
            for _ in range(drawn.randrange(4))
        )
        for _ in range(300)
    ]
    return [case["output"] for case in OUTPUTS] + made


@pytest.mark.parametrize("style", STYLES)
def test_task_files_ask_and_stop_as_we_do(authored: Path, style: str) -> None:
    data = read_problems(authored)
    for language in LANGUAGES:
        task = task_file(style, language)
        assert task["dataset_kwargs"] == {"language": language, "style": style}
        assert tuple(task["generation_kwargs"]["until"]) == stop_strings(data, language, style)
        filters = {each["name"]: each["filter"][0] for each in task["filter_list"]}
        assert filters["flexible-extract"]["regex_pattern"] == LM_EVAL_NUMBERS
        if style != "direct":
            assert filters["strict-match"]["regex_pattern"] == LM_EVAL_SENTENCES["en" if style == "en_cot" else language]
    assert len(list(TASKS.glob("lswap_mgsm_*.yaml"))) == len(LANGUAGES) * len(STYLES)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_rescoring_equals_its_filters_and_metric(language: str, style: str) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed; its filters were not run")
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters import build_filter_ensemble

    published = yaml.load(
        (Path(lm_eval.__file__).parent / "tasks" / "mgsm" / style / f"mgsm_{style}_{language}.yaml").read_text(encoding="utf-8"),
        _Loader,
    )
    shared = yaml.load(
        (Path(lm_eval.__file__).parent / "tasks" / "mgsm" / style / published["include"]).read_text(encoding="utf-8"), _Loader
    )
    metric = {name: shared["metric_list"][0][name] for name in ("ignore_case", "ignore_punctuation")}
    golds = {language: [18]}
    header = Header({"identity": "ab"}, {"prompt": style}, "cd", golds)
    compared = {True: 0, False: 0}
    for each in (published if "filter_list" in published else shared)["filter_list"]:
        rule = "lm-eval-flexible" if each["name"] == "flexible-extract" else "lm-eval-strict"
        steps = [(step["function"], {k: v for k, v in step.items() if k != "function"}) for step in each["filter"]]
        for text in texts():
            taken = [[text]]
            for step in build_filter_ensemble(each["name"], steps).filters:
                taken = step().apply(taken, [{}])  # type: ignore[assignment]
            (theirs,) = list(taken)
            ours = lm_eval_flexible(text) if rule == "lm-eval-flexible" else lm_eval_strict(text, language, style)
            assert ("[invalid]" if ours is None else ours) == theirs, text
            right = bool(exact_match_fn(predictions=[theirs], references=["18"], **metric)["exact_match"])
            (score,) = score_log(header, [Record(language, 0, 0, "ef", text, "stop")], rule).values()
            assert score.correct == right, text
            compared[right] += 1
    assert min(compared.values()) > 3, "both outcomes were seen"


@pytest.mark.parametrize("style", STYLES)
def test_lm_eval_loads_our_tasks(authored: Path, style: str) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed; the task files were not loaded")
    from lm_eval.tasks import TaskManager

    data = read_problems(authored)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(authored), "exemplars": 2})
    names = [f"lswap_mgsm_{style}_{language}" for language in ("sw", "ja")]
    loaded = manager.load(names)["tasks"]
    for language, name in zip(("sw", "ja"), names, strict=True):
        task = loaded[name]
        docs = list(task.test_docs())
        assert [task.doc_to_text(doc) for doc in docs] == [build_prompt(data, p, style, 2).text for p in data.problems[language]]
        assert [str(task.doc_to_target(doc)) for doc in docs] == [str(p.gold) for p in data.problems[language]]
        (judge,) = [each for each in task._filters if each.name == "lswap"]
        judged = [[" 7. "], ["-1000"]]
        for step in judge.filters:
            judged = step().apply(judged, docs)  # type: ignore[assignment]
        assert list(judged) == ["7", "[wrong]"]
