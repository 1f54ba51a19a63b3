"""Outputs put on the hub by the real client: what arrives, who may see it, and how an interrupted push goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lswap_core import LayerSwap, merge
from tests.build import llama_pair, tree
from tests.sources.remote.conftest import Command
from tests.sources.remote.hub_server import Fault, HubServer, Pushed

REPOSITORY = "acme/swapped"
SWAP = ("--bottom", "2", "--top", "1")


@pytest.fixture
def experts_here(tmp_path: Path) -> Path:
    llama_pair(tmp_path)
    return tmp_path


@pytest.fixture
def output(experts_here: Path) -> Path:
    out = experts_here / "out"
    merge(LayerSwap(bottom=2, top=1), math=experts_here / "math", lang=experts_here / "lang", into=out)
    return out


def push(run: Command, *argv: object, token: str = "good-one") -> tuple[int, str, str]:
    done = run("push", *argv, HF_TOKEN=token)
    return done.status, done.out, done.err


def test_everything_arrives_in_private_with_card_and_manifest(run: Command, hub: HubServer, output: Path) -> None:
    status, out, err = push(run, output, REPOSITORY, "--json")
    assert status == 0, err
    assert hub.pushed[REPOSITORY].private
    assert hub.pushed[REPOSITORY].files == tree(output)
    assert hub.pushed[REPOSITORY].commits == 1
    told = json.loads(out)
    assert (told["repository"], told["private"], told["files"]) == (REPOSITORY, True, len(tree(output)))
    assert told["url"] == f"{hub.endpoint}/{REPOSITORY}"


def test_public_is_asked_for_by_name(run: Command, hub: HubServer, output: Path) -> None:
    status, _, err = push(run, output, REPOSITORY, "--public")
    assert status == 0, err
    assert not hub.pushed[REPOSITORY].private


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_of_the_other_kind_is_left_alone(public: bool, run: Command, hub: HubServer, output: Path) -> None:
    hub.pushed[REPOSITORY] = Pushed(private=public)
    status, _, err = push(run, output, REPOSITORY, *(["--public"] if public else []))
    assert (status, err.count("\n")) == (4, 1)
    assert f"exists and is {'private' if public else 'public'}" in err
    assert not hub.pushed[REPOSITORY].files


def test_an_interrupted_push_goes_on_and_sends_only_what_is_missing(run: Command, hub: HubServer, output: Path) -> None:
    hub.faults = [Fault(), Fault(status=403), Fault(status=403)]
    status, _, err = push(run, output, REPOSITORY)
    assert status == 7, err
    assert err.splitlines()[-1].startswith("lswap-core: error: hf://acme/swapped: ")
    assert not hub.pushed[REPOSITORY].files  # nobody sees half a model
    (there,) = hub.objects
    hub.faults, hub.requests = [], []
    status, _, err = push(run, output, REPOSITORY)
    assert status == 0, err
    assert hub.pushed[REPOSITORY].files == tree(output)
    sent = [path for command, path, _ in hub.requests if command == "PUT"]
    assert len(sent) == 2
    assert f"/lfs/{there}" not in sent


def test_a_second_push_of_the_same_sends_nothing(run: Command, hub: HubServer, output: Path) -> None:
    assert push(run, output, REPOSITORY)[0] == 0
    hub.requests = []
    status, _, err = push(run, output, REPOSITORY)
    assert status == 0, err
    assert not [path for command, path, _ in hub.requests if command == "PUT" or "/commit/" in path]


def test_only_what_the_manifest_names_is_sent(run: Command, hub: HubServer, output: Path) -> None:
    (output / "notes.txt").write_text("mine")
    (output / "extra.safetensors").write_bytes(b"x")
    status, _, err = push(run, output, REPOSITORY)
    assert status == 0, err
    assert hub.pushed[REPOSITORY].files.keys() == tree(output).keys() - {"notes.txt", "extra.safetensors"}


def test_what_is_no_output_is_refused(run: Command, hub: HubServer, experts_here: Path) -> None:
    status, _, err = push(run, experts_here / "math", REPOSITORY)
    assert (status, err.count("\n")) == (1, 1)
    assert "there is no lswap_manifest.json in it" in err
    assert not hub.requests


def test_a_shard_that_was_damaged_is_not_pushed(run: Command, hub: HubServer, output: Path) -> None:
    shard = next(output.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes() + b"x")
    status, _, err = push(run, output, REPOSITORY)
    assert (status, err.count("\n")) == (3, 1)
    assert not hub.requests


@pytest.mark.parametrize(("token", "said"), [("bad", "does not accept the token (401)"), ("good-two", "(401)")])
def test_a_token_that_gives_no_access(token: str, said: str, run: Command, hub: HubServer, output: Path) -> None:
    status, _, err = push(run, output, REPOSITORY, token=token)
    assert (status, err.count("\n")) == (7, 1), err
    assert said in err
    assert not hub.pushed


def test_merge_pushes_what_it_made(run: Command, hub: HubServer, experts_here: Path) -> None:
    out = experts_here / "made"
    argv = ("merge", "--math", experts_here / "math", "--lang", experts_here / "lang", *SWAP, "--out", out, "--push", REPOSITORY)
    done = run(*argv, HF_TOKEN="good-one")
    assert done.status == 0, done.err
    assert hub.pushed[REPOSITORY].files == tree(out)
    assert f"{hub.endpoint}/{REPOSITORY}: commit" in done.out


def test_a_merge_whose_push_cannot_be_begins_nothing(run: Command, hub: HubServer, experts_here: Path) -> None:
    hub.pushed[REPOSITORY] = Pushed(private=False)
    out = experts_here / "made"
    argv = ("merge", "--math", experts_here / "math", "--lang", experts_here / "lang", *SWAP, "--out", out)
    assert run(*argv, "--push", REPOSITORY, HF_TOKEN="good-one").status == 4
    assert run(*argv, "--push", REPOSITORY, "--dry-run", HF_TOKEN="good-one").status == 4
    assert run(*argv, "--push", "no name", HF_TOKEN="good-one").status == 4
    assert run(*argv, "--public").status == 4
    assert not out.exists()


def test_a_merge_whose_push_fails_says_that_the_output_is_complete(run: Command, hub: HubServer, experts_here: Path) -> None:
    hub.faults = [Fault(status=403)] * 9
    out = experts_here / "made"
    argv = ("merge", "--math", experts_here / "math", "--lang", experts_here / "lang", *SWAP, "--out", out, "--push", REPOSITORY)
    failed = run(*argv, HF_TOKEN="good-one")
    assert failed.status == 7
    assert f"{out} is complete; `lswap-core push {out} {REPOSITORY}` tries again" in failed.err
    assert (out / "lswap_manifest.json").exists()
