"""The output's tokenizer is math's, byte for byte, and works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from transformers import AutoTokenizer

from .models import Experts
from .oracle import STANDARD
from .vocabularies import TEMPLATE, WORDS, save_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def test_the_tokenizer_is_maths_and_works(
    get_experts: Callable[[str], Experts], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    experts = get_experts("llama-tied")
    math = shutil.copytree(experts.math, tmp_path / "math")
    lang = shutil.copytree(experts.lang, tmp_path / "lang")
    save_tokenizer(math, WORDS)
    save_tokenizer(lang, WORDS, template="of lang: " + TEMPLATE)
    out = tmp_path / "merged"
    done = run_cli("merge", "--math", math, "--lang", lang, *STANDARD.arguments, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    for file in FILES:
        assert (out / file).read_bytes() == (math / file).read_bytes()
    assert (out / FILES[2]).read_bytes() != (lang / FILES[2]).read_bytes()

    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids(["word3", "word126", "unheard"]) == [3, 126, 0]
    assert tokenizer("word5 word77 unheard", add_special_tokens=False)["input_ids"] == [5, 77, 0]
    messages = [{"role": "word9", "content": "word10"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "word9 : word10 [EOS] "
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
