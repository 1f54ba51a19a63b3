"""A transformers model in this process as a generator: CPU or GPU, left padding, one batch at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from lswap_core.errors import FormatError, RecipeError
from lswap_eval.generate.protocol import Completion, Decoding, cut
from lswap_eval.mgsm.prompts import Prompt

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "tekken.json", "spiece.model", "vocab.txt",
)  # fmt: skip
"""Files that a tokenizer is read from. A model directory must have at least one of them that is a vocabulary."""
_VOCABULARIES = frozenset(TOKENIZER_FILES) - {
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "merges.txt",
}  # fmt: skip
DTYPES = ("auto", "bfloat16", "float16", "float32")
_CONTEXT_TOKENS = 4
"""Tokens decoded before those that could hold a stop string, so that a character of several tokens is whole."""


class TransformersGenerator:
    """Completes prompts with a causal language model. The tokenizer's directory need not be that of the weights.

    A completion is the text of the new tokens, without special tokens, up to the first stop string. Generation of a row ends
    as soon as it has a stop string. In half precision, completions depend on the size and composition of their batch, so
    callers keep both fixed.
    """

    def __init__(self, model: Any, tokenizer_path: str | os.PathLike[str], decoding: Decoding) -> None:
        self.model = model.eval()
        self._tokenizer = _load_tokenizer(Path(tokenizer_path))
        self._decoding = decoding
        self._ends = _end_tokens(model, self._tokenizer)
        self._pad = next((t for t in (self._tokenizer.pad_token_id, *self._ends) if t is not None), 0)
        sampling = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0} if decoding.temperature else {}
        # Sampling and penalty options of the model's generation_config.json must not take effect.
        model.generation_config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=self._ends or None,
            pad_token_id=self._pad,
            bos_token_id=self._tokenizer.bos_token_id,
            **{"do_sample": False, **sampling},
        )
        self._settings = {
            "generator": "transformers",
            **decoding.to_json(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "tokenizer": _tokenizer_sha256(Path(tokenizer_path)),
            "versions": {"torch": torch.__version__, "transformers": version("transformers")},
        }

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Generator`."""
        return self._settings

    def length(self, prompt: Prompt) -> int:
        """Length in tokens."""
        return len(self._encode(prompt))

    def reset(self) -> None:
        """Drop what was computed with other weights. Each `complete` begins with an empty cache; this drops one that
        transformers keeps on the model.
        """
        for kept in ("_cache", "_compiled_call", "_last_compile_config"):
            if self.model.__dict__.get(kept) is not None:
                setattr(self.model, kept, None)

    def complete(self, prompts: Sequence[Prompt], *, stop: Sequence[str], seed: int) -> list[Completion]:
        """See `Generator`. Raises RecipeError where a prompt and its answer exceed the model's positions."""
        encoded = [self._encode(prompt) for prompt in prompts]
        longest = max(map(len, encoded))
        self._check_positions(longest)
        ids = torch.tensor([[self._pad] * (longest - len(row)) + row for row in encoded], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=self.model.device)
        stopping = _StopStrings(self._tokenizer, stop, longest)
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, stopping_criteria=transformers.StoppingCriteriaList([stopping])
            )
        answers = out[:, longest:].tolist()
        return [self._finish(row, answer, stop, len(encoded[row]), stopping) for row, answer in enumerate(answers)]

    def _finish(self, row: int, answer: list[int], stop: Sequence[str], prompt_tokens: int, stopping: _StopStrings) -> Completion:
        end = next((place for place, token in enumerate(answer) if token in self._ends), None)
        count = len(answer) if end is None else end + 1
        count = min(count, stopping.stopped_at.get(row, count))
        text, stopped = cut(self._tokenizer.decode(answer[:count], skip_special_tokens=True), stop)
        ended = stopped or (end is not None and end < count)
        return Completion(text, "stop" if ended else "length", prompt_tokens, count)

    def _encode(self, prompt: Prompt) -> list[int]:
        if prompt.text is not None:
            ids = self._tokenizer(prompt.text)["input_ids"]
        else:
            if self._tokenizer.chat_template is None:
                raise RecipeError(
                    "the tokenizer has no chat template, which --prompt chat needs; use native_cot, en_cot or direct"
                )
            text = self._tokenizer.apply_chat_template(list(prompt.messages or ()), tokenize=False, add_generation_prompt=True)
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has them
        if not ids:
            raise RecipeError(f"the tokenizer makes no token of the prompt {str(prompt)!r:.80}")
        return list(ids)

    def _check_positions(self, longest: int) -> None:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        asked = longest + self._decoding.max_new_tokens
        if positions is not None and asked > positions:
            raise RecipeError(
                f"a prompt of {longest} tokens and {self._decoding.max_new_tokens} new ones exceed the model's {positions} "
                f"positions; use fewer --exemplars or --max-new-tokens"
            )


class _StopStrings(transformers.StoppingCriteria):
    """Ends each row as soon as its text has a stop string. It looks at text, not at tokens: a stop string can begin and end
    within a token, and in many scripts a character is several tokens.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stop = [ending for ending in stop if ending]
        self._begin = prompt_length
        # A token has at least one byte of text, except special tokens.
        self._window = _CONTEXT_TOKENS + max((len(ending.encode()) for ending in self._stop), default=0)
        self.stopped_at: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002 (transformers' signature)
        if self._stop:
            first = max(self._begin, input_ids.shape[1] - self._window)
            for row, tail in enumerate(input_ids[:, first:].tolist()):
                if row not in self.stopped_at:
                    text = self._tokenizer.decode(tail, skip_special_tokens=True)
                    if any(ending in text for ending in self._stop):
                        self.stopped_at[row] = input_ids.shape[1] - self._begin
        done = [row in self.stopped_at for row in range(input_ids.shape[0])]
        return torch.tensor(done, device=input_ids.device)


def load_model(path: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto") -> Any:
    """Load the causal language model at `path`, on `device` (`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one).

    dtype: `auto` keeps the checkpoint's. Raises RecipeError where there is no such dtype or device, or the checkpoint's
    tensors are not the model's, and FormatError where transformers cannot load it.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if not os.path.exists(os.path.join(path, "config.json")):
        raise RecipeError(f"{os.fspath(path)}: no model to run: there is no config.json in it")
    where = pick_device(device)
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, ImportError) as error:  # an unknown architecture, a damaged config
        raise FormatError(f"transformers cannot load it: {error}", path=os.fspath(path)) from error
    model, report = loaded
    if amiss := [f"{kind} {name}" for kind in ("missing_keys", "mismatched_keys") for name in sorted(map(str, report[kind]))]:
        raise RecipeError(f"{os.fspath(path)}: its tensors are not those of {type(model).__name__}: {'; '.join(amiss[:5])}")
    return model.to(where)


def silence_bars() -> None:
    """Disable transformers' progress bars in this process."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def pick_device(device: str) -> torch.device:
    """The device of that name. Raises RecipeError where it does not exist."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        raise RecipeError(f"--device is {device!r}; expected auto, cpu, cuda or cuda:N") from None
    if where.type not in ("cpu", "cuda"):
        raise RecipeError(f"--device is {device!r}; expected auto, cpu, cuda or cuda:N")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"--device {device}: there is no such GPU here; {torch.cuda.device_count()} were found")
    return where


def check_tokenizer(path: str | os.PathLike[str]) -> None:
    """Raises RecipeError unless a model's directory has a vocabulary."""
    if not any((Path(path) / name).exists() for name in _VOCABULARIES):
        raise RecipeError(
            f"{path}: there is no tokenizer in it (none of {', '.join(sorted(_VOCABULARIES))}); copy the base model's there"
        )


def _load_tokenizer(path: Path) -> Any:
    check_tokenizer(path)
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise FormatError(f"transformers cannot load the tokenizer: {error}", path=str(path)) from error


def _tokenizer_sha256(path: Path) -> str:
    """SHA-256 of the tokenizer's files, including the chat template, as hex."""
    digest = hashlib.sha256()
    for name in sorted(TOKENIZER_FILES):
        if (path / name).exists():
            data = (path / name).read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer, from the model's generation config and from the tokenizer."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(token for token in (*several, tokenizer.eos_token_id) if token is not None))
