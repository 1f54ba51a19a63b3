"""What only the hub has: commits, tokens, gated models, signed addresses. The laws of every source are in `conformance`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lswap_core import LayerSwap, SourceError, StalePlanError, TensorRef, lay_out, open_checkpoint
from lswap_core.io import retries
from lswap_core.sources.places import AnySource
from tests.build import HANG_SECONDS
from tests.sources.conformance.places import point_to_hub
from tests.sources.conformance.reading import check_line, in_file, largest, opened, read
from tests.sources.remote.conftest import COMMITS, LANG, MATH, Command
from tests.sources.remote.hub_server import Fault, HubServer

SWAP = ("--bottom", "4", "--top", "2", "--transition", "2")
RECIPE = LayerSwap(bottom=4, top=2, transition=2)


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


@pytest.fixture
def source(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TensorRef, AnySource]]:
    """The largest tensor of math and what reads it, in this process."""
    point_to_hub(hub.endpoint, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)
    checkpoint, source = opened(MATH)
    with source:
        yield largest(checkpoint), source


MENDABLE = {
    "short": [Fault(shorten=1), Fault(shorten=4_096)],
    "busy": [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=429), Fault(status=503), Fault(status=500)],
    "expired": [Fault(status=403)],
    "all of it": [Fault(cut=5), Fault(status=502), Fault(cut=70_000), Fault(status=401), Fault(cut=300_000)],
}


@pytest.mark.parametrize("what", MENDABLE)
def test_what_a_second_try_mends_leaves_no_trace(
    what: str, source: tuple[TensorRef, AnySource], hub: HubServer, experts: Path
) -> None:
    ref, reading = source
    for faults in (MENDABLE[what], [Fault(), *MENDABLE[what]]):  # at once, and once the address has worked
        hub.faults = list(faults)
        while hub.faults:
            assert read(reading, (ref, 0, ref.size_bytes)) == in_file(experts / "math", (ref, 0, ref.size_bytes))


def test_threads_read_on_while_an_address_expires(
    source: tuple[TensorRef, AnySource], hub: HubServer, experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them asks the hub for another address. Answers from the earlier one still count."""
    ref, reading = source
    wanted = in_file(experts / "math", (ref, 0, ref.size_bytes))
    monkeypatch.setattr(hub, "latency", 0.005)
    hub.faults = [Fault(status=403), *[Fault()] * 20] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read(reading, (ref, 0, ref.size_bytes)), range(80)))
    assert found == [wanted] * 80
    assert not [fault for fault in hub.faults if fault.status]


FATAL = {
    "200 for 206": (Fault(whole=True), SourceError, "does not serve ranges"),
    "another range": (Fault(shift=16), SourceError, "the server sent"),
    "416": (Fault(status=416), StalePlanError, "plan again"),
    "another ETag": (Fault(etag='"other"'), StalePlanError, "changed while it was read"),
    "too long a wait": (Fault(status=429, headers={"Retry-After": "7200"}), SourceError, "asks to wait 7200 s"),
}


@pytest.mark.parametrize("what", FATAL)
def test_what_nothing_mends_is_one_line(what: str, source: tuple[TensorRef, AnySource], hub: HubServer) -> None:
    fault, kind, said = FATAL[what]
    ref, reading = source
    read(reading, (ref, 0, 8))
    hub.forget()
    hub.faults = [fault] * 100
    with pytest.raises(kind, match=said) as caught:
        read(reading, (ref, 0, ref.size_bytes))
    check_line(caught.value, f"hf://{MATH}@{COMMITS[MATH]}/{ref.file}")
    assert len(hub.faults) == 99


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
