"""Who is measured: `cp`, `cat`, this package, hand-written scripts and mergekit, each as a command and a gate."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import gate
from gate import Swap
from harness import Contender
from pair import Pair

COPY, CAT = "`cp -r`", "`cat`, both experts"
MERGEKIT_LINEAR = "mergekit linear"
MERGEKIT = "mergekit==0.1.5"
METHODS = ("auto", "clone", "copy_file_range", "sendfile", "read_write")
DIGESTS = ("auto", "none", "xxh3", "sha256")
_SWAP = Swap()
_UNSWAPPED = Swap(bottom=0, top=0, transition=0)
_HERE = Path(__file__).resolve().parent


def plain(pair: Pair) -> list[Contender]:
    """A copy of one expert, the measure of all things, and reading both."""
    shell = 'cat "$1"/* "$2"/* > /dev/null'
    return [
        Contender(COPY, lambda out: ["cp", "-r", str(pair.math), str(out)], checked(pair, _UNSWAPPED), required=True),
        Contender(CAT, lambda _: ["sh", "-c", shell, "sh", str(pair.math), str(pair.lang)], None, required=True),
    ]


def lswap_argv(command: Sequence[str], pair: Pair, out: Path, *flags: str) -> list[str]:
    """The merge that is measured."""
    swap = ["--bottom", str(_SWAP.bottom), "--top", str(_SWAP.top), "--transition", str(_SWAP.transition)]
    return [*command, "merge", "--math", str(pair.math), "--lang", str(pair.lang), *swap, "--out", str(out), "--quiet", *flags]


def lswap_flags(command: Sequence[str]) -> set[str]:
    """The options of `merge` in this version."""
    said = subprocess.run([*command, "merge", "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z][a-z-]*", said))


def lswap(
    command: Sequence[str], pair: Pair, methods: Sequence[str], digests: Sequence[str], *, link: bool
) -> tuple[list[Contender], dict[str, str]]:
    """Every copy method with every digest, as far as this version has the options; and why others are left out.

    A method of which the machine is incapable (clone on ext4) drops out when it is first run.
    """
    flags = lswap_flags(command)
    wanted = {
        f"lswap_core, {method}, digest {digest}": ["--copy-method", method, "--digest", digest]
        for method in methods
        for digest in digests
    }
    if link:
        wanted["lswap_core, hard links"] = ["--link", "hard"]
    found, left_out = [], {}
    for name, options in wanted.items():
        if missing := [option for option in options if option.startswith("--") and option not in flags]:
            left_out[name] = f"this lswap_core has no {' and no '.join(missing)}"
        else:
            argv = partial(_lswap_into, command, pair, options)
            found.append(Contender(name, argv, checked(pair), required="auto" in options[:2]))
    if not any(contender.required for contender in found):
        found.insert(0, Contender("lswap_core", partial(_lswap_into, command, pair, []), checked(pair), required=True))
    return found, left_out


def _lswap_into(command: Sequence[str], pair: Pair, options: Sequence[str], out: Path) -> list[str]:
    return lswap_argv(command, pair, out, *options)


def by_hand(pair: Pair) -> tuple[list[Contender], dict[str, str]]:
    """The scripts of `scripts.py`, those whose libraries are here."""
    found, left_out = [], {}
    for name, needed in (
        ("numpy", ["numpy"]),
        ("safetensors", ["safetensors", "torch"]),
        ("transformers", ["transformers", "torch"]),
    ):
        if missing := [package for package in needed if find_spec(package) is None]:
            left_out[f"{name} script"] = f"{' and '.join(missing)} not installed"
        else:
            found.append(Contender(f"{name} script", partial(_script_into, pair, name), checked(pair)))
    return found, left_out


def _script_into(pair: Pair, name: str, out: Path) -> list[str]:
    return [sys.executable, str(_HERE / "scripts.py"), name, str(pair.math), str(pair.lang), str(out)]


def mergekit(pair: Pair, venv: Path | None, place: Path) -> tuple[list[Contender], dict[str, str]]:
    """The same merge as `linear`, with a weight per layer and expert; the same from slices that name only the experts they
    need; and `passthrough`, which stacks slices and cannot blend (so without a transition zone, and with the embeddings and
    the norm of the slices they are next to). Configurations are written to `place`.
    """
    names = (MERGEKIT_LINEAR, "mergekit linear, slices", "mergekit passthrough")
    program = venv and venv.absolute() / "bin" / "mergekit-yaml"
    if program is None or not program.exists():
        return [], dict.fromkeys(names, "not installed; --mergekit-venv PATH --install-peers puts it there")
    layers = gate.layer_count(pair.math)
    checks = (
        checked(pair, exact=False),
        checked(pair, Swap(outside=1.0), exact=False),
        checked(pair, Swap(transition=0, outside=1.0)),
    )
    found = []
    configs = (_linear(pair, layers), _slices(pair, layers, _SWAP), _slices(pair, layers, Swap(transition=0)))
    for name, check, config in zip(names, checks, configs, strict=True):
        path = place / f"{name.replace(', ', '-').replace(' ', '-')}.yaml"
        path.write_text(json.dumps(config, indent=1) + "\n")  # JSON is YAML
        argv = partial(_mergekit_into, str(program), str(path))
        found.append(Contender(name, argv, check, environment={"HF_HUB_OFFLINE": "1"}))
    return found, {}


def _mergekit_into(program: str, config: str, out: Path) -> list[str]:
    return [program, config, str(out), "--out-shard-size", "500M"]


def _linear(pair: Pair, layers: int) -> dict[str, object]:
    """A list is a gradient over the layers: with as many values as layers it is a value for each."""
    shares = [_SWAP.share(f"model.layers.{layer}.", layers) for layer in range(layers)]
    outside = ["embed_tokens", "model.norm"]
    models = [
        {
            "model": str(path),
            "parameters": {"weight": [*({"filter": part, "value": other} for part in outside), {"value": weights}]},
        }
        for path, other, weights in ((pair.math, 1.0, [1 - share for share in shares]), (pair.lang, 0.0, shares))
    ]
    return {"merge_method": "linear", "dtype": "bfloat16", "base_model": str(pair.math), "models": models}


def _slices(pair: Pair, layers: int, swap: Swap) -> dict[str, object]:
    cuts = sorted({0, swap.bottom, swap.bottom + swap.transition, layers - swap.top - swap.transition, layers - swap.top, layers})
    slices = []
    for begin, end in pairwise(cuts):
        share = swap.share(f"model.layers.{begin}.", layers)
        weights = {pair.math: 1 - share, pair.lang: share}
        used = {path: weight for path, weight in weights.items() if weight}
        sources = [
            {"model": str(path), "layer_range": [begin, end], "parameters": {"weight": weight}} for path, weight in used.items()
        ]
        slices.append({"sources": sources if swap.transition else [{**source, "parameters": {}} for source in sources]})
    return {"merge_method": "linear" if swap.transition else "passthrough", "dtype": "bfloat16", "slices": slices}


def install_mergekit(venv: Path) -> None:
    """An environment of its own, with the versions that the tests are pinned to where both need a package: torch first, lest
    mergekit bring a build of gigabytes.
    """
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pins = _HERE.parent / "constraints.txt"
    for package in ("torch", MERGEKIT):
        subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "-c", str(pins), package], check=True)


def versions(venv: Path | None) -> dict[str, str]:
    """Of everything that has a part in the figures."""
    found = {}
    for package in ("lswap-core", "numpy", "safetensors", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    said = subprocess.run(["cp", "--version"], capture_output=True, text=True, check=True).stdout
    found["cp"] = said.splitlines()[0].rsplit(" ", 1)[-1]
    if venv is not None and (venv / "bin" / "python").exists():
        code = "from importlib.metadata import version; print(*map(version, ('mergekit', 'torch', 'transformers')))"
        argv = [str(venv / "bin" / "python"), "-c", code]
        mergekit_, torch, transformers = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        found["mergekit"] = f"{mergekit_} (torch {torch}, transformers {transformers})"
    return found


def checked(pair: Pair, swap: Swap = _SWAP, *, exact: bool = True) -> Callable[[Path], list[str]]:
    """The gate for what should be this swap of the pair."""
    return partial(gate.problems, math=pair.math, lang=pair.lang, swap=swap, exact=exact)
