"""A log as a generator: it repeats a model's answers without the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lswap_core.errors import RecipeError
from lswap_eval.generate.protocol import Completion
from lswap_eval.log import read_log
from lswap_eval.mgsm.prompts import Prompt


class ReplayGenerator:
    """Completes the prompts that a log has answers to. Raises RecipeError for a log with several samples of a problem."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.header, records = read_log(path)
        self._path = os.fspath(path)
        if any(record.sample for record in records):
            raise RecipeError(f"{self._path} has several samples of a problem; only a log with one of each can be replayed")
        self._answers = {
            record.prompt_sha256: Completion(record.output, record.finish_reason, record.prompt_tokens, record.completion_tokens)
            for record in records
        }

    @property
    def settings(self) -> Mapping[str, Any]:
        """The log's settings, since its answers were generated with them."""
        return self.header.settings

    def length(self, prompt: Prompt) -> int:
        """Length in tokens as counted in the log, or 0."""
        return self._find(prompt).prompt_tokens or 0

    def complete(self, prompts: Sequence[Prompt], *, stop: Sequence[str], seed: int) -> list[Completion]:  # noqa: ARG002
        """See `Generator`. Raises RecipeError for a prompt without an answer in the log."""
        return [self._find(prompt) for prompt in prompts]

    def _find(self, prompt: Prompt) -> Completion:
        try:
            return self._answers[prompt.sha256]
        except KeyError:
            raise RecipeError(
                f"{self._path} has no answer to the prompt {str(prompt)[-80:]!r}; it was made with other prompts or problems"
            ) from None
