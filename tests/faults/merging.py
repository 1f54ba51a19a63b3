"""A merge that things are done to: its sources, the output that an undisturbed run gives, and what must hold of both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from lswap_core import LayerSwap, WriteOptions, lay_out, merge, open_checkpoint
from lswap_core.io.traffic import Traffic
from lswap_core.plan.runs import runs
from tests.build import HANG_SECONDS, Model, Tensor, unmeasured, write_model

LONG = bool(os.environ.get("LSWAP_LONG"))
PROGRAM = (sys.executable, "-m", "lswap_core")
LAYERS = 8
SWAP = LayerSwap(lang_layers=(0, 2, 4), blend_layers=(1, 6))
SWAP_ARGUMENTS = ("--lang-layers", "0,2,4", "--blend-layers", "1,6")
"""Layers of three kinds that alternate, so that there are many short runs."""
Picture = dict[str, tuple[int, int, str]]


@dataclass(frozen=True)
class Merging:
    """Sources below `root`, and the output that they give."""

    root: Path
    expected: Mapping[str, str] = field(repr=False)
    steps: Mapping[str, tuple[str, int, int]] = field(repr=False)
    """Output file, begin and end of each tensor."""
    runs: tuple[tuple[str, ...], ...]
    """Tensors that are done together."""
    sources: Picture = field(repr=False)
    options: WriteOptions = field(default_factory=WriteOptions)

    def with_options(self, options: WriteOptions) -> Merging:
        """The same, with an output made with other options."""
        other = replace(self, options=options)
        out = self.root / "other"
        other.resume(out)
        expected = sums(out)
        shutil.rmtree(out)
        assert {n: s for n, s in expected.items() if "manifest" not in n} == {
            n: s for n, s in self.expected.items() if "manifest" not in n
        }
        return replace(other, expected=expected)

    def argv(self, out: Path, *more: str) -> list[str]:
        """The command that makes it."""
        sources = ["--math", str(self.root / "math"), "--lang", str(self.root / "lang")]
        how = ["--digest", self.options.digest, "--copy-method", self.options.copy_method, "--link", self.options.link]
        return ["merge", *sources, *SWAP_ARGUMENTS, "--out", str(out), "--workers", "2", *how, *more]

    def run(
        self,
        out: Path,
        *more: str,
        before: Sequence[str] = (),
        program: Sequence[str] = PROGRAM,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command as a process, `before` in front of it."""
        argv = [*before, *program, *self.argv(out, *more)]
        env = unmeasured() | dict(environment or {})
        return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=HANG_SECONDS, check=False)

    def resume(self, out: Path) -> dict[str, int]:
        """Go on in this process; returns the bytes by method."""
        traffic = Traffic()
        experts = {"math": self.root / "math", "lang": self.root / "lang"}
        merge(SWAP, **experts, into=out, traffic=traffic, workers=2, options=self.options)  # type: ignore[arg-type]
        return traffic.bytes_by_method

    def check_absent_or_complete(self, out: Path) -> bool:
        """Nothing of the sources was touched, and the output is whole or not there; returns which."""
        assert picture(self.root) == self.sources
        if not os.path.lexists(out):
            return False
        assert sums(out) == self.expected
        return True

    def check_complete(self, out: Path) -> None:
        """It is whole, and nothing is left beside it."""
        assert self.check_absent_or_complete(out)
        assert not partial_of(out).exists()


def make_merging(root: Path, *, width: int = 8, layers: int = LAYERS, shards: int = 3) -> Merging:
    """Two experts with `layers` layers of `15 * width * width` BF16 elements, and what comes of them."""
    for role, seed in (("math", 1), ("lang", 2)):
        model = _model(layers, width, np.random.default_rng(seed))
        names = sorted(model)
        files = [names[k::shards] for k in range(shards)]
        config = {"num_hidden_layers": layers, "rope_theta": 10000.0}
        sidecars = {"tokenizer.json": json.dumps({"model": {"vocab": {"a": 0}}}), "generation_config.json": "{}"}
        write_model(root / role, model, files=files, config=config, sidecars=sidecars)
    before = picture(root)
    merge(SWAP, math=root / "math", lang=root / "lang", into=root / "out", workers=2)
    expected = sums(root / "out")
    tensors = json.loads((root / "out" / "lswap_manifest.json").read_bytes())["tensors"]
    shutil.rmtree(root / "out")
    steps = {name: (entry["file"], entry["begin"], entry["end"]) for name, entry in tensors.items()}
    math, lang = (open_checkpoint(root / role, role=role) for role in ("math", "lang"))
    together = runs(lay_out(SWAP.draft(math=math, lang=lang)).steps)
    return Merging(root, expected, steps, tuple(tuple(step.name for step in run.steps) for run in together), before)


def _model(layers: int, width: int, rng: np.random.Generator) -> Model:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (4 * width, width)}
    for n in range(layers):
        shapes[f"model.layers.{n}.input_layernorm.weight"] = (width,)
        shapes[f"model.layers.{n}.mlp.down_proj.weight"] = (width, 4 * width)
        shapes[f"model.layers.{n}.mlp.gate_proj.weight"] = (4 * width, width)
        shapes[f"model.layers.{n}.mlp.up_proj.weight"] = (4 * width, width)
        shapes[f"model.layers.{n}.self_attn.q_proj.weight"] = (3 * width, width)
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (4 * width, width)}
    model = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32).view(np.uint32) >> 16
        model[name] = Tensor("BF16", shape, values.astype(np.uint16).tobytes())
    return model


def sums(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory."""
    return {
        str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*")) if path.is_file()
    }


def picture(root: Path) -> Picture:
    """Mode, time and content of every source."""
    found: Picture = {}
    for role in ("math", "lang"):
        for name, digest in sums(root / role).items():
            status = (root / role / name).stat()
            found[f"{role}/{name}"] = (status.st_mode, status.st_mtime_ns, digest)
    return found


def partial_of(out: Path) -> Path:
    """Where an output is built."""
    return out.with_name(f".{out.name}.partial")


def journal_events(out: Path) -> list[dict[str, object]]:
    """The whole lines of the journal, read by hand."""
    try:
        lines = (partial_of(out) / ".lswap-journal").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line[17:]) for line in lines]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on the standard error of a command that failed as it should."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lswap-core: error: "), done
    assert done.stdout == "", done
    return line
