"""Asks a generator all problems in all languages and logs the answers. An interruption loses only the current batch.

Batches are cut before the log is consulted, and a batch that misses a record is generated whole. So each answer comes from
the same batch whether the run was interrupted or not, and a resumed log equals that of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lswap_core.errors import RecipeError
from lswap_eval.generate.protocol import Generator
from lswap_eval.log import Header, Key, Log, Record
from lswap_eval.mgsm.problems import ProblemSet
from lswap_eval.mgsm.prompts import Prompt, build_prompt, stop_strings

ORDER = "language by language as asked for; within one, longest prompt first, then problem, then sample"


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to generate. stop: strings that end it."""

    language: str
    problem: int
    sample: int
    prompt: Prompt
    stop: tuple[str, ...]

    @property
    def key(self) -> Key:
        """The key of its record; see `Record.key`."""
        return self.language, self.problem, self.sample


class Watcher(Protocol):
    """Receives records as they are written."""

    def begin(self, keys: Sequence[Key], known: Sequence[Key]) -> None:
        """Begin. keys: of all tasks. known: of those that the log already has."""

    def advance(self, records: Sequence[Record]) -> None:
        """These records were just written."""

    def end(self) -> None:
        """The run has ended."""


class Unwatched:
    """A watcher that shows nothing."""

    def begin(self, keys: Sequence[Key], known: Sequence[Key]) -> None:
        """See `Watcher`."""

    def advance(self, records: Sequence[Record]) -> None:
        """See `Watcher`."""

    def end(self) -> None:
        """See `Watcher`."""


def make_tasks(
    data: ProblemSet,
    languages: Sequence[str],
    *,
    style: str,
    exemplars: int,
    limit: int | None = None,
    half: str | None = None,
    samples: int = 1,
) -> list[Task]:
    """Make the tasks: see `ProblemSet.choose` and `build_prompt`. samples: answers to each problem."""
    if samples < 1:
        raise RecipeError(f"--samples is {samples}; expected 1 or more")
    return [
        Task(
            problem.language,
            problem.number,
            sample,
            build_prompt(data, problem, style, exemplars),
            stop_strings(data, problem.language, style),
        )
        for problem in data.choose(languages, limit, half)
        for sample in range(samples)
    ]


def cut_batches(tasks: Iterable[Task], generator: Generator, batch_size: int) -> list[list[Task]]:
    """Cut the tasks into batches of one language each, in the order that `ORDER` states. All but a language's last are full.

    So neither another language nor a resumed run changes the content of a batch.
    """
    if batch_size < 1:
        raise RecipeError(f"--batch-size is {batch_size}; expected 1 or more")
    by_language: dict[str, list[Task]] = {}
    for task in tasks:
        by_language.setdefault(task.language, []).append(task)
    batches = []
    for several in by_language.values():
        length = {task.key: generator.length(task.prompt) for task in several}
        ordered = sorted(several, key=lambda task: (-length[task.key], task.problem, task.sample))
        batches += [ordered[begin : begin + batch_size] for begin in range(0, len(ordered), batch_size)]
    return batches


def make_header(
    model: Mapping[str, Any], generator: Generator, settings: Mapping[str, Any], data: ProblemSet, *, batch_size: int
) -> Header:
    """The header of a run. settings: of the prompts."""
    made_by = {**settings, **generator.settings, "batch_size": batch_size, "order": ORDER}
    return Header(model, made_by, data.sha256, data.golds())


def generate(tasks: Iterable[Task], generator: Generator, log: Log, *, batch_size: int, seed: int, watcher: Watcher) -> None:
    """Append a record for every task that the log lacks."""
    batches = cut_batches(tasks, generator, batch_size)
    done = log.done
    keys = [task.key for batch in batches for task in batch]
    watcher.begin(keys, [key for key in keys if key in done])
    try:
        for batch in batches:
            if all(task.key in done for task in batch):
                continue
            records = [record for record in answer(batch, generator, seed) if record.key not in done]
            log.append(records)
            watcher.advance(records)
    finally:
        watcher.end()


def answer(batch: Sequence[Task], generator: Generator, seed: int) -> Iterator[Record]:
    """Return the records of one batch."""
    completions = generator.complete([task.prompt for task in batch], stop=batch[0].stop, seed=batch_seed(seed, batch))
    for task, completion in zip(batch, completions, strict=True):
        yield Record(
            *task.key,
            task.prompt.sha256,
            completion.text,
            completion.finish_reason,
            completion.prompt_tokens,
            completion.completion_tokens,
        )


def batch_seed(seed: int, batch: Sequence[Task]) -> int:
    """A seed of 32 bits for a batch. It is the same when the run is resumed."""
    named = f"{seed} {batch[0].key}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:4], "little")
