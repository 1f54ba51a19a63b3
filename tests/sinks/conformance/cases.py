"""Plans to carry out, with what must come of them according to an oracle, and one command's worth of work on a sink."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xxhash

from lswap_core import LayerSwap, WriteOptions, kernels, lay_out
from lswap_core.checkpoint.catalogue import Checkpoint, Role, TensorRef
from lswap_core.engine import executor
from lswap_core.engine.evaluate import Chunk, Evaluator
from lswap_core.io.ports import Silence, Source
from lswap_core.io.traffic import Traffic
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import Run
from lswap_core.recipe.draft import Draft
from lswap_core.recipe.expressions import Expression
from lswap_core.sinks.places import open_part, open_parts, open_sink
from lswap_core.sources.places import AnySource, Places, open_checkpoint
from lswap_core.verbs.execute import complete
from tests import oracle
from tests.build import Model, Pair, llama_pair, normal, read_file, write_model
from tests.sinks.conformance.places import Disk, Place

MIB = 2**20
COPIED = WriteOptions(copy_method="read_write")
"""The same records on every filesystem."""


@dataclass
class Case:
    """A plan, its sources, and the tensors that its output must have. files: of its output, as the reference implementation
    writes them with `COPIED`: a disk, one thread, the plan's order.
    """

    plan: Plan
    checkpoints: dict[Role, Checkpoint]
    tensors: Model
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def sidecars(self) -> dict[str, bytes]:
        return {sidecar.name: sidecar.read() for sidecar in self.checkpoints[self.plan.primary].sidecars}

    @property
    def read_bytes(self) -> int:
        return self.plan.read_bytes

    def source(self) -> AnySource:
        return Places().source(self.checkpoints)

    def check(self, found: Mapping[str, bytes], digest: str = "auto") -> None:
        """What is found are the files of this output; tensors and their digests are held to the oracle."""
        tensors: Model = {}
        for name, data in found.items():
            if name.endswith(".safetensors"):
                tensors |= read_file(_Bytes(data))
        assert tensors == self.tensors
        manifest = json.loads(found["lswap_manifest.json"])
        assert manifest["tensors"].keys() == self.tensors.keys()
        for name, record in manifest["tensors"].items():
            taken = f"xxh3-128:{xxhash.xxh3_128_hexdigest(self.tensors[name].data)}"
            assert record.get("digest") == (None if digest == "none" else taken), name
        assert {name: found[name] for name in self.sidecars} == self.sidecars
        index = found.get("model.safetensors.index.json")
        names = json.loads(index)["weight_map"] if index is not None else dict.fromkeys(self.tensors, "model.safetensors")
        assert names == {
            name: file for file, data in found.items() if file.endswith(".safetensors") for name in read_file(_Bytes(data))
        }


@dataclass(frozen=True)
class _Bytes:
    """What `tests.build.read_file` reads of a path."""

    data: bytes

    def read_bytes(self) -> bytes:
        return self.data


SWAP = LayerSwap(bottom=2, top=1, transition=1)


def swap_case(
    pair: Pair, swap: LayerSwap = SWAP, shares: Mapping[int, float] | None = None, *, shard_size: int | None = None
) -> Case:
    """A swap of two experts of eight layers."""
    checkpoints: dict[Role, Checkpoint] = {
        "math": open_checkpoint(pair.math, role="math"), "lang": open_checkpoint(pair.lang, role="lang"),
    }  # fmt: skip
    shares = shares or {0: 1.0, 1: 1.0, 2: 0.5, 6: 0.5, 7: 1.0}
    share_of = {name: shares.get(int(name.split(".")[2]), 0.0) for name in pair.math_model if ".layers." in name}
    plan = lay_out(swap.draft(math=checkpoints["math"], lang=checkpoints["lang"]), shard_size)
    return Case(plan, checkpoints, oracle.swapped(pair.math_model, pair.lang_model, share_of))


def _copy_case(root: Path, model: Model, shard_size: int | None = None, **how: Any) -> Case:
    checkpoint = open_checkpoint(write_model(root, model, **how), role="math")
    return Case(lay_out(Draft.of(checkpoint), shard_size), {"math": checkpoint}, model)


def make_cases(root: Path) -> dict[str, Case]:
    """The plans that all implementations carry out."""
    rng = np.random.default_rng(5)
    pair = llama_pair(root / "small", 8)
    empty = {f"t{k}": normal("F32", (k % 3, 5), rng) for k in range(12)}
    found = {
        "a swap": swap_case(pair),
        "a swap in another layout": swap_case(pair, shard_size=2_000),
        "nothing but a header": _copy_case(root / "nothing", {}),
        "shards and tensors of no bytes": _copy_case(
            root / "empty", empty, files=[["t0", "t3"], ["t1", "t2", "t6"], ["t9"], ["t4", "t5", "t7", "t8", "t10", "t11"]]
        ),
        "tensors of no bytes in another layout": _copy_case(root / "laid", empty, 40),
        "tensors larger than an upload part": _large(root / "large"),
    }
    for name, case in found.items():
        place = Disk(root / f"place {name}", None)
        write(place, case, workers=1)
        case.files = place.visible()
        case.check(case.files)
    return found


def _large(root: Path) -> Case:
    """A blended tensor of 17 MiB and a copied one of 11 MiB: S3 is sent 16 at a time, the others 10."""
    models: dict[str, Model] = {}
    for role in ("math", "lang"):
        rng = np.random.default_rng(len(role) + ord(role[0]))
        model = {f"model.layers.{n}.input_layernorm.weight": normal("BF16", (7,), rng) for n in range(3)}
        model["model.layers.1.mlp.up_proj.weight"] = normal("BF16", (17, MIB // 2), rng)
        model["model.norm.weight"] = normal("BF16", (11, MIB // 2), rng)
        models[role] = dict(sorted(model.items()))
        write_model(root / role, models[role], config={"num_hidden_layers": 3})
    pair = Pair(root / "math", root / "lang", models["math"], models["lang"])
    return swap_case(pair, LayerSwap(bottom=1, transition=1), {0: 1.0, 1: 0.5})


class Watched:
    """A source that counts what is read of another, and calls `before` with the number of bytes so far. seed: of the order that
    it asks for; None for the plan's.
    """

    def __init__(self, source: AnySource, *, before: Callable[[int], None] = lambda _: None, seed: int | None = None) -> None:
        self._source, self._before, self._seed = source, before, seed
        self._lock = Lock()
        self.read_bytes = 0

    def arrange(self, runs: Sequence[Run]) -> Sequence[Run]:
        order = list(runs)
        if self._seed is not None:
            random.Random(self._seed).shuffle(order)
        return order

    def expect(self, order: Sequence[Run]) -> None:
        self._source.expect(order)

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        with self._lock:
            before, self.read_bytes = self.read_bytes, self.read_bytes + len(buffer)
        self._before(before)
        self._source.read_into(ref, offset, buffer)

    def descriptor(self, role: Role, file: str) -> int | None:
        return self._source.descriptor(role, file)

    def path_of(self, role: Role, file: str) -> str:
        return self._source.path_of(role, file)

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        self._source.confirm(refs)

    def check(self) -> None:
        self._source.check()


def fail_after(count: int, error: BaseException) -> Callable[[int], None]:
    """For `Watched`: raises once so many bytes were read."""

    def before(read: int) -> None:
        if read >= count:
            raise error

    return before


@dataclass
class RunReport:
    """What one command tells. read_bytes: of its sources. kept, partial: what a sink of whole outputs said at the end."""

    read_bytes: int = 0
    kept: bool | None = None
    partial: str = ""


def write(
    place: Place,
    case: Case,
    *,
    before: Callable[[int], None] = lambda _: None,
    seed: int | None = None,
    workers: int = 2,
    options: WriteOptions = COPIED,
    restart: bool = False,
    evaluator: Callable[[Source], Evaluator] = lambda source: Evaluator(source, kernels),
    report: RunReport | None = None,
    parts: int | None = None,
    only: Sequence[int] | None = None,
    publish: bool = True,
) -> RunReport:
    """What a command does, or all that do parts and the one that publishes. seed: of the order of runs and parts. only: these
    parts.
    """
    report = report or RunReport()
    with case.source() as inner:
        source = Watched(inner, before=before, seed=seed)
        try:
            if place.parts is None:
                _write_whole(place, case, source, workers, options, restart, evaluator(source), report, publish)
            else:
                order = _order(parts or place.parts, seed) if only is None else only
                count = parts or place.parts
                _write_parts(place, case, source, workers, options, restart, evaluator(source), order, count)
                if publish:
                    output = open_parts(place.into, case.plan, sources=())
                    complete(case.plan, output.records, output, case.sidecars, digest=output.digest, workers=workers)
        finally:
            report.read_bytes = source.read_bytes
    return report


def _write_whole(
    place: Place, case: Case, source: Watched, workers: int, options: WriteOptions, restart: bool, evaluator: Evaluator,
    report: RunReport, publish: bool,
) -> None:  # fmt: skip
    traffic = Traffic()
    with closing(open_sink(place.into, sources=(), options=options, traffic=traffic, restart=restart)) as sink:
        try:
            records = _run(case.plan, source, sink, evaluator, workers, options)
            source.check()
            if publish:
                complete(case.plan, records, sink, case.sidecars, digest=options.digest, workers=workers)
        finally:
            report.kept, report.partial = sink.kept, str(sink.partial)


def _write_parts(
    place: Place, case: Case, source: Watched, workers: int, options: WriteOptions, restart: bool, evaluator: Evaluator,
    order: Sequence[int], count: int,
) -> None:  # fmt: skip
    for number in order:
        part = Part(number, count)
        how: Any = {"sources": (), "options": options, "traffic": None, "restart": restart}
        with closing(open_part(place.into, case.plan, part, source, **how)) as sink:
            if not sink.is_done:
                records = _run(case.plan, source, sink, evaluator, workers, options, steps=sink.steps)
                source.check()
                sink.seal(records)


def _order(count: int, seed: int | None) -> list[int]:
    numbers = list(range(count, 0, -1))
    if seed is not None:
        random.Random(seed).shuffle(numbers)
    return numbers


def _run(
    plan: Plan, source: Source, sink: Any, evaluator: Evaluator, workers: int, options: WriteOptions, **what: Any
) -> list[StepRecord]:
    return executor.run(
        plan, source, sink, evaluator, progress=Silence(), workers=workers, digests=options.digest != "none", **what
    )


class Poisoning(Evaluator):
    """Lends every chunk, read-only and between bytes that nobody may read, until the sink's `write` returns. Then they are
    overwritten and given back: BufferError where somebody still holds a part of them.
    """

    guard_bytes = 64

    def __init__(self, source: Source) -> None:
        super().__init__(source, kernels)
        self.lent = 0

    def chunks(self, made_of: Expression) -> Generator[Chunk, None, None]:
        for chunk in super().chunks(made_of):
            begin, end = self.guard_bytes, self.guard_bytes + len(chunk.data)
            memory = bytearray(b"\xee" * (end + self.guard_bytes))
            memory[begin:end] = chunk.data
            view = memoryview(memory)[begin:end].toreadonly()
            self.lent += 1
            yield Chunk(chunk.offset, view, chunk.statistics)
            memory[:] = b"\xaa" * len(memory)
            view.release()
            memory.clear()
