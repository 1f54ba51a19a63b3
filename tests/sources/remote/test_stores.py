"""What only object stores and web servers have. The laws of every source are in `conformance`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lswap_core import open_checkpoint
from lswap_core.errors import FormatError, RecipeError, SourceError, StalePlanError
from tests.buckets import moto_store, use
from tests.sources.conformance.reading import largest, opened, read
from tests.sources.remote.hub_server import Fault, HubServer


def test_an_empty_prefix_and_a_bucket_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_store() as store:
        use(store, monkeypatch, tmp_path / "none")
        store.client().create_bucket(Bucket="models")
        with pytest.raises(SourceError, match="there is nothing"):
            open_checkpoint("s3://models/experts/none", role="math")
        with pytest.raises(SourceError, match=r"^s3://nowhere/x: NoSuchBucket: .*check the address"):
            open_checkpoint("s3://nowhere/x", role="math")


class _Skewed(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        told = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server that answers with `handler`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_clock_that_is_wrong_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with _serving(_Skewed) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        with pytest.raises(SourceError, match="this machine's clock is wrong"):
            open_checkpoint("s3://models/x", role="math")


class _Azure(BaseHTTPRequestHandler):
    """One blob, as Azure's REST reference has it: lists give the ETag without quotes, responses with them."""

    data = (8).to_bytes(8, "little") + b'{"a":{}}'

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        etag, date, size = "0x8D1", "Tue, 01 Dec 2026 00:00:00 GMT", len(self.data)
        headers, body = {"ETag": f'"{etag}"', "Last-Modified": date}, self.data
        if "comp=list" in self.path:
            about = f"<Last-Modified>{date}</Last-Modified><Etag>{etag}</Etag><Content-Length>{size}</Content-Length><Content-Type>x/y</Content-Type>"
            blob = f"<Blob><Name>x/model.safetensors</Name><Properties>{about}</Properties></Blob>"
            headers, body = {}, f"<EnumerationResults><Blobs>{blob}</Blobs><NextMarker/></EnumerationResults>".encode()
        elif self.headers.get("If-Match") != f'"{etag}"':
            return self.send_error(412)
        else:
            headers["Content-Range"] = f"bytes 0-{size - 1}/{size}"
        self.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        return None


def test_an_etag_of_azure_is_the_same_with_and_without_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read as far as its header, which is refused."""
    with _serving(_Azure) as address:
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{address}/account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
        with pytest.raises(FormatError, match=r"^az://models/x/model\.safetensors: "):
            open_checkpoint("az://models/x", role="math")


@pytest.mark.parametrize("url", ["s3://", "ftp://host/x", "https://host/x?y=1"])
def test_a_url_that_names_no_place(url: str) -> None:
    with pytest.raises(RecipeError, match="is no place for a checkpoint"):
        open_checkpoint(url, role="math")


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault(whole=True), SourceError, "does not serve ranges"),
        (Fault(etag='"other"'), StalePlanError, "changed while it was read"),
        (Fault(status=412), StalePlanError, "changed while it was read"),
    ],
)
def test_a_web_server_that_answers_otherwise(fault: Fault, kind: type[Exception], said: str, hub: HubServer) -> None:
    checkpoint, source = opened(f"{hub.cdn}/plain/acme/math")
    ref = largest(checkpoint)
    hub.faults = [fault] * 100
    with source, pytest.raises(kind, match=said):
        read(source, (ref, 0, ref.size_bytes))


@pytest.mark.parametrize(
    ("library", "location", "extra"),
    [("huggingface_hub", "acme/math", "hub"), ("obstore", "s3://models/x", "stores")],
)
def test_a_library_that_is_not_installed(library: str, location: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecipeError, match=rf"{library} .*pip install lswap-core\[{extra}\]"):
        open_checkpoint(location, role="math")
