"""Every verb takes a location for the same thing: an existing path, a model on the hub, or a place in a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lswap_core import LayerSwap, merge
from lswap_core.io.locations import Kind, is_remote, kind_of
from tests.build import llama_pair
from tests.sources.remote.conftest import Command, Result
from tests.sources.remote.hub_server import HubServer, Repository

MERGED = "acme/merged"
VERBS = {
    "inspect": ("inspect", "{}", "--json"),
    "diff": ("diff", "{}", "{}", "--json"),
    "verify": ("verify", "{}", "--json"),
    "report": ("report", "{}", "--json"),
    "analyze": ("analyze", "--math", "{}", "--lang", "{}", "--json"),
}


@pytest.fixture(scope="module")
def merged(running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An output, which is on the hub too."""
    root = tmp_path_factory.mktemp("locations")
    pair = llama_pair(root, 4)
    merge(LayerSwap(bottom=1, transition=1), math=pair.math, lang=pair.lang, into=root / "merged")
    running_hub.repositories[MERGED] = Repository(root / "merged", "e" * 40)
    yield root / "merged"
    del running_hub.repositories[MERGED]


@pytest.fixture(scope="module")
def offline(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command with an empty cache, and told to stay offline."""
    command = Command(environment | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("empty"))})
    yield command
    command.close()


def results(command: Command, location: str) -> dict[str, Result]:
    return {verb: command(*(word.format(location) for word in argv)) for verb, argv in VERBS.items()}


@pytest.mark.parametrize("spelling", [MERGED, f"{MERGED}@main", f"hf://{MERGED}", f"hf://{MERGED}@main"])
def test_every_verb_reads_a_model_on_the_hub(merged: Path, run: Command, offline: Command, spelling: str) -> None:
    assert {verb: (found.status, found.err) for verb, found in results(run, spelling).items()} == dict.fromkeys(VERBS, (0, ""))
    for verb, found in results(offline, spelling).items():
        assert found.status == 7, verb
        assert "not in the local cache, and HF_HUB_OFFLINE is set" in found.err, verb


@pytest.mark.parametrize("at_hand", ["run", "offline"])
def test_every_verb_prefers_a_path_that_exists(
    merged: Path, hub: HubServer, at_hand: str, request: pytest.FixtureRequest
) -> None:
    command: Command = request.getfixturevalue(at_hand)
    for location in (str(merged), f"{merged.parent}/./merged/"):
        found = results(command, location)
        assert {verb: (result.status, result.err) for verb, result in found.items()} == dict.fromkeys(VERBS, (0, ""))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("location", "status"),
    [("acme/none", 7), ("hf://acme/none", 7), ("hf://none", 4), ("./none", 1), ("none", 1), ("ftp://host/model", 4)],
)
def test_every_verb_fails_alike(run: Command, location: str, status: int) -> None:
    found = results(run, location)
    assert {verb: result.status for verb, result in found.items()} == dict.fromkeys(VERBS, status), found
    assert all(len(result.err.splitlines()) == 1 for result in found.values())


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("acme/math", "hub"),
        ("acme/math@v2", "hub"),
        ("hf://acme/math", "hub"),
        ("./acme/math", "path"),
        ("/acme/math", "path"),
        ("math", "path"),
        ("a/b/c", "path"),
        ("acme/math+adapter", "path"),
        ("s3://bucket/prefix", "store"),
        ("gs://bucket/prefix", "store"),
        ("https://host/path", "store"),
    ],
)
def test_what_does_not_exist_is_known_by_how_it_is_written(location: str, kind: Kind) -> None:
    assert kind_of(location) == kind
    assert is_remote(location) is (kind != "path")


@pytest.mark.parametrize("name", ["acme/math", "acme/math@v2", "s3:/bucket", "a+b"])
def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    assert kind_of(name) == "path"
