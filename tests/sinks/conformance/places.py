"""Places that outputs go to, one class a kind: what the laws must know of them, seen from outside and not through a sink."""

from __future__ import annotations

import errno
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import Environ, Refusal, Store
from tests.build import tree

BUCKET = "conformance"
_WRITING_CALLS = ("pwrite", "fsync", "rename", "replace")


@dataclass
class Place(ABC):
    """A place for one output. into: as a user writes it. parts: how many workers make it; None for one process, which uses
    the sink of whole outputs. environment: what programs need to get there. keeps: unfinished work stays after a failure. has_sha256:
    digests of whole shards can be had.
    """

    into: str
    parts: int | None
    environment: Mapping[str, str]
    keeps = True
    has_sha256 = False

    @property
    def can_resume(self) -> bool:
        """What is kept need not be read again."""
        return self.keeps

    @abstractmethod
    def visible(self) -> dict[str, bytes]:
        """The files that a reader of the output would find."""

    @abstractmethod
    def everything(self) -> dict[str, bytes]:
        """All that there is, unfinished work included."""

    @abstractmethod
    def occupy(self, name: str) -> None:
        """Put somebody's file there."""

    @abstractmethod
    def failing(self, number: int) -> Any:
        """A context in which it refuses all calls that write, from this one on, counted from 0. Skips where that cannot be."""

    def has(self, partial: str) -> bool:
        """There is something at what a sink names as the place of unfinished work."""
        found = partial.removeprefix(self.into).lstrip("/")
        return any(name == found or name.startswith(f"{found}/") for name in self.everything())


class Disk(Place):
    """A directory beside which nothing else is."""

    has_sha256 = True

    def __init__(self, root: Path, parts: int | None) -> None:
        root.mkdir()
        self.root = root
        super().__init__(str(root / "out"), parts, {})

    def visible(self) -> dict[str, bytes]:
        return tree(Path(self.into))

    def everything(self) -> dict[str, bytes]:
        found = tree(self.root)
        return {name.removeprefix("out/"): data for name, data in found.items()}

    def occupy(self, name: str) -> None:
        path = Path(self.into, name)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")

    def has(self, partial: str) -> bool:
        return Path(partial).exists()

    @contextmanager
    def failing(self, number: int) -> Iterator[None]:
        left = iter(range(number))

        def failing(real: Any) -> Any:
            def call(*args: Any, **more: Any) -> Any:
                if next(left, None) is None:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return real(*args, **more)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in _WRITING_CALLS:
                patch.setattr(os, name, failing(getattr(os, name)))
            yield


class Bucket(Place):
    """A prefix in a bucket of a server that speaks S3."""

    def __init__(self, store: Store, prefix: str, parts: int | None, scheme: str = "s3") -> None:
        self.store, self.prefix = store, prefix
        self.keeps = scheme == "s3"
        store.refuse = lambda _: None
        super().__init__(f"{scheme}://{BUCKET}/{prefix}", parts, store.environment if scheme == "s3" else _google(store))

    def visible(self) -> dict[str, bytes]:
        found = self.store.tree(BUCKET, self.prefix)
        return {name: data for name, data in found.items() if not name.startswith(".lswap-partial/")}

    def everything(self) -> dict[str, bytes]:
        client, found = self.store.client(), self.store.tree(BUCKET, self.prefix)
        for entry in client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{self.prefix}/").get("Uploads", ()):
            parts = client.list_parts(Bucket=BUCKET, Key=entry["Key"], UploadId=entry["UploadId"]).get("Parts", ())
            report = json.dumps([(part["PartNumber"], part["ETag"]) for part in parts])
            found[f"{entry['Key'].removeprefix(self.prefix)}?{entry['UploadId']}"] = report.encode()
        return found

    def occupy(self, name: str) -> None:
        self.store.client().put_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}", Body=b"mine")

    @contextmanager
    def failing(self, number: int) -> Iterator[None]:
        left = iter(range(number))

        def refuse(environ: Environ) -> Refusal | None:
            writes = environ["REQUEST_METHOD"] in ("PUT", "POST")
            return ("403 Forbidden", "AccessDenied") if writes and next(left, None) is None else None

        self.store.refuse = refuse
        try:
            yield
        finally:
            self.store.refuse = lambda _: None


class OtherBucket(Bucket):
    """The same on a server that cannot list what is unfinished; it keeps that in a directory."""

    def __init__(self, store: Store, root: Path, prefix: str, parts: int | None) -> None:
        self.root = root
        super().__init__(store, prefix, parts)

    @property
    def can_resume(self) -> bool:
        return self.parts is not None

    def everything(self) -> dict[str, bytes]:
        unfinished = {name: data for name, data in tree(self.root).items() if not name.startswith(f"{BUCKET}/")}
        return self.store.tree(BUCKET, self.prefix) | unfinished

    def failing(self, number: int) -> Any:
        pytest.skip("this server has no switch that makes it fail")


class Container(Place):
    """A prefix in a container of Azurite."""

    keeps = False

    def __init__(self, environment: Mapping[str, str], prefix: str) -> None:
        super().__init__(f"az://{BUCKET}/{prefix}", None, environment)
        self.prefix = prefix

    def _store(self) -> Any:
        from obstore.store import AzureStore

        return AzureStore(
            BUCKET, prefix=self.prefix, account_name=self.environment["AZURE_STORAGE_ACCOUNT_NAME"],
            account_key=self.environment["AZURE_STORAGE_ACCOUNT_KEY"], endpoint=self.environment["AZURE_STORAGE_ENDPOINT"],
            client_options={"allow_http": True},
        )  # fmt: skip

    def visible(self) -> dict[str, bytes]:
        store = self._store()
        return {meta["path"]: bytes(store.get(meta["path"]).bytes()) for page in store.list() for meta in page}

    def everything(self) -> dict[str, bytes]:
        return self.visible()

    def occupy(self, name: str) -> None:
        self._store().put(name, b"mine")

    def failing(self, number: int) -> Any:
        pytest.skip("this server has no switch that makes it fail")


def _google(store: Store) -> dict[str, str]:
    """Google's client is sent to a server of S3, whose XML it speaks, and asks nobody for a token."""
    account = {"gcs_base_url": store.endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    return {"GOOGLE_BASE_URL": store.endpoint, "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "NO_PROXY": "127.0.0.1"}
