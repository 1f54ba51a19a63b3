"""Completions are those of the model alone: whatever they are batched with, cut where a stop string begins."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lswap_core.errors import FormatError, RecipeError
from lswap_eval.generate.local_model import TransformersGenerator, load_model
from lswap_eval.generate.protocol import Completion, Decoding
from lswap_eval.mgsm.prompts import Prompt

NEW = 24


@pytest.fixture(scope="module")
def generator(experts: dict[str, Path]) -> TransformersGenerator:
    model = load_model(experts["math"], device="cpu")
    return TransformersGenerator(model, experts["math"], Decoding(max_new_tokens=NEW))


def complete(generator: TransformersGenerator, texts: list[str], *, stop: list[str], seed: int) -> list[Completion]:
    return generator.complete([Prompt(text, None) for text in texts], stop=stop, seed=seed)


def chat(*contents: str) -> list[Prompt]:
    return [Prompt(None, ({"role": "user", "content": content},)) for content in contents]


def greedy(path: Path, prompt: str, count: int) -> tuple[list[int], float]:
    """Token by token, with neither cache nor padding; and how far the chosen logit was above the next one, at the least."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    ids = AutoTokenizer.from_pretrained(path)(prompt)["input_ids"]
    new: list[int] = []
    least = math.inf
    with torch.inference_mode():
        while len(new) < count and 2 not in new:
            best = model(input_ids=torch.tensor([ids + new])).logits[0, -1].topk(2)
            new.append(int(best.indices[0]))
            least = min(least, float(best.values[0] - best.values[1]))
    return new, least


def clear(path: Path, prompts: list[str], number: int) -> dict[str, list[int]]:
    """The first of the prompts, with what the model says to them, where no two tokens are so near to each other that the order
    in which a batch is added up could decide between them.
    """
    found: dict[str, list[int]] = {}
    for prompt in prompts:
        tokens, least = greedy(path, prompt, NEW)
        if least > 1e-3:
            found[prompt] = tokens
        if len(found) == number:
            return found
    raise AssertionError(f"only {len(found)} of {len(prompts)} prompts have clear answers")


def test_a_batch_gives_what_the_model_says_to_each_prompt(
    generator: TransformersGenerator, experts: dict[str, Path], questions: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(experts["math"])
    some = [questions[0], questions[1][:9], questions[3], questions[6][:20], *questions[7:]]
    expected_of = clear(experts["math"], some, 4)
    found = complete(generator, list(expected_of), stop=[], seed=0)
    for (prompt, expected), completion in zip(expected_of.items(), found, strict=True):
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.prompt_tokens == generator.length(Prompt(prompt, None)) == len(tokenizer(prompt)["input_ids"])
        assert completion.completion_tokens == len(expected)
        assert completion.finish_reason == ("stop" if 2 in expected else "length")
    assert len({completion.text for completion in found}) > 1


def test_every_stop_string_there_could_be_cuts_exactly_and_ends_the_row(
    generator: TransformersGenerator, questions: list[str]
) -> None:
    prompts = questions[:4]
    whole = complete(generator, prompts, stop=[], seed=0)
    tried = 0
    for row, completion in enumerate(whole):
        text = completion.text
        for begin in range(0, len(text) - 2, 9):
            stop = text[begin : begin + 2]
            if "�" in stop:
                continue
            found = complete(generator, prompts, stop=["no such thing", stop], seed=0)
            assert found[row].text == text[: text.index(stop)]
            assert found[row].finish_reason == "stop"
            assert (found[row].completion_tokens or 0) <= (completion.completion_tokens or 0)
            for other, before in zip(found, whole, strict=True):
                assert other.text == (before.text[: before.text.index(stop)] if stop in before.text else before.text)
            tried += 1
    assert tried >= 4


def test_a_row_ends_where_its_stop_string_does(generator: TransformersGenerator, questions: list[str]) -> None:
    whole = complete(generator, questions[:1], stop=[], seed=0)[0]
    early = complete(generator, questions[:1], stop=[whole.text[:2]], seed=0)[0]
    assert early.completion_tokens is not None
    assert early.completion_tokens < NEW // 2


def test_the_end_token_ends(experts: dict[str, Path], tmp_path: Path, questions: list[str]) -> None:
    """Whichever token comes fifth is made the end, as the generation config of a chat model names several."""
    model = load_model(experts["math"], device="cpu")
    ((prompt, tokens),) = clear(experts["math"], questions, 1).items()
    fifth = tokens[4]
    first_at = tokens.index(fifth)
    model.generation_config.eos_token_id = [2, fifth]
    model.generation_config.repetition_penalty = 1.7  # what a directory says of sampling has no part in this
    generator = TransformersGenerator(model, experts["math"], Decoding(max_new_tokens=NEW))
    found = complete(generator, [prompt, questions[1]], stop=[], seed=0)[0]
    assert (found.finish_reason, found.completion_tokens) == ("stop", first_at + 1)


def test_chat_uses_the_models_template(generator: TransformersGenerator, questions: list[str]) -> None:
    as_text = f"<|user|>{questions[0]}<|assistant|>"
    assert generator.complete(chat(questions[0]), stop=[], seed=0) == complete(generator, [as_text], stop=[], seed=0)


def test_sampling_repeats_with_its_seed(experts: dict[str, Path], questions: list[str]) -> None:
    model = load_model(experts["math"], device="cpu")
    generator = TransformersGenerator(model, experts["math"], Decoding(max_new_tokens=8, temperature=1.5))
    first, again, other = (complete(generator, questions[:2], stop=[], seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def copied(experts: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(experts["math"], tmp_path / "copy"))


def test_no_tokenizer_is_one_line(experts: dict[str, Path], tmp_path: Path) -> None:
    path = copied(experts, tmp_path)
    (path / "tokenizer.json").unlink()
    model = load_model(path, device="cpu")
    with pytest.raises(RecipeError, match="there is no tokenizer in it") as raised:
        TransformersGenerator(model, path, Decoding())
    assert "\n" not in str(raised.value)


def test_no_template_is_said(experts: dict[str, Path], tmp_path: Path, questions: list[str]) -> None:
    path = copied(experts, tmp_path)
    (path / "chat_template.jinja").unlink()
    generator = TransformersGenerator(load_model(path, device="cpu"), path, Decoding(max_new_tokens=2))
    assert complete(generator, questions[:1], stop=[], seed=0)
    with pytest.raises(RecipeError, match="has no chat template"):
        generator.complete(chat("7"), stop=[], seed=0)


def test_a_prompt_beyond_the_positions_is_refused(generator: TransformersGenerator) -> None:
    with pytest.raises(RecipeError, match="exceed the model's 2048 positions"):
        complete(generator, ["1 + " * 2000], stop=[], seed=0)


def test_the_settings_say_what_an_answer_depends_on(
    generator: TransformersGenerator, experts: dict[str, Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = json.loads(json.dumps(dict(generator.settings)))
    assert settings.items() >= {"dtype": "float32", "device": "cpu", "max_new_tokens": NEW, "temperature": 0.0}.items()
    assert settings["versions"]["torch"] == torch.__version__
    path = copied(experts, tmp_path)
    (path / "chat_template.jinja").write_text("other")
    other = TransformersGenerator(load_model(path, device="cpu"), path, Decoding(max_new_tokens=NEW))
    assert other.settings["tokenizer"] != settings["tokenizer"]


def test_loading_refuses_in_one_line(experts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no config.json"):
        load_model(tmp_path)
    for options in ({"device": "nonsense"}, {"device": "meta"}, {"device": "cuda:99"}, {"dtype": "int4"}):
        with pytest.raises(RecipeError, match="--d"):
            load_model(experts["math"], **options)
    path = copied(experts, tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    with pytest.raises(FormatError, match="cannot load it"):
        load_model(path)
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 13}))
    with pytest.raises(RecipeError, match="missing_keys model.layers.12"):
        load_model(path)
