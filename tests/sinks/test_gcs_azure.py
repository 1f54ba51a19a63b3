"""Outputs that obstore writes, one stream a file: against an Azure server where one is installed, and over S3's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from obstore.store import S3Store

from lswap_core import LayerSwap, RecipeError, merge
from lswap_core.errors import SourceError
from lswap_core.sinks import gcs_azure
from tests.azurite import azurite
from tests.buckets import KEYS, Store, large_pair, moto_store
from tests.build import Pair, tree

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


def test_a_container_that_is_not_there(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with azurite("models") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SourceError, match="ContainerNotFound: .*; check the address"):
            merge(SWAP, math=pair.math, lang=pair.lang, into="az://absent/out")
