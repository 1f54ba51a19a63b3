"""Two object stores on the loopback interface for `same_bytes.py`: their objects, and the requests that made them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import localbucket
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Store:
    """A running store. requests: what changed something in it since the last command, without what a run keeps for the next.
    refused: the part of a path at which it forbids reading.
    """

    endpoint: str
    refused: str = ""
    requests: list[str] = field(default_factory=list)
    seen: dict[tuple[str, ...], bytes] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall find this store and no other."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1", "NO_PROXY": "127.0.0.1"}

    def client(self) -> Any:
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required", proxies={})
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.endpoint, config=config, **keys)

    def load(self, experts: Path) -> None:
        """Put two experts into one bucket, and make an empty one for outputs."""
        client = self.client()
        for bucket in ("experts", "out"):
            client.create_bucket(Bucket=bucket)
        for path in sorted(path for role in ("math", "lang") for path in (experts / role).iterdir()):
            client.put_object(
                Bucket="experts", Key=path.relative_to(experts).as_posix(), Body=path.read_bytes(), ACL="public-read"
            )
        self.requests.clear()

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Every object of the outputs by name; what has been read is not read again."""
        client = self.client()
        for entry in client.list_objects_v2(Bucket="out").get("Contents", ()):
            key = (entry["Key"], entry["ETag"], str(entry["LastModified"]))
            if key not in self.seen:
                self.seen[key] = client.get_object(Bucket="out", Key=entry["Key"])["Body"].read()
            yield f"s3://out/{entry['Key']}", self.seen[key]


@contextmanager
def moto_store() -> Iterator[Store]:
    """moto's S3, which changes one thing at a time, as a real store seems to."""
    app = DomainDispatcherApplication(create_backend_app)
    store, writing = Store(""), threading.Lock()

    def counted(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if store.refused and store.refused in path:
            start("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        if method in ("GET", "HEAD"):
            return app(environ, start)
        if ".lswap-partial" not in path:
            query, copied = environ["QUERY_STRING"], environ.get("HTTP_X_AMZ_COPY_SOURCE_RANGE", "")
            store.requests.append(f"{method} {path}?{query} {environ.get('CONTENT_LENGTH') or 0} {copied}")
        with writing:
            return app(environ, start)

    quiet = type("Quiet", (MotoRequestHandler,), {"log_request": lambda *_: None})
    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=quiet)
    with _serving(server):
        store.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield store


@contextmanager
def localbucket_store(root: Path) -> Iterator[Store]:
    """Another S3 by other people, which knows fewer calls."""
    root.mkdir()
    handler = type("Quiet", (localbucket.S3Handler,), {"data_root": root, "log_message": lambda *_: None})
    server = type("Server", (ThreadingHTTPServer,), {"handle_error": lambda *_: None})(("127.0.0.1", 0), handler)
    with _serving(server):
        yield Store(f"http://127.0.0.1:{server.server_port}")


@contextmanager
def _serving(server: Any) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
