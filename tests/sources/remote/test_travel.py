"""How much of two experts a swap needs, at the proportions of a model of 7 B, 400 times smaller, counted on the wire."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lswap_core import open_checkpoint
from tests.build import llama_like, normal, tree, write_model
from tests.sources.remote.conftest import Command
from tests.sources.remote.hub_server import HubServer, Repository

LAYERS = 28
MATH, LANG = "acme/large-math", "acme/large-lang"
SWAP = ("--bottom", "4", "--top", "2")
_ENTRY_BYTES = 400
"""Of a file in the list of a model's files, at most."""


@pytest.fixture(scope="module")
def pair(running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """38 MB each in four shards: a seventh embeddings and head, a tokenizer.json of a thousandth, alike in both."""
    root = tmp_path_factory.mktemp("pair")
    merges = [f"{k:x} {k * 7919:x}" for k in range(2_500)]
    tokenizer = json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": merges}, "added_tokens": []})
    assert 35_000 < len(tokenizer) < 55_000
    for seed, role in enumerate(("math", "lang")):
        rng = np.random.default_rng(seed)
        model = llama_like(LAYERS, rng)
        for n in range(LAYERS):
            model[f"model.layers.{n}.mlp.down_proj.weight"] = normal("BF16", (580, 1000), rng)
        model["model.embed_tokens.weight"] = normal("BF16", (1350, 1000), rng)
        model["lm_head.weight"] = normal("BF16", (1350, 1000), rng)
        names = sorted(model)
        files = [names[k::4] for k in range(4)]
        beside = {"tokenizer.json": tokenizer, "vocab.json": '{"a": 0}', "generation_config.json": f'{{"eos_token_id": {seed}}}'}
        write_model(root / role, model, files=files, config={"num_hidden_layers": LAYERS}, sidecars=beside)
        running_hub.repositories[f"acme/large-{role}"] = Repository(root / role, str(seed + 6) * 40)
    yield root
    for name in (MATH, LANG):
        del running_hub.repositories[name]


def whole_bytes(pair: Path) -> int:
    return sum(file.stat().st_size for file in pair.rglob("*") if file.is_file())


def catalogue_bytes(pair: Path) -> int:
    """Of what tells where the tensors are: lists of files, index, config, headers, samples."""
    total = 0
    for role in ("math", "lang"):
        files = [file for file in (pair / role).iterdir() if file.is_file()]
        total += len(files) * _ENTRY_BYTES
        total += sum(file.stat().st_size for file in files if file.name in ("model.safetensors.index.json", "config.json"))
        for shard in open_checkpoint(pair / role, role=role).shards:
            total += 2 * shard.header.data_begin + 6 * 4096
    return total


def test_a_swap_without_seams_needs_half_of_both_experts(pair: Path, run: Command, hub: HubServer, tmp_path: Path) -> None:
    """Planned and done in one command: half of a full download, beside headers and samples, which are read twice."""
    done = run("merge", "--math", MATH, "--lang", LANG, *SWAP, "--out", tmp_path / "out", "--quiet")
    assert done.status == 0, done.err
    whole, told = whole_bytes(pair), catalogue_bytes(pair)
    assert hub.sent_bytes - 2 * told <= 0.5 * whole
    assert hub.sent_bytes <= 0.51 * whole
    verified = run("verify", tmp_path / "out", "--math", pair / "math", "--lang", pair / "lang")
    assert verified.status == 0, verified.err


def test_a_tokenizer_that_both_have_travels_once_and_only_for_the_output(
    pair: Path, run: Command, hub: HubServer, tmp_path: Path
) -> None:
    planned = tmp_path / "plan.json"
    made = run("plan", "--math", MATH, "--lang", LANG, *SWAP, "--out", planned, "--quiet")
    assert made.status == 0, made.err
    assert not fetched(hub, "tokenizer.json")
    assert fetched(hub, "vocab.json") == [MATH]  # no SHA-256 is told of it, which the plan holds
    assert hub.sent_bytes <= catalogue_bytes(pair) + 200
    done = run("apply", planned, "--out", tmp_path / "out", "--quiet")
    assert done.status == 0, done.err
    assert fetched(hub, "tokenizer.json") == [MATH]
    assert tree(tmp_path / "out")["tokenizer.json"] == (pair / "math" / "tokenizer.json").read_bytes()


def test_the_plan_is_the_one_that_is_made_of_downloads(pair: Path, run: Command, hub: HubServer, tmp_path: Path) -> None:
    there, here = tmp_path / "there.json", tmp_path / "here.json"
    for path, (math, lang) in ((there, (MATH, LANG)), (here, (pair / "math", pair / "lang"))):
        made = run("plan", "--math", math, "--lang", lang, *SWAP, "--out", path, "--quiet")
        assert made.status == 0, made.err
    assert json.loads(there.read_text())["sidecars"] == json.loads(here.read_text())["sidecars"]


@pytest.mark.parametrize(
    ("name", "said"), [("tokenizer.json", "token 'a' has id 0 in math, 1 in lang"), ("vocab.json", "bytes differ")]
)
def test_vocabularies_that_differ_are_refused_all_the_same(
    name: str, said: str, pair: Path, run: Command, hub: HubServer, tmp_path: Path
) -> None:
    file = pair / "lang" / name
    before = file.read_text()
    file.write_text(before.replace('"a": 0', '"a": 1'))
    try:
        done = run("plan", "--math", MATH, "--lang", LANG, *SWAP, "--out", tmp_path / "plan.json")
    finally:
        file.write_text(before)
    assert done.status == 4, done.err
    assert f"{name}: " in done.err
    assert said in done.err


def test_a_digest_that_is_not_that_of_the_bytes_is_found_before_a_tensor_comes(
    pair: Path, run: Command, hub: HubServer, tmp_path: Path
) -> None:
    planned = tmp_path / "plan.json"
    made = run("plan", "--math", MATH, "--lang", LANG, *SWAP, "--out", planned, "--quiet")
    assert made.status == 0, made.err
    document = planned.read_text()
    honest = hashlib.sha256((pair / "math" / "tokenizer.json").read_bytes()).hexdigest()
    assert document.count(honest) == 1
    planned.write_text(document.replace(honest, "0" * 64))
    done = run("apply", planned, "--out", tmp_path / "out", "--quiet")
    assert done.status == 5, done.err
    assert "tokenizer.json: changed after it was planned" in done.err
    assert not tree(tmp_path / "out")


def fetched(hub: HubServer, name: str) -> list[str]:
    """The models that a file's bytes were asked of."""
    asked = [path.partition("?")[0] for method, path, headers in hub.requests if method == "GET" and "range" in headers]
    return ["/".join(path.split("/")[1:3]) for path in asked if path.endswith(f"/{name}")]
