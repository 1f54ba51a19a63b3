"""The commands that generate: `run`, `ablate`, `sweep`. Importing this module is cheap; dependencies load when a command
runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lswap_core.errors import RecipeError
from lswap_core.options import OUTSIDE_CHOICES
from lswap_core.text.plain import counted, format_size, one_line, parse_layers

if TYPE_CHECKING:
    from lswap_eval.ablate.pairs import Pair, PlannedRun
    from lswap_eval.ablate.settings import Setting
    from lswap_eval.generate.protocol import Decoding, Generator
    from lswap_eval.generate.runner import Task, Watcher
    from lswap_eval.log import Header
    from lswap_eval.mgsm.problems import ProblemSet

_KEY_VARIABLE = "OPENAI_API_KEY"


def add_commands(commands: Any) -> None:
    """Add the commands to argparse's subparsers."""
    run = commands.add_parser("run", help="ask one model the problems and log what it says")
    run.add_argument("--model", metavar="DIR", help="the model's directory; with --server, the checkpoint that it serves")
    run.add_argument("--server", metavar="URL", help="an OpenAI-compatible server instead, as http://localhost:8000/v1")
    run.add_argument("--served-model", metavar="NAME", help="what the server calls the model (default: the first that it lists)")
    run.add_argument(
        "--identity", metavar="NAME", help="with --server and no --model: a name for the weights that no other weights have"
    )
    run.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at a time (default: 8)")
    run.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one request (default: 600)")
    run.add_argument("--replay", metavar="LOG", help="say again what this log says, instead of a model")
    run.add_argument("--out", metavar="LOG", required=True, help="where to write the log")
    run.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each problem (default: 1)")
    run.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="for --temperature above 0 (default: 0)")
    _add_asking(run)
    run.set_defaults(run=_run)

    ablate = commands.add_parser("ablate", help="the table of settings, for every pair of a math and a language expert")
    _add_pairs(ablate)
    sizes = ablate.add_argument_group("the default setting (5, 1, 1, 2 of 32 layers, scaled to models with fewer)")
    for name, what in (("bottom", "layers from lang at the bottom"), ("top", "layers from lang at the top")):
        sizes.add_argument(f"--{name}", type=int, metavar="N", help=what)
    sizes.add_argument("--transition", type=int, metavar="N", help="blended layers at each seam")
    _add_asking(ablate)
    ablate.set_defaults(run=_ablate)

    sweep = commands.add_parser("sweep", help="every setting of a grid of bottom, top and transition")
    _add_pairs(sweep)
    for name, example in (("bottom", "0-6"), ("top", "0-3"), ("transition", "0,1")):
        sweep.add_argument(f"--{name}", metavar="SET", required=True, help=f"numbers of layers, as {example}")
    _add_asking(sweep)
    sweep.set_defaults(run=_sweep)


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--math", metavar="DIR[,DIR...]", required=True, help="math experts")
    parser.add_argument("--lang", metavar="DIR[,DIR...]", required=True, help="language experts, each for every math expert")
    parser.add_argument("--base", metavar="DIR", help="what they were tuned from, as a control")
    parser.add_argument("--out", metavar="DIR", required=True, help="where to write logs and results")
    parser.add_argument("--half", choices=("dev", "test"), help="only this half of the problems (default: both)")
    parser.add_argument("--no-check", action="store_true", help="do not compare one setting with a real merge on disk")
    parser.add_argument("--dry-run", action="store_true", help="show the settings and stop")
    parser.add_argument("--weight", type=float, metavar="W", help="lang's weight in blended layers (default: 0.5)")
    for part in ("embed", "norm", "head"):
        parser.add_argument(f"--{part}", choices=OUTSIDE_CHOICES, help=f"the source of the {part} in every swap (default: math)")


def _add_asking(parser: argparse.ArgumentParser) -> None:
    asking = parser.add_argument_group("what is asked, and how")
    asking.add_argument("--data", metavar="DIR|hub", required=True, help="MGSM's files, or `hub` to download them")
    asking.add_argument("--languages", metavar="LIST", required=True, help="as sw,te,bn,ja")
    asking.add_argument(
        "--prompt", choices=("native_cot", "en_cot", "direct", "chat"), default="native_cot", help="(default: native_cot)"
    )
    asking.add_argument("--exemplars", type=int, default=8, metavar="N", help="worked examples ahead of the problem (default: 8)")
    asking.add_argument("--limit", type=int, metavar="N", help="only so many problems of each language, always the same ones")
    asking.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of each answer (default: 512)")
    asking.add_argument("--batch-size", type=int, default=8, metavar="N", help="fixed and recorded (default: 8)")
    asking.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto takes a GPU where there is one (default: auto)")
    asking.add_argument("--dtype", default="auto", help="auto, bfloat16, float16, float32 (default: auto, the checkpoint's)")
    asking.add_argument("--resume", action="store_true", help="continue what an earlier run left unfinished")
    asking.add_argument("--quiet", action="store_true", help="print errors only")


def _run(arguments: argparse.Namespace) -> int:
    from lswap_eval.generate.runner import generate, make_header
    from lswap_eval.log import Log, read_log

    data, tasks, prompts = _ask(arguments, samples=arguments.samples)
    decoding = _decoding(arguments, temperature=arguments.temperature, seed=arguments.seed)
    if not arguments.resume and os.path.lexists(arguments.out):  # before a model is loaded
        raise RecipeError(f"{arguments.out} is there already; continue it with --resume, or choose another name")
    with ExitStack() as opened:
        model, generator = _choose_model(arguments, decoding, opened)
        header = make_header(model, generator, prompts, data, batch_size=arguments.batch_size)
        log = opened.enter_context(Log.open(arguments.out, header, resume=arguments.resume))
        watcher = _watcher(arguments, str(model.get("name", arguments.out)), header, Path(arguments.out))
        generate(tasks, generator, log, batch_size=arguments.batch_size, seed=decoding.seed, watcher=watcher)
    if not arguments.quiet:
        _say(f"{arguments.out}: {counted(len(read_log(arguments.out)[1]), 'answer')}")
    return 0


def _choose_model(arguments: argparse.Namespace, decoding: Decoding, opened: ExitStack) -> tuple[dict[str, Any], Generator]:
    """Choose the model: the log header's entry, and the generator. What must be closed goes to `opened`."""
    if [arguments.server, arguments.replay].count(None) == 0:
        raise RecipeError("--server and --replay are both given; choose one")
    if arguments.replay is not None:
        from lswap_eval.generate.replay import ReplayGenerator

        replay = ReplayGenerator(arguments.replay)
        return dict(replay.header.model), replay
    if arguments.model is None and (arguments.server is None or arguments.identity is None):
        raise RecipeError("no model is named; give --model DIR, or --server URL with --model DIR or --identity NAME")
    from lswap_eval.generate.identity import identify, identify_name

    model = identify_name(arguments.identity) if arguments.model is None else identify(arguments.model)
    if arguments.server is not None:
        from lswap_eval.generate.server import HttpGenerator

        key = os.environ.get(_KEY_VARIABLE)
        served = {"model": arguments.served_model, "concurrency": arguments.concurrency, "timeout_s": arguments.timeout}
        return model.to_json(), opened.enter_context(HttpGenerator(arguments.server, decoding, key=key, **served))
    from lswap_eval.generate.local_model import TransformersGenerator, check_tokenizer, load_model, silence_bars

    check_tokenizer(arguments.model)  # before a large model is loaded
    silence_bars()
    loaded = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    return model.to_json(), TransformersGenerator(loaded, arguments.model, decoding)


def _ablate(arguments: argparse.Namespace) -> int:
    from lswap_eval.ablate.settings import Sizes, ablation

    def settings_of(layer_count: int) -> list[Setting]:
        scaled = Sizes().scaled(layer_count)
        seam = arguments.transition
        sizes = Sizes(
            scaled.bottom if arguments.bottom is None else arguments.bottom,
            scaled.transition_bottom if seam is None else seam,
            scaled.transition_top if seam is None else seam,
            scaled.top if arguments.top is None else arguments.top,
        )
        return ablation(layer_count, sizes, base=arguments.base is not None, **_outside(arguments))

    return _generate_pairs(arguments, settings_of, reference="default")


def _sweep(arguments: argparse.Namespace) -> int:
    from lswap_eval.ablate.settings import Setting, sweep

    bottoms, tops, transitions = (parse_layers(getattr(arguments, name)) for name in ("bottom", "top", "transition"))
    misfits: dict[str, None] = {}

    def settings_of(layer_count: int) -> list[Setting]:
        points, unfit = sweep(layer_count, bottoms, tops, transitions, **_outside(arguments))
        misfits.update(dict.fromkeys(unfit))
        controls = [Setting("math", "math", "control: the math expert"), Setting("lang", "lang", "control: the language expert")]
        base = [Setting("base", "base", "control: what both experts were tuned from")] if arguments.base else []
        return [*base, *controls, *points]

    def left_out() -> None:
        if misfits and not arguments.quiet:
            print(f"left out, with more layers than the model has: {', '.join(misfits)}", file=sys.stderr)

    return _generate_pairs(arguments, settings_of, reference="math", planned=left_out)


def _generate_pairs(
    arguments: argparse.Namespace,
    settings_of: Callable[[int], Sequence[Setting]],
    *,
    reference: str,
    planned: Callable[[], None] = lambda: None,
) -> int:
    from lswap_eval.ablate.pairs import Work, plan_pairs, run_pairs
    from lswap_eval.ablate.results import write_ablation
    from lswap_eval.generate.local_model import silence_bars

    data, tasks, prompts = _ask(arguments, half=arguments.half)
    pairs = plan_pairs(_paths(arguments, "math"), _paths(arguments, "lang"), arguments.base, settings_of)
    planned()
    if not arguments.quiet:
        _show_settings(pairs)
    if arguments.dry_run:
        return 0
    silence_bars()
    work = Work(tasks, prompts, data, _decoding(arguments), arguments.batch_size, arguments.device, arguments.dtype)
    into = Path(arguments.out)
    run_pairs(pairs, work, into, _Teller(arguments, into), resume=arguments.resume, check=not arguments.no_check)
    write_ablation(pairs, into, data, reference)
    if not arguments.quiet:
        _say(f"{into}: results.md, results.csv, results.json, accuracy.svg, flips.html, and the logs in logs")
    return 0


class _Teller:
    """A `lswap_eval.ablate.pairs.Listener` that reports on stderr."""

    def __init__(self, arguments: argparse.Namespace, into: Path) -> None:
        self._arguments = arguments
        self._into = into

    def swapped(self, run: PlannedRun, written_bytes: int, seconds: float) -> None:
        if not self._arguments.quiet:
            print(f"{one_line(run.identity.name)}: {format_size(written_bytes)} swapped in {seconds:.2f} s", file=sys.stderr)

    def watch(self, run: PlannedRun, header: Header) -> Watcher:
        return _watcher(self._arguments, run.identity.name, header, self._into / run.log)

    def checked(self, run: PlannedRun, answers: int) -> None:
        if not self._arguments.quiet:
            print(f"{one_line(run.identity.name)}: merged to disk it gives the same {answers} answers", file=sys.stderr)


def _show_settings(pairs: Sequence[Pair]) -> None:
    from lswap_eval.ablate.pairs import distinct

    for pair in pairs:
        _say(f"{pair.name}: {counted(len(pair.runs), 'setting')}, {counted(len(distinct(pair.runs)), 'model')}")
        first: dict[str, str] = {}
        for run in pair.runs:
            same = first.setdefault(run.identity.digest, run.setting.id)
            weights = "as it is" if run.draft.swap is None else " ".join(f"{weight:g}" for weight in run.draft.swap.weights)
            made_of = weights if same == run.setting.id else f"the same model as {same}"
            _say(f"  {run.setting.id}: {made_of} ({run.setting.why})")
        if (swap := next((run.draft.swap for run in pair.runs if run.draft.swap is not None), None)) is not None:
            outside = ", ".join(f"{part} {giver}" for part, (giver, tensors) in swap.outside.items() if tensors)
            _say(f"  in every swap, outside the layers: {outside}")


def _ask(
    arguments: argparse.Namespace, *, samples: int = 1, half: str | None = None
) -> tuple[ProblemSet, list[Task], dict[str, Any]]:
    """Return the data, the tasks, and the options that a log's header keeps."""
    from lswap_eval.generate.runner import make_tasks
    from lswap_eval.mgsm.download import load_problems
    from lswap_eval.mgsm.prompts import stop_strings

    data = load_problems(arguments.data)
    languages = [language.strip() for language in arguments.languages.split(",") if language.strip()]
    asked = {"style": arguments.prompt, "exemplars": arguments.exemplars, "limit": arguments.limit}
    tasks = make_tasks(data, languages, **asked, half=half, samples=samples)
    prompts = {"prompt": arguments.prompt, "exemplars": arguments.exemplars, "limit": arguments.limit, "samples": samples}
    # of every language, so that a log can be resumed with more of them
    stops = {language: list(stop_strings(data, language, arguments.prompt)) for language in sorted(data.exemplars)}
    return data, tasks, prompts | ({"half": half} if half else {}) | {"stop": stops}


def _decoding(arguments: argparse.Namespace, **more: Any) -> Decoding:
    from lswap_eval.generate.protocol import Decoding

    return Decoding(arguments.max_new_tokens, **more)


def _outside(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        name: getattr(arguments, name) for name in ("embed", "norm", "head", "weight") if getattr(arguments, name) is not None
    }


def _paths(arguments: argparse.Namespace, role: str) -> list[str]:
    paths = [path for path in getattr(arguments, role).split(",") if path]
    if not paths:
        raise RecipeError(f"--{role} names no directory")
    return paths


def _watcher(arguments: argparse.Namespace, what: str, header: Header, path: Path) -> Watcher:
    from lswap_eval.cli.watching import ProgressWatcher
    from lswap_eval.generate.runner import Unwatched
    from lswap_eval.log import read_log

    return Unwatched() if arguments.quiet else ProgressWatcher(what, header, read_log(path)[1])


def _say(line: str) -> None:
    print(one_line(line))
