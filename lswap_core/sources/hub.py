"""Reads checkpoints on the Hugging Face Hub with `huggingface_hub`: its endpoint, token, cache, offline mode and session."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from lswap_core.checkpoint.catalogue import INDEX_FILE, SINGLE_FILE, Content
from lswap_core.errors import RecipeError, SourceError, StalePlanError
from lswap_core.io.locations import HUB_SCHEME
from lswap_core.io.retries import InterruptedTransferError, persist
from lswap_core.sources.http_range import Response, check_body, request_range, retry_later
from lswap_core.sources.hub_errors import LOG_IN, open_session, translated

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata
    from huggingface_hub.hf_api import RepoSibling

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REDIRECTS = 5
_KNOWN_FILES = (INDEX_FILE, SINGLE_FILE, "config.json")


class HubFolder:
    """One commit of a model repository. Files in the local cache are read from there."""

    only = None
    """See `lswap_core.sources.remote.Folder`."""

    def __init__(self, repository: str, revision: str | None = None) -> None:
        """Resolve `revision` (by default the repository's main branch) to a commit; offline, from the cache.

        Raises RecipeError where `huggingface_hub` is not installed, SourceError where the repository cannot be read.
        """
        try:
            import huggingface_hub.constants
            import huggingface_hub.utils
        except ImportError as error:
            raise RecipeError(
                f"{repository}: no such directory here; to look on the hub for it, huggingface_hub is needed: "
                "`pip install lswap-core[hub]` brings it"
            ) from error
        self._hub: Any = huggingface_hub
        self.name = repository
        self._known: dict[str, int | None] | None = None
        self._told: dict[str, Content] = {}
        self._files: dict[str, HubFile] = {}
        self._snapshot: Path | None = None
        if self._offline:
            self._snapshot = self._cached_snapshot(revision)
            if self._snapshot is None:
                raise SourceError(
                    f"{HUB_SCHEME}{repository}: not in the local cache, and HF_HUB_OFFLINE is set; "
                    f"unset it, or fetch the model first with `hf download {repository}`"
                )
            commit = self._snapshot.name
        elif revision is not None and _COMMIT.fullmatch(revision):
            commit = revision
        else:
            commit = self._list(revision)
        self.root = f"{HUB_SCHEME}{repository}@{commit}"
        self._commit = commit

    def sizes(self) -> Mapping[str, int | None]:
        """See `lswap_core.sources.remote.Folder`. Offline, the files in the cache."""
        if self._known is None:
            if self._offline:
                assert self._snapshot is not None
                names = (file.relative_to(self._snapshot).as_posix() for file in self._snapshot.rglob("*") if file.is_file())
                self._known = dict.fromkeys(names)
            else:
                self._list(self._commit)
        assert self._known is not None
        return self._known

    def told(self, name: str) -> Content | None:
        """See `lswap_core.sources.remote.Folder`. SHA-256 of large files, git's digest of others."""
        return self._told.get(name)

    def reader(self, name: str) -> HubFile:
        """See `lswap_core.sources.remote.Folder`."""
        if self._offline:
            raise SourceError(f"{self.root}/{name}: not in the local cache, and HF_HUB_OFFLINE is set; unset it")
        if name not in self._files:
            self._files[name] = HubFile(self, name)
        return self._files[name]

    def copy_of(self, name: str) -> Path | None:
        """See `lswap_core.sources.remote.Folder`."""
        cached = self._hub.try_to_load_from_cache(self.name, name, revision=self._commit)
        return Path(cached) if isinstance(cached, str) else None

    def mtime_ns(self, name: str) -> int:  # noqa: ARG002 - the commit pins them all
        """See `lswap_core.sources.remote.Folder`."""
        return 0

    def metadata(self, name: str) -> HfFileMetadata:
        """Size, ETag and current address of a file."""
        url = self._hub.hf_hub_url(self.name, name, revision=self._commit)
        where = f"{self.root}/{name}"

        def ask() -> HfFileMetadata:
            with translated(where, self.name, patient=True):
                metadata: HfFileMetadata = self._hub.get_hf_file_metadata(url, token=None)
                return metadata

        metadata = persist(where, ask)
        if metadata.commit_hash not in (None, self._commit):
            raise StalePlanError(f"{where}: the hub answers with commit {metadata.commit_hash}; plan again")
        if metadata.size is None:
            raise SourceError(f"{where}: the hub does not tell its size; download it first with `hf download {self.name}`")
        return metadata

    def headers_for(self, url: str) -> dict[str, str]:
        """Headers for a request to `url`. Only the hub gets the token, never an address that it redirects to."""
        ours = urlsplit(url)[:2] == urlsplit(self._hub.hf_hub_url(self.name, "x"))[:2]
        return dict(self._hub.utils.build_hf_headers(token=None if ours else False, library_name="lswap_core"))

    @cached_property
    def _offline(self) -> bool:
        constants = self._hub.constants
        return bool(constants.is_offline_mode() if hasattr(constants, "is_offline_mode") else constants.HF_HUB_OFFLINE)

    def _list(self, revision: str | None) -> str:
        """List the files at `revision`. Returns its commit."""
        where = f"{HUB_SCHEME}{self.name}" + (f"@{revision}" if revision else "")

        def ask() -> Any:
            with translated(where, self.name, revision):
                return self._hub.HfApi(library_name="lswap_core").model_info(self.name, revision=revision, files_metadata=True)

        info = persist(where, ask)
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise SourceError(f"{where}: the hub does not tell its commit; is HF_ENDPOINT a hub?")
        self._known = {entry.rfilename: entry.size for entry in info.siblings or ()}
        self._told = {entry.rfilename: told for entry in info.siblings or () if (told := _content(entry)) is not None}
        return str(info.sha)

    def _cached_snapshot(self, revision: str | None) -> Path | None:
        for name in _KNOWN_FILES:
            cached = self._hub.try_to_load_from_cache(self.name, name, revision=revision)
            if isinstance(cached, str):
                return Path(cached).parent
        return None


def _content(entry: RepoSibling) -> Content | None:
    """Size and digest from the list of files. Git's entry of a large file describes only a pointer to it."""
    if entry.size is None:
        return None
    if entry.lfs is not None:
        return Content(entry.size, f"sha256:{entry.lfs.sha256}") if _SHA256.fullmatch(entry.lfs.sha256) else None
    return Content(entry.size, f"git-sha1:{entry.blob_id}") if _COMMIT.fullmatch(entry.blob_id or "") else None


class HubFile:
    """One file of a commit, read in ranges from the address that the hub gives."""

    def __init__(self, folder: HubFolder, name: str) -> None:
        self.path = f"{folder.root}/{name}"
        self._folder, self._name = folder, name
        self._lock = Lock()
        metadata = folder.metadata(name)
        assert metadata.size is not None
        self.size: int = metadata.size
        self._linked_etag = metadata.etag
        self._address: str | None = metadata.location
        self._generation = 0
        """How often the address was requested again."""
        self._proven = True
        """Whether the current address has worked, or is the first."""
        self.etag: str | None = None
        """ETag of the responses from the current address."""

    def stream(self, begin: int, end: int) -> Generator[bytes, None, None]:
        """See `lswap_core.sources.range_stream.RangeReader`."""
        address, generation = self._present_address()
        for _ in range(_REDIRECTS):
            with translated(self.path, self._folder.name):
                response = request_range(open_session(), address, self._folder.headers_for(address), begin, end)
            with closing(response):
                if response.status in (301, 302, 303, 307, 308):
                    address = urljoin(address, response.headers["Location"])
                    continue
                self._check(response, urlsplit(address).netloc, generation, begin, end)
                yield from response.pieces
                return
        raise SourceError(f"{self.path}: redirected more than {_REDIRECTS} times; check HF_ENDPOINT")

    def _check(self, response: Response, host: str, generation: int, begin: int, end: int) -> None:
        if (later := retry_later(response)) is not None:
            raise later
        if response.status in (401, 403):
            if self._forget(generation):  # signed addresses expire
                raise InterruptedTransferError(f"{host} refuses it ({response.status})", 0)
            raise SourceError(f"{self.path}: {host} refuses it ({response.status}); check your access to it, and {LOG_IN}")
        if response.status == 404:
            raise SourceError(f"{self.path}: {host} does not have it (404); was it removed from the hub?")
        if response.status == 416:
            raise StalePlanError(f"{self.path}: has no bytes {begin}-{end - 1} any more (416); plan again")
        if response.status not in (200, 206):
            raise SourceError(f"{self.path}: unexpected answer {response.status} from {host}; check HF_ENDPOINT and proxies")
        check_body(response, path=self.path, begin=begin, end=end, size=self.size)
        etag = response.headers.get("ETag")
        with self._lock:
            if generation != self._generation:
                return
            self._proven = True
            if self.etag is None:
                self.etag = etag
            elif etag != self.etag:
                raise StalePlanError(f"{self.path}: changed while it was read (ETag {etag}, before {self.etag}); plan again")

    def _present_address(self) -> tuple[str, int]:
        with self._lock:
            if self._address is None:
                metadata = self._folder.metadata(self._name)
                if (metadata.size, metadata.etag) != (self.size, self._linked_etag):
                    raise StalePlanError(f"{self.path}: changed while it was read; plan again")
                self._address = metadata.location
            return self._address, self._generation

    def _forget(self, generation: int) -> bool:
        """Let the next request ask the hub for a new address. False where the current one never worked."""
        with self._lock:
            if generation == self._generation:
                if not self._proven:
                    return False
                self._address = self.etag = None
                self._generation += 1
                self._proven = False
            return True
