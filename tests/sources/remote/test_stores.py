"""Merges from object stores and web servers: real clients against servers on the loopback interface."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lswap_core import LayerSwap, execute, lay_out, merge, open_checkpoint, verify
from lswap_core.errors import FormatError, RecipeError, SourceError, StalePlanError
from lswap_core.io import retries
from lswap_core.io.traffic import Traffic
from tests.build import tree
from tests.sources.remote.hub_server import Fault, HubServer

RECIPE = LayerSwap(bottom=4, top=2, transition=2)
UNTOLD = ("lswap_manifest.json", "README.md")


@pytest.fixture(autouse=True)
def _little_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture(scope="module")
def expected(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "out"
    merge(RECIPE, math=experts / "math", lang=experts / "lang", into=out)
    return {name: data for name, data in tree(out).items() if name not in UNTOLD}


@pytest.fixture(scope="module")
def s3(experts: Path) -> Iterator[Any]:
    """Moto's server and a client of it; both experts are in a bucket."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        for role in ("math", "lang"):
            for file in (experts / role).rglob("*"):
                if file.is_file():
                    key = f"experts/{role}/{file.relative_to(experts / role).as_posix()}"
                    client.upload_file(str(file), "models", key, ExtraArgs={"ACL": "public-read"})
        yield client
    server.stop()


def test_a_merge_from_a_bucket_is_the_local_merge(s3: Any, experts: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    traffic = Traffic()
    merge(RECIPE, math="s3://models/experts/math", lang="s3://models/experts/lang/", into=tmp_path / "out", traffic=traffic)
    assert {name: data for name, data in tree(tmp_path / "out").items() if name not in UNTOLD} == expected
    verify(tmp_path / "out", locations={"math": experts / "math", "lang": "s3://models/experts/lang"})
    local = lay_out(
        RECIPE.draft(math=open_checkpoint(experts / "math", role="math"), lang=open_checkpoint(experts / "lang", role="lang"))
    )
    assert local.read_bytes < traffic.bytes_by_method["fetch"] <= 1.01 * local.read_bytes


def test_googles_buckets_are_read_as_well(
    s3: Any, expected: dict[str, bytes], experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's XML interface is that of S3, as far as reading goes, so the same server stands for it."""
    monkeypatch.setenv("GOOGLE_BASE_URL", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    merge(RECIPE, math=experts / "math", lang="gs://models/experts/lang", into=tmp_path / "out")
    assert {name: data for name, data in tree(tmp_path / "out").items() if name not in UNTOLD} == expected


def test_one_role_here_and_one_there(s3: Any, experts: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    traffic = Traffic()
    merge(RECIPE, math=experts / "math", lang="s3://models/experts/lang", into=tmp_path / "out", traffic=traffic)
    assert {name: data for name, data in tree(tmp_path / "out").items() if name not in UNTOLD} == expected
    lang_bytes = sum(file.stat().st_size for file in (experts / "lang").glob("*.safetensors"))
    assert traffic.bytes_by_method["fetch"] < 0.7 * lang_bytes  # 10 of 16 layers, and no embeddings


def test_an_object_that_is_another_after_planning(s3: Any, experts: Path, tmp_path: Path) -> None:
    lang = open_checkpoint("s3://models/experts/lang", role="lang")
    assert all(shard.mtime_ns > 0 for shard in lang.shards)
    here = open_checkpoint(experts / "lang", role="lang")
    assert [shard.fingerprint for shard in lang.shards] == [shard.fingerprint for shard in here.shards]
    plan = lay_out(RECIPE.draft(math=open_checkpoint(experts / "math", role="math"), lang=lang))
    name = lang.shards[0].name
    data = (experts / "lang" / name).read_bytes()
    s3.put_object(Bucket="models", Key=f"experts/lang/{name}", Body=data[:-1] + bytes([data[-1] ^ 1]))
    try:
        with pytest.raises(StalePlanError, match=name):
            execute(plan, into=tmp_path / "out")
    finally:
        s3.put_object(Bucket="models", Key=f"experts/lang/{name}", Body=data)


def test_what_is_not_in_the_bucket(s3: Any) -> None:
    with pytest.raises(SourceError, match="there is nothing"):
        open_checkpoint("s3://models/experts/none", role="math")
    with pytest.raises(SourceError, match=r"^s3://nowhere/x: NoSuchBucket: .*check the address"):
        open_checkpoint("s3://nowhere/x", role="math")
    with pytest.raises(FileNotFoundError):
        open_checkpoint("s3://models/experts/math/none.safetensors", role="math")


class _Skewed(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        told = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)


def test_a_clock_that_is_wrong_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Skewed) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        with pytest.raises(SourceError, match="this machine's clock is wrong"):
            open_checkpoint("s3://models/x", role="math")
        server.shutdown()


@pytest.mark.parametrize("url", ["s3://", "ftp://host/x", "https://host/x?y=1"])
def test_a_url_that_names_no_place(url: str) -> None:
    with pytest.raises(RecipeError, match="is no place for a checkpoint"):
        open_checkpoint(url, role="math")


def test_a_merge_from_a_web_server_is_the_local_merge(hub: HubServer, expected: dict[str, bytes], tmp_path: Path) -> None:
    hub.faults = [Fault()] * 30 + [Fault(cut=70_000), Fault(status=503), Fault(cut=10)]
    web = f"{hub.cdn}/plain/acme"
    merge(RECIPE, math=f"{web}/math", lang=f"{web}/lang", into=tmp_path / "out")
    found = {name: data for name, data in tree(tmp_path / "out").items() if name not in UNTOLD}
    nested = "additional_chat_templates/tool.jinja"  # a web server lists nothing, so what is not usual is not found
    assert found == {name: data for name, data in expected.items() if name != nested}
    assert not hub.faults


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault(whole=True), SourceError, "does not serve ranges"),
        (Fault(etag='"other"'), StalePlanError, "changed while it was read"),
        (Fault(status=412), StalePlanError, "changed while it was read"),
        (Fault(status=403), SourceError, "refuses it"),
        (Fault(status=403, headers={"x": "y"}), SourceError, "refuses it"),
    ],
)
def test_a_web_server_that_fails(fault: Fault, kind: type[Exception], said: str, hub: HubServer, tmp_path: Path) -> None:
    web = f"{hub.cdn}/plain/acme"
    hub.faults = [Fault()] * 50 + [fault] * 500
    with pytest.raises(kind, match=said):
        merge(RECIPE, math=f"{web}/math", lang=f"{web}/lang", into=tmp_path / "out")


def test_a_port_at_which_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    for url in ("http://127.0.0.1:9/models/x", "s3://models/x"):
        with pytest.raises(SourceError, match="check the address, the network and proxies"):
            open_checkpoint(url, role="math")


def test_an_index_that_names_a_missing_shard(hub: HubServer, experts: Path, tmp_path: Path) -> None:
    repository = hub.repositories["acme/lang"]
    before, repository.root = repository.root, tmp_path
    index = json.loads((experts / "lang" / "model.safetensors.index.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    try:
        with pytest.raises(FormatError, match=r"shard model-0000.-of-00003.safetensors is missing"):
            open_checkpoint(f"{hub.cdn}/plain/acme/lang", role="lang")
    finally:
        repository.root = before


@pytest.mark.parametrize(
    ("library", "location", "extra"),
    [("huggingface_hub", "acme/math", "hub"), ("obstore", "s3://models/x", "stores")],
)
def test_a_library_that_is_not_installed(library: str, location: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecipeError, match=rf"{library} .*pip install lswap-core\[{extra}\]"):
        open_checkpoint(location, role="math")
