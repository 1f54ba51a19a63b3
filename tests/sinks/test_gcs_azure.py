"""Outputs that obstore writes, one stream a file: against an Azure server where one is installed, and over S3's protocol."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import AzureStore, S3Store

from lswap_core import LayerSwap, RecipeError, merge
from lswap_core.errors import SourceError
from lswap_core.options import WriteOptions
from lswap_core.sinks import gcs_azure
from tests.buckets import KEYS, Store, large_pair, moto_store
from tests.build import HANG_SECONDS, Pair, tree

SWAP = LayerSwap(bottom=2, top=1, transition=1)
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of Azurite, as its documentation gives them to everybody."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return large_pair(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def expected(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "out"
    merge(SWAP, math=pair.math, lang=pair.lang, into=out)
    return tree(out)


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with moto_store() as store:
        store.client().create_bucket(Bucket="streams")
        yield store


@pytest.fixture
def over_s3(server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """`gs://streams/...` goes to the server's bucket `streams`: the same sink over another protocol of obstore."""

    def open_store(url: str) -> Any:
        return S3Store(
            "streams", prefix=url.partition("://")[2].partition("/")[2], endpoint=server.endpoint, region="us-east-1",
            access_key_id=KEYS["AWS_ACCESS_KEY_ID"], secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True}, retry_config={"max_retries": 0},
        )  # fmt: skip

    monkeypatch.setattr(gcs_azure, "open_store", open_store)
    server.refuse = lambda _: None
    server.calls.clear()
    return server


def test_streamed_files_are_those_on_a_disk_and_the_manifest_comes_last(
    over_s3: Store, pair: Pair, expected: dict[str, bytes]
) -> None:
    merge(SWAP, math=pair.math, lang=pair.lang, into="gs://streams/a/out", workers=4)
    assert over_s3.tree("streams", "a/out") == expected
    put = [path for method, path, query in over_s3.calls if method == "PUT" or (method == "POST" and query != "uploads")]
    assert put[-2:] == ["/streams/a/out/model.safetensors.index.json", "/streams/a/out/lswap_manifest.json"]
    ends = [n for n, (method, _, query) in enumerate(over_s3.calls) if method == "POST" and query.startswith("uploadId")]
    parts = [n for n, (method, _, query) in enumerate(over_s3.calls) if method == "PUT" and "partNumber" in query]
    assert len(ends) == 2
    # what is left of a file goes with its end, the rest before anything is completed
    assert sum(n > ends[0] for n in parts) <= 1
    with pytest.raises(RecipeError, match="not empty"):
        merge(SWAP, math=pair.math, lang=pair.lang, into="gs://streams/a/out")


def test_a_stream_that_fails_shows_nothing(over_s3: Store, pair: Pair) -> None:
    over_s3.refuse = lambda e: ("403 Forbidden", "AccessDenied") if "partNumber=2" in e["QUERY_STRING"] else None
    with pytest.raises(SourceError, match=r"\(AccessDenied\); check your access to it, and GOOGLE_APPLICATION_CREDENTIALS"):
        merge(SWAP, math=pair.math, lang=pair.lang, into="gs://streams/b/out")
    over_s3.refuse = lambda _: None
    assert over_s3.tree("streams", "b/out") == {}


def test_what_only_a_disk_can_do_is_refused(over_s3: Store, pair: Pair) -> None:
    with pytest.raises(RecipeError, match="--digest sha256"):
        merge(SWAP, math=pair.math, lang=pair.lang, into="gs://streams/c/out", options=WriteOptions(digest="sha256"))


@pytest.fixture(scope="module")
def azure() -> Iterator[None]:
    """Azurite, Microsoft's own server for tests, with an empty container `models`."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on the PATH (npm has it as azurite)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--silent", "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen([program, "--blobPort", str(port), *flags], stdout=subprocess.DEVNULL)
    before = {name: os.environ.get(name) for name in os.environ if name.startswith("AZURE_")}
    try:
        _wait_for(port)
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        os.environ |= {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY, "AZURE_STORAGE_ENDPOINT": endpoint,
        }  # fmt: skip
        _make_container(endpoint, "models")
        yield
    finally:
        process.terminate()
        process.wait()
        for name in [name for name in os.environ if name.startswith("AZURE_")]:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _wait_for(port: int) -> None:
    for _ in range(int(HANG_SECONDS / 0.1)):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("azurite does not listen")


def _make_container(endpoint: str, name: str) -> None:
    date, blank = formatdate(usegmt=True), "\n" * 12
    signed = f"PUT{blank}x-ms-date:{date}\nx-ms-version:2021-08-06\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)):
        pass


def test_azure_has_the_same_bytes(azure: None, pair: Pair, expected: dict[str, bytes], tmp_path: Path) -> None:
    merge(SWAP, math=pair.math, lang=pair.lang, into="az://models/a/out")
    store = AzureStore("models", prefix="a/out", client_options={"allow_http": True})
    assert {m["path"]: bytes(store.get(m["path"]).bytes()) for page in obstore.list(store) for m in page} == expected
    with pytest.raises(RecipeError, match="not empty"):
        merge(SWAP, math=pair.math, lang=pair.lang, into="az://models/a/out")
    with pytest.raises(SourceError, match="ContainerNotFound: .*; check the address"):
        merge(SWAP, math=pair.math, lang=pair.lang, into="az://absent/out")
