"""What only the hub has: commits, tokens, gated models, signed addresses. The laws of every source are in `conformance`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lswap_core import LayerSwap, lay_out, merge, open_checkpoint
from tests.build import HANG_SECONDS, tree
from tests.sources.remote.conftest import COMMITS, LANG, MATH, Command
from tests.sources.remote.hub_server import Fault, HubServer

SWAP = ("--bottom", "4", "--top", "2", "--transition", "2")
RECIPE = LayerSwap(bottom=4, top=2, transition=2)


@pytest.fixture(scope="session")
def expected(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The local merge, without what tells the names of the experts."""
    out = tmp_path_factory.mktemp("local") / "out"
    merge(RECIPE, math=experts / "math", lang=experts / "lang", into=out)
    return told_apart(out)


def told_apart(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if name not in ("lswap_manifest.json", "README.md")}


def needed_bytes(experts: Path) -> int:
    math, lang = (open_checkpoint(experts / role, role=role) for role in ("math", "lang"))
    return lay_out(RECIPE.draft(math=math, lang=lang)).read_bytes


def test_a_plan_tells_how_many_bytes_would_travel(run: Command, hub: HubServer, experts: Path) -> None:
    done = run("merge", "--math", MATH, "--lang", LANG, *SWAP, "--dry-run")
    assert done.status == 0, done.err
    assert "fetches 26.3 MB; a full download would be 42.3 MB" in done.out
    assert hub.sent_bytes < 300_000
    assert "fetches" not in run("merge", "--math", experts / "math", "--lang", experts / "lang", *SWAP, "--dry-run").out


def test_manifest_and_card_name_the_commits(run: Command, hub: HubServer, experts: Path, tmp_path: Path) -> None:
    done = run("merge", "--math", MATH, "--lang", f"hf://{LANG}@main", *SWAP, "--out", tmp_path / "out", "--json")
    assert done.status == 0, done.err
    manifest = json.loads(done.out)
    assert [(source["name"], source["revision"]) for source in manifest["sources"]] == [(n, COMMITS[n]) for n in (MATH, LANG)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{name}`, commit `{COMMITS[name]}`" in card for name in (MATH, LANG))
    # Headers, samples and small files were read twice, to plan and to execute; they are a little of 25 MB.
    assert hub.sent_bytes <= 1.02 * needed_bytes(experts)


@pytest.fixture(scope="session")
def plan(running_command: Command, experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan made from the hub's headers."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    done = running_command("plan", "--math", MATH, "--lang", LANG, *SWAP, "--out", path, "--quiet")
    assert done.status == 0, done.err
    return path


MENDABLE = {
    "short": [Fault(shorten=1), Fault(shorten=4_096)],
    "busy": [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=429), Fault(status=503), Fault(status=500)],
    "expired": [Fault(status=403)],
    "all of it": [Fault(cut=5), Fault(status=502), Fault(cut=70_000), Fault(status=401), Fault(cut=300_000)],
}


@pytest.mark.parametrize("what", MENDABLE)
def test_what_a_second_try_mends_leaves_no_trace(
    what: str, plan: Path, run: Command, hub: HubServer, expected: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults = MENDABLE[what] + [Fault()] * 20 + MENDABLE[what]  # while files are opened, and while tensors come
    done = run("apply", plan, "--out", tmp_path / "out", "--quiet")
    assert done.status == 0, done.err
    assert told_apart(tmp_path / "out") == expected
    assert not hub.faults


FATAL = {
    "200 for 206": (Fault(whole=True), 7, "does not serve ranges"),
    "another range": (Fault(shift=16), 7, "the server sent"),
    "416": (Fault(status=416), 5, "plan again"),
    "another ETag": (Fault(etag='"other"'), 5, "changed while it was read"),
    "too long a wait": (Fault(status=429, headers={"Retry-After": "7200"}), 7, "asks to wait 7200 s"),
}


@pytest.mark.parametrize("what", FATAL)
def test_what_nothing_mends_is_one_line_and_the_next_run_goes_on(
    what: str, plan: Path, run: Command, hub: HubServer, experts: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    fault, status, said = FATAL[what]
    hub.faults = [Fault()] * 50 + [fault] * 500
    failed = run("apply", plan, "--out", tmp_path / "out", "--quiet", "--workers", "2")
    assert (failed.status, failed.out) == (status, "")
    assert said in failed.err, failed.err
    assert failed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    hub.forget()
    again = run("apply", plan, "--out", tmp_path / "out", "--quiet")
    assert again.status == 0, again.err
    assert told_apart(tmp_path / "out") == expected
    assert hub.sent_bytes < needed_bytes(experts)


REFUSED = {
    "gated": ("acme/gated", None, "gated; ask for access at"),
    "private": ("acme/private", None, "no such model on"),
    "missing": ("acme/nothing", None, "no such directory here, and no such model"),
    "revision": (f"{MATH}@v9", None, "no revision 'v9'"),
    "token": (MATH, "bad-one", "does not accept the token (401)"),
    "scheme": ("hf://acme", None, "names no model on the hub"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_had_is_one_line_that_says_what_to_do(what: str, run: Command, hub: HubServer) -> None:
    location, token, said = REFUSED[what]
    done = run("inspect", location, **({} if token is None else {"HF_TOKEN": token}))
    assert (done.status, done.out) == (4 if what == "scheme" else 7, "")
    assert said in done.err, done.err
    assert done.err.count("\n") == 1
    assert hub.sent_bytes < 2000


@pytest.mark.parametrize("location", ["acme/gated", "acme/private"])
def test_a_token_opens_what_it_may(location: str, run: Command, hub: HubServer) -> None:
    done = run("inspect", location, HF_TOKEN="good-one")
    assert done.status == 0, done.err
    assert "16" in done.out


def test_a_hub_that_fails_now_and_then_is_asked_again(run: Command, hub: HubServer) -> None:
    hub.api_faults = [Fault(status=503), Fault(status=429, headers={"Retry-After": "0"}), Fault(), Fault(status=500)]
    done = run("inspect", MATH)
    assert done.status == 0, done.err
    assert not hub.api_faults


def test_a_local_directory_wins(hub: HubServer, environment: dict[str, str], experts: Path, tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "math").symlink_to(experts / "math")
    command = [sys.executable, "-m", "lswap_core", "inspect", MATH, "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert json.loads(done.stdout)["location"] == str(tmp_path / MATH)
    assert not hub.requests
