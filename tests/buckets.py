"""Object stores on the loopback interface for tests, which count what they are sent and fail on demand."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from lswap_core.checkpoint.catalogue import Role, TensorRef
from lswap_core.plan.runs import Run
from tests.build import HANG_SECONDS, Pair, Tensor, write_model

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
Environ = dict[str, Any]
Refusal = tuple[str, str] | tuple[str, str, str]
"""HTTP status line, S3 error code and perhaps its message."""


@dataclass
class Store:
    """A running store. uploaded: bytes of every body that a key was sent. calls: method, path and query of every request.
    refuse: looked at before a request is answered.
    before: called then. answering: requests that are under way.
    """

    endpoint: str
    uploaded: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    refuse: Callable[[Environ], Refusal | None] = lambda _: None
    before: Callable[[Environ], None] = lambda _: None
    answering: int = 0

    def settle(self) -> None:
        """Wait until nothing that it was told is under way in it."""
        until = time.monotonic() + HANG_SECONDS
        while self.answering and time.monotonic() < until:
            time.sleep(0.01)
        assert not self.answering

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1", "NO_PROXY": "127.0.0.1"}

    def client(self) -> Any:
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required", proxies={})
        return boto3.client(
            "s3", endpoint_url=self.endpoint, config=config, region_name="us-east-1",
            aws_access_key_id="testing", aws_secret_access_key="testing",
        )  # fmt: skip

    def tree(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix."""
        client = self.client()
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", ())]
        return {key[len(prefix) + 1 :]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def load(self, bucket: str, prefix: str, root: Path) -> None:
        """Put a directory into a bucket."""
        client = self.client()
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(root).as_posix()}", Body=path.read_bytes())

    def uploads(self, bucket: str) -> list[str]:
        """Keys of the unfinished uploads."""
        return [entry["Key"] for entry in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    def sent_bytes(self, bucket: str, prefix: str) -> int:
        """What was sent below a prefix, without what a run keeps for the next one."""
        start = f"/{bucket}/{prefix}/"
        return sum(n for path, n in self.uploaded.items() if path.startswith(start) and ".lswap-partial" not in path)


class _Quiet(MotoRequestHandler):  # type: ignore[misc] - moto has no types
    def log_request(self, *_: Any) -> None:
        pass


@contextmanager
def moto_store() -> Iterator[Store]:
    """moto's S3 server. Its state is the process's, so names of buckets are for one test each."""
    app = DomainDispatcherApplication(create_backend_app)
    store = Store("")
    lock, writing = threading.Lock(), threading.Lock()

    def counted(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock:
            store.answering += 1
        try:
            return answered(environ, start_response)
        finally:
            with lock:
                store.answering -= 1

    def answered(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if environ.get("HTTP_AUTHORIZATION", "").startswith("Bearer"):
            del environ["HTTP_AUTHORIZATION"]  # of Google's clients, which speak the same XML otherwise
        if (refusal := store.refuse(environ)) is not None:
            status, code, *message = refusal
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            text = f"<Error><Code>{code}</Code><Message>{' '.join(message)}</Message></Error>".encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
            return [text]
        store.before(environ)
        with lock:
            store.calls.append((environ["REQUEST_METHOD"], path, query))
            if environ["REQUEST_METHOD"] == "PUT":
                store.uploaded[path] = store.uploaded.get(path, 0) + int(environ.get("CONTENT_LENGTH") or 0)
        # One write at a time, as far as anybody can tell: so a store has it, and moto has not.
        with writing if environ["REQUEST_METHOD"] == "PUT" else nullcontext():
            answer: Iterable[bytes] = app(environ, start_response)
        return answer

    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def localbucket_store(root: Path) -> Iterator[Store]:
    """Another S3-compatible server, by other people; it knows neither ListParts nor ListMultipartUploads, and no metadata."""
    localbucket = pytest.importorskip("localbucket", reason="no second S3-compatible server is installed")
    root.mkdir()
    quiet = {"data_root": root, "log_message": lambda *_: None}
    handler = type("Handler", (localbucket.S3Handler,), quiet)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Store(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


def use(store: Store, monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    """Point the programs of this machine to a store and to no other. nowhere: a path at which nothing is."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(nowhere))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere))


def empty(store: Store, bucket: str) -> None:
    """Remove a bucket with all that it holds."""
    client = store.client()
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    for key in [e["Key"] for e in client.list_objects_v2(Bucket=bucket).get("Contents", ())]:
        client.delete_object(Bucket=bucket, Key=key)
    client.delete_bucket(Bucket=bucket)


class BucketSource:
    """A source of checkpoints in a bucket, which reads what it is asked for and no more."""

    def __init__(self, client: Any, places: Mapping[Role, str]) -> None:
        self._client = client
        self._places = places

    def arrange(self, runs: Sequence[Run]) -> Sequence[Run]:
        return list(reversed(runs))

    def expect(self, order: Sequence[Run]) -> None:
        pass

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        bucket, _, key = self.path_of(ref.role, ref.file).removeprefix("s3://").partition("/")
        begin = ref.begin + offset
        answer = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes={begin}-{begin + len(buffer) - 1}")
        buffer[:] = answer["Body"].read()

    def descriptor(self, role: Role, file: str) -> int | None:
        return None

    def path_of(self, role: Role, file: str) -> str:
        return f"{self._places[role]}/{file}"

    def confirm(self, refs: Iterable[TensorRef]) -> None:
        pass


def _below_two(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Random bits, without the one that makes a BF16 two or more, or no number."""
    return Tensor("BF16", shape, (rng.integers(0, 2**16, shape, np.uint16) & np.uint16(0xBFFF)).tobytes())


def large_pair(root: Path, *, seed: int = 0) -> Pair:
    """Two experts of 47 MB each in two shards, whose layers are larger than the smallest part, some tensors far smaller."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (3000, 512)}
    for n in range(6):
        shapes[f"model.layers.{n}.input_layernorm.weight"] = (512,)
        shapes[f"model.layers.{n}.mlp.up_proj.weight"] = (6000, 512)
        shapes[f"model.layers.{n}.self_attn.q_proj.weight"] = (512, 512)
    shapes |= {"model.norm.weight": (512,), "lm_head.weight": (3000, 512)}
    models = {}
    for role in ("math", "lang"):
        rng = np.random.default_rng([seed, len(role), ord(role[0])])
        models[role] = {name: _below_two(shape, rng) for name, shape in shapes.items()}
        names = sorted(shapes)
        files = [names[: len(names) // 2], names[len(names) // 2 :]]
        write_model(root / role, models[role], files=files, config={"num_hidden_layers": 6, "tie_word_embeddings": False})
    return Pair(root / "math", root / "lang", models["math"], models["lang"])
