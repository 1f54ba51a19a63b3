"""Tiny tokenizers, built with the tokenizers library and saved by transformers."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from .models import VOCABULARY

WORDS = {"[UNK]": 0, "[BOS]": 1, "[EOS]": 2, **{f"word{number}": number for number in range(3, VOCABULARY - 1)}}
"""The last id is free."""
TEMPLATE = "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} [EOS] {% endfor %}"


def save_tokenizer(path: Path, vocabulary: dict[str, int], template: str = TEMPLATE) -> None:
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]")
    wrapped.chat_template = template
    wrapped.save_pretrained(path)
