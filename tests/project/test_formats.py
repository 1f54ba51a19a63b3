"""docs/formats.md against the documents themselves: every field that is written is described, and nothing else is.

The page's tables are read as a schema. Real documents of every format are written and walked with it. So a field that is added,
removed or renamed, or whose type changes, fails here until the page says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lswap_core import (
    Draft,
    LayerSwap,
    Part,
    Soup,
    TaskSum,
    WriteOptions,
    apply_part,
    execute,
    lay_out,
    merge,
    named,
    open_checkpoint,
)
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.cli.main import main
from lswap_eval import compare, read_runs
from lswap_eval.ablate.pairs import describe, plan_pairs
from lswap_eval.ablate.settings import Sizes, ablation
from lswap_eval.log import Header, Log, Record
from tests.buckets import Store, empty, large_pair, moto_store, use
from tests.build import Pair, file_bytes, llama_like, llama_pair, normal, write_model

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "formats.md").read_text()
FORMAT = re.compile(r"lswap-[a-z-]+/\d+")
SWAP = LayerSwap(bottom=2, top=1, transition=1)
TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,), "whole number": (int,), "number": (int, float), "boolean": (bool,), "object": (dict,), "list": (list,),
    "null": (type(None),),
}  # fmt: skip
Field = tuple[str, str, str]
"""Path, type and when, as a row of a table has them."""


def sections() -> dict[str, list[Field]]:
    """The rows of every table of fields, by the title above them."""
    found: dict[str, list[Field]] = {}
    for title, text in re.findall(r"^###? (.*)\n((?:(?!^##).*\n)*)", PAGE, re.M):
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|", text, re.M)
        if rows and "| field | type | when | meaning |" in text:
            found[title.strip("`")] = [(path, kind.strip(), when.strip()) for path, kind, when in rows]
    return found


SECTIONS = sections()
BY_ANCHOR = {title.lower().replace(" ", "-"): title for title in SECTIONS}


class Walk:
    """Documents of one format, walked with the page's fields. found: paths that were seen in any of them."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.found: set[str] = set()

    def see(self, document: Any, *, first: str = "always") -> None:
        """One document. first: `when` of what must be there, where a format has several kinds of lines."""
        self._see(document, self.title, "", first)

    def missing(self) -> set[str]:
        """Fields of this format that no document had."""
        return {path for path, _, _ in SECTIONS[self.title]} - {path for path in self.found if not path.startswith("#")}

    def _see(self, value: Any, title: str, at: str, always: str = "always") -> None:
        rows = {path: (kind, when) for path, kind, when in SECTIONS[title]}
        keys: list[tuple[str, Any]] = []
        if isinstance(value, dict):
            keys = [(f"{at}.{key}" if at else key, inner) for key, inner in value.items()]
            keys = [(path if path in rows else f"{at}.*" if at else "*", inner) for path, inner in keys]
        elif isinstance(value, list):
            keys = [(f"{at}[{n}]" if f"{at}[{n}]" in rows else f"{at}[]", inner) for n, inner in enumerate(value)]
            keys = [(path, inner) for path, inner in keys if path in rows or isinstance(inner, dict)]
        present = {path for path, _ in keys}
        if isinstance(value, dict | list) and (value or isinstance(value, dict)):
            children = {p for p in rows if self._parent(p) == at and not p.endswith(("*", "[]"))}
            absent = {p for p in children - present if rows[p][1] == always}
            assert not absent, f"{self.title}: {title} lacks {sorted(absent)}, which the page says is always there"
        for path, inner in keys:
            assert path in rows, f"{self.title}: {title} has {path}, of which the page says nothing: {inner!r:.80}"
            self.found.add(path if title == self.title else f"#{title}:{path}")
            self._check(inner, rows[path][0], title, path)

    def _check(self, value: Any, kind: str, title: str, path: str) -> None:
        if kind == "-":
            return
        where = f"{self.title}: {title} {path}"
        if link := re.match(r"\[[^\]]*\]\(#([^)]*)\)( or null)?$", kind):
            if value is None:
                assert link[2], f"{where} is null"
            else:
                self._see(value, BY_ANCHOR[link[1]], "")
            return
        allowed = tuple(t for one in kind.split(" or ") for t in TYPES[one])
        assert isinstance(value, allowed), f"{where} is {value!r:.60}, not {kind}"
        assert not isinstance(value, bool) or bool in allowed, f"{where} is {value!r:.60}, not {kind}"
        if isinstance(value, dict | list):
            self._see(value, title, path)

    @staticmethod
    def _parent(path: str) -> str:
        """Of `a.b[][0]` it is `a.b[]`."""
        return re.sub(r"(\[\d*\]|\.?[^.\[\]]+)$", "", path)


def exhausted(walk: Walk) -> None:
    assert not walk.missing(), f"no document of {walk.title} had {sorted(walk.missing())}"


def sources() -> Iterator[tuple[Path, str]]:
    for folder in ("lswap_core", "eval/lswap_eval"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, path.read_text()


def test_every_format_in_the_source_has_its_section_and_none_is_invented() -> None:
    in_source = {name for _, text in sources() for name in FORMAT.findall(text)}
    assert in_source == {title for title in SECTIONS if FORMAT.fullmatch(title)}
    assert in_source == set(re.findall(r"^\| \[`(lswap-[a-z-]+/\d+)`\]", PAGE, re.M))


def test_links_within_the_page_lead_somewhere() -> None:
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= anchors


# Documents of a merge on a disk


def adapted(root: Path, base: Path) -> str:
    """A base and a LoRA adapter of one matrix in each layer."""
    rng = np.random.default_rng(1)
    tensors = {}
    for number in range(8):
        stem = f"base_model.model.model.layers.{number}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = normal("F32", (2, 8), rng)
        tensors[f"{stem}.lora_B.weight"] = normal("F32", (8, 2), rng)
    root.mkdir()
    (root / "adapter_model.safetensors").write_bytes(file_bytes(tensors, {"format": "pt"}))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (root / "adapter_config.json").write_text(json.dumps(config))
    return f"{base}+{root}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return llama_pair(tmp_path_factory.mktemp("formats") / "pair")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    model = llama_like(8, rng)
    config = {"num_hidden_layers": 8, "rope_theta": 10000.0, "tie_word_embeddings": False}
    tokenizer = {"tokenizer.json": json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []})}
    return write_model(tmp_path_factory.mktemp("base") / "base", model, config=config, sidecars=tokenizer)


@pytest.fixture(scope="module")
def plans(pair: Pair, base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Plans with every kind of expression: copies, casts, low-rank changes, blends, averages, task vectors."""
    root = tmp_path_factory.mktemp("plans")
    math, lang = (open_checkpoint(path, role=role) for path, role in ((pair.math, "math"), (pair.lang, "lang")))
    origin = open_checkpoint(base, role="base")
    low_rank = open_checkpoint(adapted(root / "adapter", pair.lang), role="lang")
    drafts = [
        SWAP.draft(math=math, lang=lang),
        SWAP.draft(math=math, lang=low_rank),
        Draft.of(math).cast(named("*.norm.weight"), DTYPES["F32"]),
        TaskSum("ties", density=0.5).draft(math=math, lang=lang, base=origin),
        Soup().draft(math, open_checkpoint(pair.lang, role="code"), low_rank),
    ]
    return [lay_out(draft, size) for draft, size in zip(drafts, (None, 500_000, None, None, None), strict=True)]


def test_plans(plans: list[Any]) -> None:
    walk = Walk("lswap-plan/1")
    for plan in plans:
        walk.see(json.loads(plan.to_json()))
    exhausted(walk)
    expressions = {path for path, _, _ in SECTIONS["An expression"]}
    assert expressions == {path.partition(":")[2] for path in walk.found if path.startswith("#An expression:")}


def test_manifests(plans: list[Any], pair: Pair, base: Path, tmp_path: Path) -> None:
    walk = Walk("lswap-manifest/1")
    for number, plan in enumerate(plans):
        execute(plan, into=tmp_path / str(number), options=WriteOptions(digest="sha256"))
        walk.see(json.loads((tmp_path / str(number) / "lswap_manifest.json").read_text()))
    merge(LayerSwap(bottom=2, top=1, transition=1, ramp="mav"), math=pair.math, lang=pair.lang, base=base, into=tmp_path / "mav")
    walk.see(json.loads((tmp_path / "mav" / "lswap_manifest.json").read_text()))
    assert "#A swap record:base" in walk.found
    # A revision is there for a source on the hub; tests/sources/remote holds that.
    assert walk.missing() == {"sources[].revision"}


class Stop:
    """Progress that copies a file when all steps are done, before anything is published, and then fails on demand."""

    def __init__(self, watched: Path, *, fail: bool) -> None:
        self.watched, self.fail, self.text = watched, fail, b""

    def begin(self, total_bytes: int) -> None:
        pass

    def advance(self, done_bytes: int) -> None:
        pass

    def end(self) -> None:
        self.text = self.watched.read_bytes()
        if self.fail:
            raise KeyboardInterrupt


def test_journals(plans: list[Any], tmp_path: Path) -> None:
    walk = Walk("lswap-journal/1")
    stop = Stop(tmp_path / ".out.partial" / ".lswap-journal", fail=True)
    with pytest.raises(KeyboardInterrupt):
        execute(plans[0], into=tmp_path / "out", options=WriteOptions(copy_method="read_write"), progress=stop)
    resumed = Stop(stop.watched, fail=False)
    execute(plans[0], into=tmp_path / "out", options=WriteOptions(copy_method="read_write"), progress=resumed)
    for text in (stop.text, resumed.text):
        head, placed, *events = [json.loads(line[17:]) for line in text.splitlines()]
        walk.see(head, first="first line")
        walk.see(placed, first="second line")
        for event in events:
            (kind,) = event
            assert kind in ("done", "synced")
            walk.see(event, first="neither")
    exhausted(walk)


def test_parts_on_a_disk(plans: list[Any], tmp_path: Path) -> None:
    build, part = Walk("lswap-build/1"), Walk("lswap-part/1")
    apply_part(plans[0], Part(1, 2), into=tmp_path / "out")
    build.see(json.loads((tmp_path / ".out.parts" / "build.json").read_text()))
    part.see(json.loads((tmp_path / ".out.parts" / "part-1-of-2.json").read_text()))
    exhausted(build)
    assert {path for path in part.missing() if not path.startswith("sent")} == set()


# Documents in a store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with moto_store() as server:
        use(server, monkeypatch, tmp_path / "none")
        server.client().create_bucket(Bucket="models")
        server.client().create_bucket(Bucket="experts")
        yield server
        empty(server, "models")
        empty(server, "experts")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return large_pair(tmp_path_factory.mktemp("large"))


def in_the_store(store: Store, pair: Pair) -> Any:
    """A plan of experts that lie in the store, so that it can copy parts of them."""
    for role in ("math", "lang"):
        store.load("experts", role, getattr(pair, role))
    math, lang = (open_checkpoint(f"s3://experts/{role}", role=role) for role in ("math", "lang"))
    return lay_out(SWAP.draft(math=math, lang=lang))


class Fail(Stop):
    """Progress that fails once all steps are done."""

    def __init__(self) -> None:
        self.fail = True

    def end(self) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("alone", [True, False])
def test_an_unfinished_output_in_a_store(store: Store, large: Pair, alone: bool) -> None:
    """One process and several workers leave the same two documents, the record under two names."""
    if alone:
        with pytest.raises(KeyboardInterrupt):
            execute(in_the_store(store, large), into="s3://models/out", progress=Fail())
    else:
        apply_part(in_the_store(store, large), Part(1, 2), into="s3://models/out")
    documents = store.tree("models", "out")
    state, part = Walk("lswap-upload-parts/1"), Walk("lswap-part/1")
    state.see(json.loads(documents[".lswap-partial/state.json"]))
    part.see(json.loads(documents[f".lswap-partial/{'part-1-of-1' if alone else 'part-1-of-2'}.json"]))
    exhausted(state)
    exhausted(part)


# What is measured and shown


def test_changes_and_reports(pair: Pair, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, report = Walk("lswap-changes/1"), Walk("lswap-report/1")
    experts = ["--math", str(pair.math), "--lang", str(pair.lang), "--base", str(base)]
    assert main(["analyze", *experts, "--profiles", "--suggest", "--json"]) == 0
    printed = capsys.readouterr().out
    changes.see(json.loads(printed))
    assert changes.missing() == {"uncompared[]"}
    (tmp_path / "changes.json").write_text(printed)

    merge(SWAP, math=pair.math, lang=pair.lang, into=tmp_path / "out")
    scores = {"rule": "lswap", "scores": [{"language": "sw", "answers": 4, "accuracy": 0.5, "low": 0.2, "high": 0.8}]}
    (tmp_path / "out.eval.json").write_text(json.dumps(scores))
    for more in ([], ["--changes", str(tmp_path / "changes.json")]):
        assert main(["report", str(tmp_path / "out"), "--json", *more]) == 0
        report.see(json.loads(capsys.readouterr().out))
    exhausted(report)


# The evaluation's


def write_log(path: Path, setting: str, right: int) -> Path:
    """A log of 20 problems in two languages, of which the first `right` are answered correctly."""
    golds = {language: list(range(20)) for language in ("sw", "te")}
    header = Header({"identity": setting, "setting": setting}, {"prompt": "native_cot", "exemplars": 8}, "data", golds)
    with Log.open(path, header) as log:
        for language in golds:
            log.append(
                Record(language, n, 0, "prompt", f"Jibu ni {n if n < right else 99}", "stop", 5, None if n else 7)
                for n in range(20)
            )
    return path


def test_logs_and_results(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / f"{name}.jsonl", name, right) for name, right in (("base", 5), ("default", 12), ("best", 19))]
    log, results = Walk("lswap-eval-log/1"), Walk("lswap-eval-results/1")
    head, *records = [json.loads(line) for line in logs[0].read_text().splitlines()]
    log.see(head, first="header")
    for record in records:
        log.see(record, first="record")
    exhausted(log)
    results.see(json.loads(json.dumps(compare(read_runs(logs, rule="lswap"), reference="default").to_json())))
    exhausted(results)


def test_ablations(pair: Pair, base: Path) -> None:
    walk = Walk("lswap-ablation/1")
    pairs = plan_pairs(
        [str(pair.math)], [str(pair.lang)], str(base), lambda count: ablation(count, Sizes().scaled(count), base=True)
    )
    walk.see(json.loads(json.dumps(describe(pairs))))
    exhausted(walk)
