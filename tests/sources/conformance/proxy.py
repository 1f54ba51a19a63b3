"""A proxy in front of an object store on the loopback interface. It records the ranges that are asked for, and fails on demand."""

from __future__ import annotations

import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.build import HANG_SECONDS
from tests.sources.remote.hub_server import Fault

CODES = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 429: "SlowDown", 500: "InternalError", 503: "SlowDown"}
"""S3's codes for statuses that a fault answers with."""
_OF_ONE_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "content-length")


class Proxy:
    """Passes requests on to the server at `upstream`. faults: met in order by requests for ranges, as in `HubServer`. requests:
    method, path and headers of every request.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}{self.upstream.path}"

    def forget(self) -> None:
        """Drop the recorded requests and the faults that are left."""
        with self.lock:
            self.faults, self.requests = [], []

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = HANG_SECONDS

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.pass_on()

    def do_HEAD(self) -> None:
        self.pass_on()

    def pass_on(self) -> None:
        assert isinstance(self.server, _Server)
        proxy, fault = self.server.proxy, Fault()
        headers = {name.lower(): value for name, value in self.headers.items()}
        with proxy.lock:
            proxy.requests.append((self.command, self.path, headers))
            if "range" in headers and proxy.faults:
                fault = proxy.faults.pop(0)
        if fault.status is not None:
            said = f"<Error><Code>{CODES[fault.status]}</Code><Message>As asked</Message></Error>".encode()
            self.answer(fault.status, [], len(said), said)
            return
        upstream = HTTPConnection(proxy.upstream.netloc, timeout=HANG_SECONDS)
        try:
            upstream.request(self.command, self.path, headers=headers)
            response = upstream.getresponse()
            body = response.read()
            size = int(response.headers.get("Content-Length", len(body)))
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _OF_ONE_CONNECTION]
            self.answer(response.status, kept, size, body[: fault.cut])
        finally:
            upstream.close()

    def answer(self, status: int, headers: list[tuple[str, str]], size: int, body: bytes) -> None:
        """Announce `size` bytes and send `body`. Where that is shorter, the connection breaks after it."""
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(size))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.close_connection = len(body) < size
