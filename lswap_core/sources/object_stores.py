"""Reads checkpoints in object stores with obstore: `s3://`, `gs://`, `az://` and directories on a web server."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from lswap_core.checkpoint.catalogue import INDEX_FILE, SHARD_SUFFIX, SINGLE_FILE
from lswap_core.errors import RecipeError, SourceError, StalePlanError
from lswap_core.io.obstore import WEB_SCHEMES, open_store, translated
from lswap_core.io.ports import Silence
from lswap_core.io.threads import run_all

SCHEMES = ("s3", "gs", "az", *WEB_SCHEMES)
_KNOWN_FILES = (
    INDEX_FILE, SINGLE_FILE, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "tekken.json", "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json", "LICENSE",
    "LICENSE.txt", "NOTICE",
)  # fmt: skip
"""Files to look for beside the shards on a web server, which cannot list its files."""
_PIECE_BYTES = 256 * 1024
_AT_ONCE = 16
_SILENCE_SECONDS = 30
"""Longest silence in the middle of a stream. After it, the connection counts as dead."""


class StoreFolder:
    """The objects below one prefix."""

    def __init__(self, url: str) -> None:
        """Raises RecipeError for a URL that names no place, or where obstore is not installed."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc or parts.query or parts.fragment:
            raise RecipeError(f"{url!r} is no place for a checkpoint; write it like s3://bucket/prefix or https://host/path")
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
        # Streams retry by themselves.
        self._store = open_store(self.root, retries=2, silence_seconds=_SILENCE_SECONDS)

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
        listed = None if self.only or self._scheme in WEB_SCHEMES else self._metas().get(name)
        if listed is None:
            listed = self._looked[name] if name in self._looked else self._looked.setdefault(name, self._look(name))
        return listed

    def _metas(self) -> Mapping[str, Any]:
        with self._listing:  # one thread asks, and the others wait
            if self._found is None:
                if self._scheme in WEB_SCHEMES:
                    looked = run_all(self._peek, _KNOWN_FILES, total_bytes=0, progress=Silence(), workers=_AT_ONCE)
                    self._found = {name: meta for name, meta in zip(_KNOWN_FILES, looked, strict=True) if meta is not None}
                    self._looked |= self._found
                else:
                    with translated(self.root, self._scheme, "look"):
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
        with translated(f"{self.root}/{name}", self._scheme, "look"):
            return self._store.head(name)


class StoreFile:
    """One object, whose ETag must stay the one of the first response."""

    def __init__(self, store: Any, scheme: str, path: str, key: str, meta: Any) -> None:
        self._store, self._scheme, self._key = store, scheme, key
        self.path = path
        self.size: int = meta["size"]
        self.etag: str | None = meta["e_tag"]
        if scheme == "az" and self.etag is not None and not self.etag.startswith(('"', "W/")):
            self.etag = f'"{self.etag}"'  # Azure's lists leave out the quotes that its responses have
        self._lock = Lock()

    def stream(self, begin: int, end: int) -> Generator[memoryview | bytes, None, None]:
        """See `lswap_core.sources.range_stream.RangeReader`."""
        asked: dict[str, Any] = {"range": (begin, end)}
        if self.etag is not None and not self.etag.startswith("W/"):
            asked["if_match"] = self.etag
        with translated(self.path, self._scheme, "stream"):
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
            with translated(self.path, self._scheme, "stream"):
                piece = next(pieces, None)
            if piece is None:
                return
            yield memoryview(piece)
