"""Places that checkpoints are read from, one class for each kind: how a checkpoint gets there, changes there and fails there."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.azurite import ACCOUNT, ACCOUNT_KEY, free_port
from tests.buckets import Store
from tests.sources.conformance.proxy import Proxy
from tests.sources.remote.hub_server import Fault, HubServer, Repository

BUCKET = "sources"
FOREVER = 1000
"""More faults than any test meets."""
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Placed:
    """A checkpoint at a place.

    location: as a user writes it. path: how messages begin that are about one of its files. key: its own name, which is also a
    part of every address of its files.
    """

    location: str
    path: str
    key: str


class Place(ABC):
    """One kind of place.

    remote: it has a server, which can fail. lists_files: it says which files it has. opens_files: a location may name a single
    file. keeps_times: it knows when a file was changed. fills_fast: hundreds of small checkpoints can be put there and opened in a second.
    environment: the variables that programs need to reach it.
    """

    remote = True
    lists_files = True
    opens_files = True
    keeps_times = True
    fills_fast = True
    environment: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._shared: dict[Path, Placed] = {}

    def shared(self, root: Path) -> Placed:
        """The one copy of a directory there that tests only read."""
        if root not in self._shared:
            self._shared[root] = self.put(root)
        return self._shared[root]

    @abstractmethod
    def put(self, root: Path) -> Placed:
        """Make a copy of a directory there, which the test may change."""

    @abstractmethod
    def change(self, placed: Placed, name: str, data: bytes | None) -> None:
        """Give a file another content, in place. None removes it."""

    @abstractmethod
    def location_of(self, name: str) -> str:
        """The location at which a checkpoint of that name would be."""

    def unreachable(self, name: str, patch: pytest.MonkeyPatch) -> str:
        """A location of this kind at a server that does not answer."""
        raise NotImplementedError

    def refuse(self, status: int, times: int = FOREVER, *, first: int = 0) -> None:
        """Answer so many requests for ranges with this status. first: requests before that are answered."""
        raise NotImplementedError

    def cut(self, after: int, times: int = FOREVER, *, first: int = 0) -> None:
        """Break the connection after so many bytes, in so many answers to such requests. first: as for `refuse`."""
        raise NotImplementedError

    def ranges(self, placed: Placed) -> dict[str, list[tuple[int, int]]]:
        """The half-open ranges of a checkpoint's files that were asked for since the last `forget`, by file name, in order."""
        raise NotImplementedError

    def forget(self) -> None:  # noqa: B027 - a disk has nothing to forget
        """Fail no more, and drop what was recorded."""


class Disk(Place):
    """Directories."""

    remote = False

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def put(self, root: Path) -> Placed:
        there = self.location_of(f"m{next(_NUMBERS)}")
        shutil.copytree(root, there)
        return Placed(there, there, there)

    def change(self, placed: Placed, name: str, data: bytes | None) -> None:
        _change(Path(placed.location, name), data)

    def location_of(self, name: str) -> str:
        return str(self._root / "models" / name)


class Remote(Place):
    """A place behind a server of the loopback interface that records requests and has faults on demand."""

    def __init__(self, server: HubServer | Proxy) -> None:
        super().__init__()
        self._faulty = server

    def refuse(self, status: int, times: int = FOREVER, *, first: int = 0) -> None:
        self._faulty.faults = [Fault()] * first + [Fault(status=status)] * times

    def cut(self, after: int, times: int = FOREVER, *, first: int = 0) -> None:
        self._faulty.faults = [Fault()] * first + [Fault(cut=after)] * times

    def ranges(self, placed: Placed) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for method, address, headers in self._faulty.requests:
            folder, _, name = unquote(address.partition("?")[0]).rpartition("/")
            asked = _RANGE.fullmatch(headers.get("range", ""))
            if method == "GET" and asked and f"/{placed.key}/" in f"{folder}/" and self._sends_data(address):
                found.setdefault(name, []).append((int(asked[1]), int(asked[2]) + 1))
        return found

    def forget(self) -> None:
        self._faulty.forget()

    def _sends_data(self, address: str) -> bool:
        """Whether a request for that address is answered with the file's bytes."""
        return True


class Hub(Remote):
    """Repositories on the hub's server. They are in this directory."""

    opens_files = False
    keeps_times = False

    def __init__(self, server: HubServer, root: Path) -> None:
        self._server, self._root = server, root
        self.endpoint = server.endpoint
        super().__init__(server)

    def put(self, root: Path) -> Placed:
        number = next(_NUMBERS)
        key, commit = f"m{number}", f"{number:040x}"
        shutil.copytree(root, self._root / key)
        self._server.repositories[f"org/{key}"] = Repository(self._root / key, commit)
        return Placed(f"org/{key}", f"hf://org/{key}@{commit}", key)

    def change(self, placed: Placed, name: str, data: bytes | None) -> None:
        _change(self._root / placed.key / name, data)

    def location_of(self, name: str) -> str:
        return f"org/{name}"

    def unreachable(self, name: str, patch: pytest.MonkeyPatch) -> str:
        point_to_hub(closed_port(), self._root / "cache", patch)
        return self.location_of(name)

    def _sends_data(self, address: str) -> bool:
        return "Signature=" in address or not address.partition("?")[0].endswith((".safetensors", "tokenizer.json"))


class Web(Hub):
    """Directories behind a web server, which cannot list them."""

    lists_files = False
    opens_files = True
    keeps_times = True
    fills_fast = False

    def put(self, root: Path) -> Placed:
        placed = super().put(root)
        address = f"{self._server.cdn}/plain/{placed.location}"
        return Placed(address, address, placed.key)

    def location_of(self, name: str) -> str:
        self._server.repositories[f"org/{name}"] = Repository(self._root / "nothing", "0" * 40)
        return f"{self._server.cdn}/plain/org/{name}"

    def unreachable(self, name: str, patch: pytest.MonkeyPatch) -> str:
        return f"{closed_port()}/{name}"

    def _sends_data(self, address: str) -> bool:
        return True


class Bucket(Remote):
    """Prefixes in a bucket, read through a proxy. scheme: `s3`, or `gs`, which is the same server with Google's client."""

    fills_fast = False
    endpoint_variable = "AWS_ENDPOINT_URL"

    def __init__(self, store: Store, proxy: Proxy, scheme: str) -> None:
        self._client, self._scheme = store.client(), scheme
        if scheme == "gs":
            self.endpoint_variable = "GOOGLE_BASE_URL"
            self.environment = {"GOOGLE_BASE_URL": proxy.endpoint, "GOOGLE_SKIP_SIGNATURE": "true", "NO_PROXY": "127.0.0.1"}
        else:
            self.environment = {**store.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        super().__init__(proxy)

    def put(self, root: Path) -> Placed:
        placed = self._placed(f"m{next(_NUMBERS)}")
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            self.write(f"{placed.key}/{path.relative_to(root).as_posix()}", path.read_bytes())
        return placed

    def change(self, placed: Placed, name: str, data: bytes | None) -> None:
        key = f"{placed.key}/{name}"
        if data is None:
            self.remove(key)
        else:
            self.write(key, data)

    def location_of(self, name: str) -> str:
        return f"{self._scheme}://{BUCKET}/{name}"

    def unreachable(self, name: str, patch: pytest.MonkeyPatch) -> str:
        patch.setenv(self.endpoint_variable, closed_port())
        return self.location_of(name)

    def write(self, key: str, data: bytes) -> None:
        """Put one object."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data, ACL="public-read")

    def remove(self, key: str) -> None:
        """Remove one object."""
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def _placed(self, key: str) -> Placed:
        return Placed(self.location_of(key), self.location_of(key), key)


class Container(Bucket):
    """Prefixes in a container of Azurite."""

    endpoint_variable = "AZURE_STORAGE_ENDPOINT"

    def __init__(self, environment: Mapping[str, str], proxy: Proxy) -> None:
        from obstore.store import AzureStore

        self._scheme = "az"
        self.environment = {**environment, "AZURE_STORAGE_ENDPOINT": proxy.endpoint}
        self._azure: Any = AzureStore(
            BUCKET, account_name=ACCOUNT, account_key=ACCOUNT_KEY, endpoint=environment["AZURE_STORAGE_ENDPOINT"],
            client_options={"allow_http": True},
        )  # fmt: skip
        Remote.__init__(self, proxy)

    def write(self, key: str, data: bytes) -> None:
        self._azure.put(key, data)

    def remove(self, key: str) -> None:
        self._azure.delete(key)


def point_to_hub(endpoint: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT and HF_HUB_CACHE do. The library reads them when it is imported, and then never again."""
    from huggingface_hub import constants

    patch.setenv("HF_ENDPOINT", endpoint)
    patch.setenv("HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))


def closed_port() -> str:
    """The address of a port on which nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def _change(path: Path, data: bytes | None) -> None:
    """In place, so that a reader that has the file open sees it. The time of the last change differs in any case."""
    if data is None:
        path.unlink()
        return
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1_000_000))
