"""Places that checkpoints are read from, one class a kind: how a checkpoint gets there, changes there and fails there."""

from __future__ import annotations

import itertools
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.buckets import Environ, Refusal, Store
from tests.sources.remote.hub_server import Fault, HubServer, Repository

BUCKET = "sources"
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Shelf:
    """A checkpoint at its place. location: as a user writes it. path: how messages begin that are about one of its files."""

    location: str
    path: str
    key: str


class Place(ABC):
    """Of one kind. lists: it says what files it has. served: it has a server, which can fail. quick: a checkpoint is put there
    in no time. environment: what programs need to get there.
    """

    lists = True
    served = True
    quick = True
    environment: Mapping[str, str] = {}

    @abstractmethod
    def put(self, root: Path) -> Shelf:
        """Make a copy of a directory there."""

    @abstractmethod
    def change(self, shelf: Shelf, name: str, data: bytes | None) -> None:
        """Another content for a file, or none at all."""

    def refuse(self, status: int) -> None:  # noqa: B027 - for those that are served
        """Answer every request for a range of a file so from now on."""

    def cut(self, after: int, times: int) -> None:  # noqa: B027 - for those that are served
        """Break the connection after so many bytes of every answer, so many times."""

    def heal(self) -> None:  # noqa: B027 - for those that are served
        """Fail no more."""


class Disk(Place):
    """Directories."""

    served = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, root: Path) -> Shelf:
        at = self._root / f"shelf-{next(_NUMBERS)}"
        shutil.copytree(root, at)
        return Shelf(str(at), str(at), str(at))

    def change(self, shelf: Shelf, name: str, data: bytes | None) -> None:
        _change(Path(shelf.location, name), data)


class Hub(Place):
    """Repositories on the hub's server in this directory."""

    def __init__(self, server: HubServer, root: Path) -> None:
        self._server, self._root = server, root
        self.heal()

    def put(self, root: Path) -> Shelf:
        number = next(_NUMBERS)
        name, commit = f"shelf/m{number}", f"{number:040x}"
        shutil.copytree(root, self._root / commit)
        self._server.repositories[name] = Repository(self._root / commit, commit)
        return Shelf(name, f"hf://{name}@{commit}", commit)

    def change(self, shelf: Shelf, name: str, data: bytes | None) -> None:
        _change(self._root / shelf.key / name, data)

    def refuse(self, status: int) -> None:
        self._server.faults = [Fault(status=status)] * 1000

    def cut(self, after: int, times: int) -> None:
        self._server.faults = [Fault(cut=after)] * times

    def heal(self) -> None:
        self._server.forget()


class Web(Hub):
    """Directories behind a web server that lists none."""

    lists = False

    def put(self, root: Path) -> Shelf:
        shelf = super().put(root)
        address = f"{self._server.cdn}/plain/{shelf.location}"
        return Shelf(address, address, shelf.key)


class Bucket(Place):
    """Prefixes in a bucket. scheme: `gs` is the same server by Google's client."""

    quick = False

    def __init__(self, store: Store, scheme: str) -> None:
        self._store, self._scheme = store, scheme
        google = {"GOOGLE_BASE_URL": store.endpoint, "GOOGLE_SKIP_SIGNATURE": "true", "NO_PROXY": "127.0.0.1"}
        self.environment = google if scheme == "gs" else store.environment
        self.heal()

    def put(self, root: Path) -> Shelf:
        key = f"shelf-{next(_NUMBERS)}"
        client = self._store.client()
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            name = f"{key}/{path.relative_to(root).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=name, Body=path.read_bytes(), ACL="public-read")
        location = f"{self._scheme}://{BUCKET}/{key}"
        return Shelf(location, location, key)

    def change(self, shelf: Shelf, name: str, data: bytes | None) -> None:
        at: dict[str, Any] = {"Bucket": BUCKET, "Key": f"{shelf.key}/{name}"}
        client = self._store.client()
        if data is None:
            client.delete_object(**at)
        else:
            client.put_object(**at, Body=data, ACL="public-read")

    def refuse(self, status: int) -> None:
        said = {403: ("403 Forbidden", "AccessDenied"), 404: ("404 Not Found", "NoSuchKey")}[status]

        def refuse(environ: Environ) -> Refusal | None:
            return said if "HTTP_RANGE" in environ else None

        self._store.refuse = refuse

    def cut(self, after: int, times: int) -> None:
        left = itertools.repeat(after, times)
        self._store.cut = lambda environ: next(left, None) if "HTTP_RANGE" in environ else None

    def heal(self) -> None:
        self._store.refuse, self._store.cut = (lambda _: None), (lambda _: None)


def _change(path: Path, data: bytes | None) -> None:
    path.unlink()
    if data is not None:
        path.write_bytes(data)
