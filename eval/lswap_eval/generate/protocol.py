"""What turns prompts into completions: one small protocol, and how a completion is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from lswap_core.errors import RecipeError
from lswap_eval.mgsm.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are drawn. temperature 0 is greedy; max_new_tokens bounds each answer, in the model's own tokens.

    seed has no part in greedy decoding. RecipeError for values that cannot be.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RecipeError(f"--max-new-tokens is {self.max_new_tokens}; expected 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise RecipeError(f"--temperature is {self.temperature}; expected 0, which is greedy, or more")
        if not 0 <= self.seed < 1 << 32:
            raise RecipeError(f"--seed is {self.seed}; expected 0 to {(1 << 32) - 1}")

    def to_json(self) -> dict[str, Any]:
        """Field by field."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one prompt. `text` ends before the first stop string.

    finish_reason: "stop" (an end token or a stop string) or "length" (cut off at max_new_tokens); a server may have others.
    Token counts are None where nobody counted.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Generator(Protocol):
    """Completes prompts. The same prompts in the same batch give the same completions as often as they are asked for,
    as far as what stands behind it allows.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What an output depends on besides weights, prompt and stop strings: goes into the header of the log."""

    def length(self, prompt: Prompt) -> int:
        """How long a prompt is, in whatever batches should be sorted by."""

    def complete(self, prompts: Sequence[Prompt], *, stop: Sequence[str], seed: int) -> list[Completion]:
        """One completion for each prompt, in their order. seed: of this batch; without meaning for greedy decoding."""


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    r"""`text` up to the first place where a stop string begins, and whether there was one.

    >>> cut("7.\n\nQuestion: how", ["\n\n", "Question:"])
    ('7.', True)
    """
    places = [place for place in (text.find(ending) for ending in stop if ending) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
