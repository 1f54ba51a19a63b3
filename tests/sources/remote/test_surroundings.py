"""What lies between a merge and the hub: the local cache, offline mode, the network, a proxy, the disk."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.build import HANG_SECONDS
from tests.sources.remote.conftest import COMMITS, LANG, MATH
from tests.sources.remote.hub_server import HubServer

SWAP = ("--bottom", "4", "--top", "2", "--transition", "2")
SHARD = "model-00001-of-00003.safetensors"


def lswap(*argv: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "lswap_core", *map(str, argv)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)


def download(environment: dict[str, str], repository: str, *files: str) -> None:
    """Bring files to the local cache by the library's own way."""
    script = "import sys, huggingface_hub as h; [h.hf_hub_download(sys.argv[1], f) for f in sys.argv[2:]]"
    subprocess.run([sys.executable, "-c", script, repository, *files], env=environment, check=True, timeout=HANG_SECONDS)


@pytest.fixture(scope="module")
def filled(environment: dict[str, str], running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose cache has all of math and a shard of lang. No test writes to it."""
    running_hub.forget()
    environment = environment | {"HF_HOME": str(tmp_path_factory.mktemp("home"))}
    download(environment, MATH, *(f for f in running_hub.repositories[MATH].files() if f != "README.md"))
    download(environment, LANG, SHARD)
    return environment


@pytest.fixture
def cached(filled: dict[str, str], hub: HubServer) -> dict[str, str]:
    """The same. The hub has no request and no fault yet."""
    assert not hub.requests
    return filled


def test_files_in_the_cache_are_read_from_there(cached: dict[str, str], hub: HubServer, experts: Path, tmp_path: Path) -> None:
    done = lswap("merge", "--math", MATH, "--lang", LANG, *SWAP, "--out", tmp_path / "out", "--quiet", environment=cached)
    assert done.returncode == 0, done.stderr
    whole = sum((experts / "lang" / f"model-0000{n}-of-00003.safetensors").stat().st_size for n in (2, 3))
    assert 0 < hub.sent_bytes < whole
    assert not [path for _, path, _ in hub.requests if SHARD in path or "math/resolve" in path]
    done = lswap("verify", tmp_path / "out", "--math", experts / "math", "--lang", experts / "lang", environment=cached)
    assert done.returncode == 0, done.stderr


def test_offline_what_the_cache_has_is_enough(cached: dict[str, str], hub: HubServer, experts: Path, tmp_path: Path) -> None:
    cached = cached | {"HF_HUB_OFFLINE": "1"}
    done = lswap("merge", "--math", MATH, "--lang", experts / "lang", *SWAP, "--out", tmp_path / "out", environment=cached)
    assert done.returncode == 0, done.stderr
    assert not hub.requests
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (experts / "math" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("revision", ["", f"@{COMMITS[LANG]}"])
def test_offline_what_it_lacks_is_named(revision: str, cached: dict[str, str], hub: HubServer) -> None:
    done = lswap("inspect", LANG + revision, environment=cached | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 7, done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "hf download" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not hub.requests


class _Refusing(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_error(403, "Forbidden by the proxy")

    def do_CONNECT(self) -> None:
        self.send_error(403, "Forbidden by the proxy")


@pytest.fixture
def proxy() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("endpoint", ["http://hub.invalid", "https://hub.invalid"])
def test_a_proxy_that_refuses(endpoint: str, proxy: str, environment: dict[str, str]) -> None:
    proxied = environment | {"HF_ENDPOINT": endpoint, "http_proxy": proxy, "https_proxy": proxy, "no_proxy": ""}
    done = lswap("inspect", MATH, environment=proxied)
    assert done.returncode == 7, done.stderr
    assert "403" in done.stderr
    assert "check" in done.stderr
    assert "prox" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_disk_that_fills_up_while_bytes_stream_in(
    environment: dict[str, str], hub: HubServer, experts: Path, tmp_path: Path
) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the failing disk with")
    shim, source = tmp_path / "faulty.so", Path(__file__).parents[2] / "faults" / "faulty.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    full = {"LD_PRELOAD": str(shim), "FAULT_CALL": "write", "FAULT_PATH": ".partial/model-", "FAULT_SKIP": "60"}
    full["FAULT_ERRNO"] = str(errno.ENOSPC)
    argv = ("merge", "--math", MATH, "--lang", LANG, *SWAP, "--out", tmp_path / "out", "--quiet", "--workers", "2")
    failed = lswap(*argv, environment=environment | full)
    assert failed.returncode == 1, failed.stderr
    assert "No space left on device" in failed.stderr
    assert "what is done is kept" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    before = hub.sent_bytes
    hub.forget()
    again = lswap(*argv, environment=environment)
    assert again.returncode == 0, again.stderr
    assert hub.sent_bytes < 26_000_000 < hub.sent_bytes + before  # what was written did not travel again
    out = tmp_path / "out"
    verified = lswap("verify", out, "--math", experts / "math", "--lang", experts / "lang", environment=environment)
    assert verified.returncode == 0, verified.stderr
