"""The protocol of generators, which turn prompts into completions, and how a completion is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from lswap_core.errors import RecipeError
from lswap_eval.mgsm.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are drawn. temperature: 0 is greedy. max_new_tokens: most tokens of an answer, in the model's tokens. seed:
    has no effect on greedy decoding. Raises RecipeError for invalid values.
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
        """Return the fields as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Completion:
    """The completion of one prompt. `text` ends before the first stop string.

    finish_reason: "stop" (an end token or a stop string) or "length" (cut off at max_new_tokens); a server may have others.
    Token counts are None where they are unknown.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Generator(Protocol):
    """Completes prompts. The same prompts in the same batch give the same completions every time, as far as the backend
    allows.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that an output depends on besides weights, prompt and stop strings. Goes into the header of the log."""

    def length(self, prompt: Prompt) -> int:
        """Length of a prompt in the unit by which batches are sorted."""

    def complete(self, prompts: Sequence[Prompt], *, stop: Sequence[str], seed: int) -> list[Completion]:
        """Return one completion for each prompt, in order. seed: of this batch; has no effect on greedy decoding."""


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    r"""Return `text` up to the first stop string, and whether there was one.

    >>> cut("7.\n\nQuestion: how", ["\n\n", "Question:"])
    ('7.', True)
    """
    places = [place for place in (text.find(ending) for ending in stop if ending) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
