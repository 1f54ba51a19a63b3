"""Reads checkpoints in object stores with obstore: `s3://`, `gs://`, `az://` and directories on a web server.

Credentials come from each ecosystem's usual places: the environment variables of AWS, Google and Azure, and roles of the
machine. Where boto3 is installed, everything that AWS's own tools accept works too. AWS_ENDPOINT_URL names another S3.
Without credentials, requests are not signed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from lswap_core.checkpoint.catalogue import INDEX_FILE, SHARD_SUFFIX, SINGLE_FILE
from lswap_core.errors import RecipeError, SourceError, StalePlanError
from lswap_core.io.ports import Silence
from lswap_core.io.threads import run_all
from lswap_core.sources.range_stream import InterruptedTransferError
from lswap_core.sources.remote_catalogue import no_such_file

SCHEMES = ("s3", "gs", "az", "https", "http")
_ON_THE_WEB = ("https", "http")
_KNOWN_FILES = (
    INDEX_FILE, SINGLE_FILE, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "tekken.json", "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json", "LICENSE",
    "LICENSE.txt", "NOTICE",
)  # fmt: skip
"""Files to look for beside the shards on a web server, which cannot list its files."""
_TOLD_BY_S3 = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<]*)</Message>")
_PIECE_BYTES = 256 * 1024
_AT_ONCE = 16
_METADATA_SERVER = "169.254.169.254"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or what AZURE_* else there is",
}


class StoreFolder:
    """The objects below one prefix."""

    def __init__(self, url: str) -> None:
        """Raises RecipeError for a URL that names no place, or where obstore is not installed."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc or parts.query or parts.fragment:
            raise RecipeError(f"{url!r} is no place for a checkpoint; write it like s3://bucket/prefix or https://host/path")
        try:
            import_module("obstore")
        except ImportError as error:
            raise RecipeError(f"{url}: {error.name} is not installed; `pip install lswap-core[stores]` brings it") from error
        self.only: str | None = None
        """See `lswap_core.sources.remote.Folder`."""
        folder = PurePosixPath("/" + parts.path.strip("/"))
        if folder.suffix == SHARD_SUFFIX:
            self.only, folder = folder.name, folder.parent
        self.root = f"{parts.scheme}://{parts.netloc}{folder}".rstrip("/")
        self.name = folder.name or parts.netloc
        self._scheme = parts.scheme
        self._found: dict[str, Any] | None = None
        self._looked: dict[str, Any] = {}
        self._listing = Lock()
        with _translated(self.root, self._scheme):
            self._store = _open_store(parts.scheme, parts.netloc, str(folder).strip("/"))

    def sizes(self) -> Mapping[str, int | None]:
        """See `lswap_core.sources.remote.Folder`. On a web server, only the usual files."""
        return {name: meta["size"] for name, meta in self._metas().items()}

    def told(self, name: str) -> None:
        """None: an ETag also depends on how an object was uploaded, and no store promises that equal ETags mean equal bytes."""

    def reader(self, name: str) -> StoreFile:
        """See `lswap_core.sources.remote.Folder`."""
        return StoreFile(self._store, self._scheme, f"{self.root}/{name}", name, self._meta(name))

    def copy_of(self, name: str) -> Path | None:  # noqa: ARG002 - there is no cache
        """See `lswap_core.sources.remote.Folder`."""
        return None

    def mtime_ns(self, name: str) -> int:
        """See `lswap_core.sources.remote.Folder`."""
        changed: datetime = self._meta(name)["last_modified"]
        return round(changed.timestamp() * 1_000_000) * 1000

    def _meta(self, name: str) -> Any:
        """Metadata of one object: from the list where there is one, else from a request for it."""
        listed = None if self.only or self._scheme in _ON_THE_WEB else self._metas().get(name)
        if listed is None:
            listed = self._looked[name] if name in self._looked else self._looked.setdefault(name, self._look(name))
        return listed

    def _metas(self) -> Mapping[str, Any]:
        with self._listing:  # one thread asks, and the others wait
            if self._found is None:
                if self._scheme in _ON_THE_WEB:
                    looked = run_all(self._peek, _KNOWN_FILES, total_bytes=0, progress=Silence(), workers=_AT_ONCE)
                    self._found = {name: meta for name, meta in zip(_KNOWN_FILES, looked, strict=True) if meta is not None}
                    self._looked |= self._found
                else:
                    with _translated(self.root, self._scheme):
                        self._found = {meta["path"]: meta for page in self._store.list() for meta in page}
            if not self._found:
                raise SourceError(f"{self.root}: there is nothing; check the address, and whether you may list it")
            return self._found

    def _peek(self, name: str, _: object) -> Any:
        try:
            return self._look(name)
        except FileNotFoundError:
            return None

    def _look(self, name: str) -> Any:
        with _translated(f"{self.root}/{name}", self._scheme):
            return self._store.head(name)


class StoreFile:
    """One object, whose ETag must stay the one of the first response."""

    def __init__(self, store: Any, scheme: str, path: str, key: str, meta: Any) -> None:
        self._store, self._scheme, self._key = store, scheme, key
        self.path = path
        self.size: int = meta["size"]
        self.etag: str | None = meta["e_tag"]
        self._lock = Lock()

    def stream(self, begin: int, end: int) -> Generator[memoryview | bytes, None, None]:
        """See `lswap_core.sources.range_stream.RangeReader`."""
        asked: dict[str, Any] = {"range": (begin, end)}
        if self.etag is not None and not self.etag.startswith("W/"):
            asked["if_match"] = self.etag
        with _translated(self.path, self._scheme, patient=True):
            response = self._store.get(self._key, options=asked)
            with self._lock:
                self.etag = self.etag or response.meta["e_tag"]
            if (response.meta["size"], response.meta["e_tag"]) != (self.size, self.etag):
                raise StalePlanError(f"{self.path}: changed while it was read; plan again")
            if response.range[0] != begin:
                raise SourceError(
                    f"{self.path}: asked for bytes from {begin} on, the server sent them from {response.range[0]} on"
                )
            pieces = iter(response.stream(min_chunk_size=_PIECE_BYTES))
        while True:
            with _translated(self.path, self._scheme, patient=True):
                piece = next(pieces, None)
            if piece is None:
                return
            yield memoryview(piece)


def _open_store(scheme: str, host: str, prefix: str) -> Any:
    from obstore import store

    # A whole transfer may take long; only silence means a dead connection. Stream retries by itself.
    client: Any = {"timeout": timedelta(days=1), "connect_timeout": timedelta(seconds=10), "read_timeout": timedelta(seconds=30)}
    retry: Any = {"max_retries": 2, "retry_timeout": timedelta(minutes=2)}
    how: dict[str, Any] = {"client_options": client, "retry_config": retry}
    if scheme in _ON_THE_WEB:
        client["allow_http"] = scheme == "http"
        return store.HTTPStore(f"{scheme}://{host}/{prefix}", **how)
    if scheme == "gs":
        client["allow_http"] = os.environ.get("GOOGLE_BASE_URL", "").startswith("http://")
        return store.GCSStore(host, prefix=prefix or None, **how)
    if scheme == "az":
        client["allow_http"] = os.environ.get("AZURE_STORAGE_ENDPOINT", "").startswith("http://")
        return store.AzureStore(host, prefix=prefix or None, **how)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    client["allow_http"] = endpoint.startswith("http://")
    return store.S3Store(host, prefix=prefix or None, **how, **_aws_credentials())


def _aws_credentials() -> dict[str, Any]:
    """The credentials for the store. obstore itself reads the environment and roles; boto3 also reads profiles and logins."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    try:
        from boto3.session import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = Session()
    if session.get_credentials() is None:
        return {"skip_signature": True}
    return {"credential_provider": Boto3CredentialProvider(session)}


@contextmanager
def _translated(where: str, scheme: str, *, patient: bool = False) -> Iterator[None]:
    """Translate obstore's errors. patient: an unknown error is worth another attempt."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError:
        if patient:
            raise SourceError(f"{where}: the server does not have it any more (404); was it removed?") from None
        raise no_such_file(where) from None
    except exceptions.PreconditionError:
        raise StalePlanError(f"{where}: changed while it was read (another ETag); plan again") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise SourceError(f"{where}: {_refusal(str(error), scheme)}") from None
    except exceptions.NotSupportedError:
        raise SourceError(f"{where}: the server does not serve ranges; download it first and give the directory") from None
    except (exceptions.BaseError, OSError, ValueError) as error:
        told = " ".join(str(error).replace("\\n", " ").split())
        if (match := _TOLD_BY_S3.search(told)) is not None:
            told = f"{match[1]}: {match[2]}"
        if "RequestTimeTooSkewed" in told:
            raise SourceError(f"{where}: {_refusal(told, scheme)}") from None
        if _METADATA_SERVER in told:  # the last place to look for credentials
            raise SourceError(f"{where}: no credentials were found; set {_CREDENTIALS[scheme]}") from None
        if patient:
            raise InterruptedTransferError(f"{told:.200}") from None
        what = "check the address, the network and proxies" + (", and AWS_ENDPOINT_URL" if scheme == "s3" else "")
        raise SourceError(f"{where}: {told:.200}; {what}") from None


def _refusal(told: str, scheme: str) -> str:
    if "RequestTimeTooSkewed" in told:
        return "the store refuses it since this machine's clock is wrong; set it, as by `timedatectl set-ntp true`"
    if scheme in _ON_THE_WEB:
        return "the server refuses it; use an address that needs no login, or download it first"
    return f"the store refuses it; check your access to it, and {_CREDENTIALS[scheme]}"
