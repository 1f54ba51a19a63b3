"""Evaluates many settings of many pairs of experts. Each model generates once, with one resident model in memory.

Everything is known before any model generates: the settings, which of them are the same model, and the log of each.
`runs.json` records that; it and the logs are all that the results are computed from. One setting is also merged to disk, and
must answer as the model in memory did, generation for generation.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from lswap_core import Checkpoint, Draft, execute, lay_out, open_checkpoint
from lswap_core.checkpoint.catalogue import Role
from lswap_core.errors import RecipeError, VerificationError
from lswap_eval.ablate.settings import Setting, nearest_order
from lswap_eval.generate.identity import Identity, identify_draft
from lswap_eval.generate.protocol import Decoding
from lswap_eval.generate.runner import Task, Watcher, answer, cut_batches, generate, make_header
from lswap_eval.log import Header, Log, read_log
from lswap_eval.mgsm.problems import ProblemSet

FORMAT = "lswap-ablation/1"
RUNS_FILE = "runs.json"
CHECK_FILE = "checked.json"
_CHECK_DIRECTORY = "disk-merge"


@dataclass(frozen=True)
class PlannedRun:
    """One setting of one pair. log: relative to the results' directory; settings that are one model share it."""

    math: str
    lang: str
    setting: Setting
    draft: Draft
    identity: Identity
    log: str

    @property
    def described(self) -> dict[str, Any]:
        """The `model` of the log's header. A control belongs to its expert and to no pair."""
        pair = {"math": self.math, "lang": self.lang, "base": ""}.get(str(self.setting.recipe), f"{self.math}+{self.lang}")
        return {**self.identity.to_json(), "setting": self.setting.id, **({"pair": pair} if pair else {})}


@dataclass(frozen=True)
class Pair:
    """A math and a language expert, and their runs in the order of the settings."""

    math: Checkpoint
    lang: Checkpoint
    base: Checkpoint | None
    runs: tuple[PlannedRun, ...]

    @property
    def name(self) -> str:
        """The pair's name in results."""
        return f"{self.math.name}+{self.lang.name}"

    @property
    def sources(self) -> dict[Role, Checkpoint]:
        """The sources, by role."""
        return {source.role: source for source in (self.math, self.lang, self.base) if source is not None}


@dataclass(frozen=True, slots=True)
class Work:
    """What every setting is asked, and how. prompts: the settings of the prompts, for the logs' headers."""

    tasks: Sequence[Task]
    prompts: Mapping[str, Any]
    data: ProblemSet
    decoding: Decoding
    batch_size: int
    device: str = "auto"
    dtype: str = "auto"


class Listener(Protocol):
    """Receives the events of an ablation."""

    def swapped(self, run: PlannedRun, written_bytes: int, seconds: float) -> None:
        """The resident model now holds this run's weights."""

    def watch(self, run: PlannedRun, header: Header) -> Watcher:
        """Return a watcher for the generation of a run, whose log is open."""

    def checked(self, run: PlannedRun, answers: int) -> None:
        """A merge on disk gave the same answers as this run's log."""


def plan_pairs(
    maths: Sequence[str], langs: Sequence[str], base: str | None, settings_of: Callable[[int], Sequence[Setting]]
) -> list[Pair]:
    """Pair every math expert with every language expert. settings_of: returns the settings for a number of layers.

    Reads headers only. Raises MismatchError where two experts cannot be combined, and whatever opening them raises.
    """
    of_math = _named(maths, "math")
    of_lang = _named(langs, "lang")
    below = None if base is None else open_checkpoint(base, role="base")
    pairs = []
    for math in of_math:
        settings = settings_of(math.stack().count)
        for lang in of_lang:
            runs = []
            for setting in settings:
                draft = setting.draft(math=math, lang=lang, base=below)
                whole = draft.swap is None
                name = draft.primary.name if whole else f"{math.name}+{lang.name} {setting.id}"
                identity = identify_draft(draft, name=name)
                stem = (draft.primary.name if whole else setting.id).replace("/", "--")
                log = f"logs/{stem}-{identity.digest[:16]}.jsonl"
                runs.append(PlannedRun(math.name, lang.name, setting, draft, identity, log))
            pairs.append(Pair(math, lang, below, tuple(runs)))
    return _sharing_logs(pairs)


def distinct(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """The first run of each model."""
    return list({run.identity.digest: run for run in reversed(list(runs))}.values())[::-1]


def run_pairs(pairs: Sequence[Pair], work: Work, into: Path, listener: Listener, *, resume: bool, check: bool) -> None:
    """Generate what the logs in `into` lack, then compare one setting with a merge on disk. Writes `runs.json` first.

    Raises RecipeError where `into` exists and may not be resumed, or holds other runs, and VerificationError where the merge
    on disk answers differently.
    """
    described = describe(pairs)
    _claim(into, described, resume=resume)
    done: set[str] = set()
    for _, several in groupby(pairs, key=lambda pair: id(pair.math)):
        _run_on_one_model(list(several), work, into, listener, done)
        gc.collect()  # before the next model is loaded
    if check and not (into / CHECK_FILE).exists():
        run = checked_run(pairs)
        answers = check_against_disk(run, work, into)
        listener.checked(run, answers)


def describe(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The content of `runs.json`."""
    return {
        "format": FORMAT,
        "pairs": [
            {
                "math": pair.math.name,
                "lang": pair.lang.name,
                "settings": [
                    {
                        "id": run.setting.id,
                        "why": run.setting.why,
                        "log": run.log,
                        **run.identity.to_json(),
                    }
                    for run in pair.runs
                ],
            }
            for pair in pairs
        ],
    }


def checked_run(pairs: Sequence[Pair]) -> PlannedRun:
    """Choose the run to compare with a merge on disk: of the first pair, the first with the most kinds of layers."""
    swaps = [run for run in pairs[0].runs if run.draft.swap is not None]
    if not swaps:
        raise RecipeError("no setting swaps a layer; there is nothing to hold against a disk merge")
    return max(swaps, key=lambda run: len({*(run.identity.weights or ())}))


def check_against_disk(run: PlannedRun, work: Work, into: Path) -> int:
    """Merge `run` to disk, generate with what transformers loads from there, and compare with the run's log.

    Returns the number of answers, all equal. Raises VerificationError, which names the answers that are not. Removes the
    merged model, which needs as much disk space as the model has.
    """
    from lswap_eval.generate.local_model import TransformersGenerator, load_model

    place = into / _CHECK_DIRECTORY
    shutil.rmtree(place, ignore_errors=True)  # left by a check that was killed
    execute(lay_out(run.draft), into=place)
    model = load_model(place, device=work.device, dtype=work.dtype)
    generator = TransformersGenerator(model, place, work.decoding)
    logged = {record.key: record for record in read_log(into / run.log)[1]}
    differing, answers = [], 0
    for batch in cut_batches(work.tasks, generator, work.batch_size):
        for record in answer(batch, generator, work.decoding.seed):
            answers += 1
            if logged.get(record.key) != record:
                differing.append(f"{record.language} {record.problem}")
    shutil.rmtree(place)
    if differing:
        raise VerificationError(f"{run.identity.name}: merged to disk it answers otherwise than swapped in memory", differing)
    (into / CHECK_FILE).write_text(json.dumps({"setting": run.setting.id, "identity": run.identity.digest, "answers": answers}))
    return answers


def _run_on_one_model(pairs: Sequence[Pair], work: Work, into: Path, listener: Listener, done: set[str]) -> None:
    """Run the pairs with one math expert on one resident model. done: identities of finished models; this function adds to
    it.
    """
    from lswap_eval.ablate.resident import ResidentModel
    from lswap_eval.generate.local_model import TransformersGenerator, check_tokenizer, load_model

    math = pairs[0].math
    check_tokenizer(math.location)
    model = load_model(math.location, device=work.device, dtype=work.dtype)
    generator = TransformersGenerator(model, math.location, work.decoding)
    with ResidentModel(model, math, pairs[0].sources) as resident:
        for pair in pairs:
            resident.attach(pair.sources)
            todo = [run for run in distinct(pair.runs) if run.identity.digest not in done]
            for run in _in_order(todo, pair):
                header = make_header(run.described, generator, work.prompts, work.data, batch_size=work.batch_size)
                with Log.open(into / run.log, header, resume=True) as log:
                    if not {task.key for task in work.tasks} <= log.done:
                        begun = time.monotonic()
                        written_bytes = resident.swap(run.draft)
                        generator.reset()
                        listener.swapped(run, written_bytes, time.monotonic() - begun)
                    watcher = listener.watch(run, header)
                    generate(work.tasks, generator, log, batch_size=work.batch_size, seed=work.decoding.seed, watcher=watcher)
                done.add(run.identity.digest)


def _in_order(runs: Sequence[PlannedRun], pair: Pair) -> Iterator[PlannedRun]:
    for number in nearest_order(Draft.of(pair.math), [run.draft for run in runs]):
        yield runs[number]


def _claim(into: Path, described: Mapping[str, Any], *, resume: bool) -> None:
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    runs = into / RUNS_FILE
    if runs.exists():
        if not resume:
            raise RecipeError(f"{into} holds runs already; continue them with --resume, or choose another --out")
        if runs.read_text() != text:
            raise RecipeError(f"{runs} is of other experts or settings; use the same, or choose another --out")
    elif into.exists() and {entry.name for entry in into.iterdir()} - {"logs", f".{RUNS_FILE}"}:
        raise RecipeError(f"{into} is there already and holds no runs; choose another --out")
    (into / "logs").mkdir(parents=True, exist_ok=True)
    partial = into / f".{RUNS_FILE}"
    partial.write_text(text)
    os.replace(partial, runs)


def _named(paths: Sequence[str], role: str) -> list[Checkpoint]:
    """Open the experts at these paths, with distinct names: where two directories have the same name, it gets a number."""
    opened = [open_checkpoint(path, role=role) for path in paths]
    names = [checkpoint.name for checkpoint in opened]
    return [
        open_checkpoint(path, role=role, name=f"{checkpoint.name}-{number}") if names.count(checkpoint.name) > 1 else checkpoint
        for number, (path, checkpoint) in enumerate(zip(paths, opened, strict=True), 1)
    ]


def _sharing_logs(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs, where all runs of one model share the log of the first."""
    first: dict[str, str] = {}
    for pair in pairs:
        for run in pair.runs:
            first.setdefault(run.identity.digest, run.log)
    return [replace(pair, runs=tuple(replace(run, log=first[run.identity.digest]) for run in pair.runs)) for pair in pairs]
