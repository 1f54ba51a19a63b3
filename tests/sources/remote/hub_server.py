"""A hub on the loopback interface: the routes that `huggingface_hub` uses to read, with a second port in the CDN's part, and
faults on request. Written from the client's side of the protocol alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from tests.build import HANG_SECONDS

_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_PIECE = 64 * 1024
_LARGE = (".safetensors", "tokenizer.json")
"""What lies with the CDN, and in git as a pointer."""


@dataclass
class Fault:
    """What to do to one response of the data. status: answer with it, and `headers`; whole: 200 and all of the file; cut: bytes
    of the body after which the connection breaks; shorten: bytes to leave out of a response that is sound in itself; shift: bytes
    by which to miss the range; etag: another ETag.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    whole: bool = False
    cut: int | None = None
    shorten: int = 0
    shift: int = 0
    etag: str | None = None


@dataclass
class Repository:
    """One model: its directory is read at every request. token: what it takes to see it."""

    root: Path
    commit: str
    token: str | None = None
    gated: bool = False

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())


@dataclass
class Pushed:
    """A model that was made here: its files as the commits left them."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


class Bucket:
    """Bytes per second for all connections together. What sleeping too long costs, and no more, is made up for."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate, self._free_at, self._lock = bytes_per_second, 0.0, threading.Lock()

    def take(self, count: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - 0.05) + count / self._rate
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


class HubServer:
    """Two servers on ports of their own; `faults` are met in order by requests for data, whichever come first."""

    def __init__(self, repositories: dict[str, Repository], *, bytes_per_second: float | None = None, latency: float = 0) -> None:
        self.repositories = repositories
        self.faults: list[Fault] = []
        self.api_faults: list[Fault] = []
        self.signature = 1
        """Part of what the CDN's addresses hold; with another one, they have expired."""
        self.etags: dict[str, str] = {}
        self.pushed: dict[str, Pushed] = {}
        self.objects: dict[str, bytes] = {}
        """Large files by SHA-256, whether or not a commit names them."""
        self.latency = latency
        self.bucket = None if bytes_per_second is None else Bucket(bytes_per_second)
        self.lock = threading.Lock()
        self.sent_bytes = 0
        """Of bodies, over both ports."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._hub = _start(self, _HubHandler)
        self._cdn = _start(self, _CdnHandler)
        self.endpoint = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn = f"http://127.0.0.1:{self._cdn.server_port}"

    def forget(self) -> None:
        """Begin to count anew, without faults."""
        with self.lock:
            self.faults, self.api_faults, self.sent_bytes, self.requests = [], [], 0, []
            self.etags, self.pushed, self.objects = {}, {}, {}

    def next_fault(self, faults: list[Fault]) -> Fault:
        with self.lock:
            return faults.pop(0) if faults else Fault()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


def _start(hub: HubServer, handler: type[_Handler]) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    server.hub = hub
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = HANG_SECONDS

    @property
    def hub(self) -> HubServer:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def answer(self) -> None:
        with self.hub.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.hub.requests.append((self.command, self.path, headers))
        if self.hub.latency:
            time.sleep(self.hub.latency)
        self.respond()

    def respond(self) -> None:
        raise NotImplementedError

    def say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with self.hub.lock:
                self.hub.sent_bytes += len(body)
            self.wfile.write(body)

    def send_range(self, path: Path, etag: str, headers: dict[str, str]) -> None:
        """Serve a file, in ranges if asked, with whatever fault is next."""
        size = path.stat().st_size
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        fault = self.hub.next_fault(self.hub.faults) if asked and self.command == "GET" else Fault()
        if fault.status is not None:
            return self.say(fault.status, fault.headers, b"no")
        begin, end = (int(asked[1]), min(int(asked[2] or size) + 1, size)) if asked and not fault.whole else (0, size)
        if asked and begin >= size:
            return self.say(416, {"Content-Range": f"bytes */{size}"})
        begin, end = begin + fault.shift, max(end - fault.shorten, min(begin + 1, size))
        headers = {"Accept-Ranges": "bytes", "ETag": fault.etag or etag, "Content-Length": str(end - begin), **headers}
        if asked and not fault.whole:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self.say(206 if asked and not fault.whole else 200, headers)
        if self.command == "HEAD":
            return None
        stop = end if fault.cut is None else min(end, begin + fault.cut)
        with path.open("rb") as file:
            file.seek(begin)
            while begin < stop:
                piece = file.read(min(_PIECE, stop - begin))
                if self.hub.bucket is not None:
                    self.hub.bucket.take(len(piece))
                with self.hub.lock:
                    self.hub.sent_bytes += len(piece)
                try:
                    self.wfile.write(piece)
                except OSError:
                    self.close_connection = True
                    return None
                begin += len(piece)
        if stop < end:
            self.close_connection = True
        return None


@cache
def _entry(name: str, path: Path, mtime_ns: int) -> dict[str, Any]:
    """A file in the list of a model's files."""
    data = path.read_bytes()
    if not name.endswith(_LARGE):
        return {"rfilename": name, "size": len(data), "blobId": _git_id(data)}
    digest = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
    lfs = {"sha256": digest, "size": len(data), "pointerSize": len(pointer)}
    return {"rfilename": name, "size": len(data), "blobId": _git_id(pointer), "lfs": lfs}


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _HubHandler(_Handler):
    def respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.next_fault(self.hub.api_faults)
        if fault.status is not None:
            return self.say(fault.status, fault.headers, b"{}")
        if self.command == "POST":
            return self._take(path)
        if (found := _API.fullmatch(path)) and (pushed := self.hub.pushed.get(found[1])) is not None:
            siblings = [{"rfilename": name} for name in sorted(pushed.files)]
            told = {"id": found[1], "sha": "e" * 40, "private": pushed.private, "siblings": siblings, "tags": []}
            return self.say(200, {"Content-Type": "application/json"}, json.dumps(told).encode())
        if found := _API.fullmatch(path):
            return self._with(found[1], found[2], self._tell)
        if found := _RESOLVE.fullmatch(path):
            return self._with(found[1], found[2], lambda repo: self._resolve(repo, found[1], found[3]))
        return self.say(404, {"X-Error-Code": "EntryNotFound"})

    def _with(self, name: str, revision: str | None, go_on: Callable[[Repository], None]) -> None:
        repo = self.hub.repositories.get(name)
        token = self.headers.get("Authorization")
        if token is not None and not token.startswith("Bearer good"):
            return self.say(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b'{"error":"Invalid"}')
        if repo is None or (repo.token is not None and token != f"Bearer {repo.token}" and not repo.gated):
            return self.say(404 if token else 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if repo.gated and token != f"Bearer {repo.token}" and "/resolve/" in self.path:
            return self.say(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"})
        if revision not in (None, "main", repo.commit):
            return self.say(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return go_on(repo)

    def _take(self, path: str) -> None:
        """What pushing asks for."""
        body = self.body()
        if self.headers.get("Authorization") != "Bearer good-one":
            return self.say(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b'{"error":"Invalid"}')
        told: dict[str, Any] = {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("private", asked.get("visibility") == "private")
            self.hub.pushed.setdefault(name, Pushed(bool(private)))
            told = {"url": f"{self.hub.endpoint}/{name}"}
        elif path == "/api/validate-yaml":
            told = {"errors": [], "warnings": []}
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = self.hub.pushed[found[1]].files
            told = {"files": [self._mode(entry["path"], files) for entry in json.loads(body)["files"]]}
        elif path.endswith(".git/info/lfs/objects/batch"):
            told = {"transfer": "basic", "objects": [self._place(entry) for entry in json.loads(body)["objects"]]}
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(self.hub.pushed[found[1]], [json.loads(line) for line in body.splitlines()])
            told = {"commitUrl": f"{self.hub.endpoint}/{found[1]}/commit/{'e' * 40}", "commitOid": "e" * 40}
        elif path != "/verify":
            return self.say(404, {})
        return self.say(200, {"Content-Type": "application/json"}, json.dumps(told).encode())

    def _mode(self, path: str, files: dict[str, bytes]) -> dict[str, Any]:
        large = path.endswith(".safetensors")
        told: dict[str, Any] = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in files:
            data = files[path]
            told["oid"] = hashlib.sha256(data).hexdigest() if large else _git_id(data)
        return told

    def _place(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["oid"] in self.hub.objects:
            return entry
        href = f"{self.hub.cdn}/lfs/{entry['oid']}"
        return entry | {"actions": {"upload": {"href": href}, "verify": {"href": f"{self.hub.endpoint}/verify"}}}

    def _commit(self, pushed: Pushed, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                pushed.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                pushed.files[value["path"]] = self.hub.objects[value["oid"]]
        pushed.commits += 1

    def _tell(self, repo: Repository) -> None:
        siblings = [_entry(name, repo.root / name, (repo.root / name).stat().st_mtime_ns) for name in repo.files()]
        said = {"_id": "1", "id": "x/y", "modelId": "x/y", "sha": repo.commit, "private": False, "siblings": siblings, "tags": []}
        self.say(200, {"Content-Type": "application/json"}, json.dumps(said).encode())

    def _resolve(self, repo: Repository, name: str, file: str) -> None:
        path = repo.root / file
        if not path.is_file():
            return self.say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
        etag = hashlib.sha256(file.encode() + str(path.stat().st_mtime_ns).encode()).hexdigest()
        told = {"X-Repo-Commit": repo.commit}
        if not file.endswith(_LARGE):
            return self.send_range(path, f'"{etag[:40]}"', told)
        linked = self.hub.etags.get(file, etag)
        address = f"{self.hub.cdn}/{quote(name)}/{quote(file)}?Signature={self.hub.signature}"
        told |= {"X-Linked-Size": str(path.stat().st_size), "X-Linked-Etag": f'"{linked}"', "Location": address}
        return self.say(302, told)


class _CdnHandler(_Handler):
    def respond(self) -> None:
        parts = urlsplit(self.path)
        if self.command == "PUT":
            body, fault = self.body(), self.hub.next_fault(self.hub.faults)
            if fault.status is not None:
                return self.say(fault.status, fault.headers)
            assert hashlib.sha256(body).hexdigest() == parts.path.removeprefix("/lfs/")
            self.hub.objects[parts.path.removeprefix("/lfs/")] = body
            return self.say(200, {})
        assert "Authorization" not in self.headers, "the token left the hub"
        if parts.path.startswith("/plain/"):  # a web server that serves directories and lists none
            _, org, name, file = unquote(parts.path).strip("/").split("/", 3)
            path = self.hub.repositories[f"{org}/{name}"].root / file
            if not path.is_file():
                return self.say(404, {})
            changed = formatdate(path.stat().st_mtime, usegmt=True)
            return self.send_range(path, f'"web-{path.stat().st_mtime_ns}"', {"Last-Modified": changed})
        if parts.query != f"Signature={self.hub.signature}":
            return self.say(403, {}, b"<Error>Request has expired</Error>")
        org, name, file = unquote(parts.path).strip("/").split("/", 2)
        path = self.hub.repositories[f"{org}/{name}"].root / file
        with suppress(FileNotFoundError):
            return self.send_range(path, f'"cdn-{path.stat().st_mtime_ns}"', {})
        return self.say(404, {})
