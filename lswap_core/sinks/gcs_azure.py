"""Writes an output to `gs://` or `az://` with obstore: every file is one stream, from its first byte to its last.

These stores have no call that copies a range of another object into an upload, and obstore does not expose an upload's id. So
everything is sent, and a run that fails begins again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lswap_core.checkpoint.catalogue import INDEX_FILE
from lswap_core.errors import RecipeError
from lswap_core.io.obstore import open_store, translated
from lswap_core.io.per_thread import Buffers
from lswap_core.io.pieces import Pieces
from lswap_core.io.ports import Source, Tally
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions, check_options
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import MANIFEST_FILE, Plan
from lswap_core.plan.runs import Run

SCHEMES = ("gs", "az")
_PIECE_BYTES = 1024 * 1024
_PART_BYTES = 10 * 1024 * 1024
"""Bytes that are sent at a time. So many bytes of every file may wait in memory until all files are complete."""
_MOST_PARTS = 9_000
_PARTS_AT_ONCE = 8


class StreamSink:
    """Writes below `gs://bucket/prefix` or `az://container/prefix`. Every file is an upload; uploads are completed when all
    bytes are sent. The manifest appears last.
    """

    in_order = True
    """See `lswap_core.io.ports.Sink`."""
    most_workers: int | None = 1
    """See `lswap_core.io.ports.Sink`. A stream takes bytes in order."""

    def __init__(self, destination: str, *, options: WriteOptions = WriteOptions(), traffic: Traffic | None = None) -> None:
        """Raises RecipeError where obstore is missing, and for options that do not apply; SourceError for a bad setup."""
        check_options(options)
        self._url = destination
        self._scheme = destination.partition("://")[0]
        self._options = options
        self._traffic = traffic or Traffic()
        self._store = open_store(destination)
        self._writers: dict[str, Any] = {}
        self._at: dict[str, int] = {}
        self._small: dict[str, bytes] = {}
        self._buffers = Buffers()
        self.shard_sha256: dict[str, str] = {}
        """Always empty, as `check_options` refuses the option that would fill it."""

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:  # noqa: ARG002 - the protocol's
        """See `lswap_core.io.ports.Sink`. Raises RecipeError where the place is not empty, and SourceError where the store
        refuses.
        """
        check_empty(self._store, self._url)
        self._plan = plan
        self._files = {file.name: file for file in plan.files}
        return {}

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Sink`."""
        pieces = Pieces(run, source, tally, self._options.digest)

        def memory(offset: int, size: int) -> memoryview:
            return self._buffers.get("piece", size, run.source.begin + offset)

        for offset, piece in pieces.read(0, run.size_bytes, _PIECE_BYTES, memory):
            self._write(run.file, run.begin + offset, piece)
        self._traffic.add("read_write", run.size_bytes)
        return pieces.records()

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Sink`."""
        self._write(run.file, run.begin + offset, data)
        self._traffic.add("compute", len(data))

    def finish(self, run: Run, records: list[StepRecord]) -> None:
        """See `lswap_core.io.ports.Sink`."""

    def put(self, name: str, data: bytes) -> None:
        """See `lswap_core.io.ports.Sink`."""
        if name in self._small or name in self._files:
            raise RecipeError(f"{self._url}/{name}: two files of the output would have this name")
        self._small[name] = data

    def publish(self) -> None:
        """See `lswap_core.io.ports.Sink`. Shards appear first, then the small files, the index, and at last the manifest."""
        for name, file in self._files.items():
            self._writer(name)  # also of a file without tensors
            assert self._at[name] == file.header.file_size
            with translated(f"{self._url}/{name}", self._scheme, "write"):
                self._writers[name].close()
        for name in sorted(self._small, key=lambda name: (name == MANIFEST_FILE, name == INDEX_FILE)):
            with translated(f"{self._url}/{name}", self._scheme, "write"):
                self._store.put(name, self._small[name])
        self._writers.clear()

    def hash_shard(self, name: str) -> None:
        """Never called; see `check_options`."""
        raise RecipeError(f"{self._url}/{name}: cannot be hashed here")

    def close(self) -> None:
        """See `lswap_core.io.ports.Sink`. Streams that are dropped without being closed are never completed."""
        self._writers.clear()

    @property
    def kept(self) -> bool:
        """Always false: nothing is kept."""
        return False

    @property
    def partial(self) -> str:
        """The URL of the output."""
        return self._url

    def _write(self, file: str, at: int, data: memoryview) -> None:
        writer = self._writer(file)
        if at != self._at[file]:
            raise AssertionError(f"{file}: byte {at} came where byte {self._at[file]} was due")
        with translated(f"{self._url}/{file}", self._scheme, "write"):
            writer.write(bytes(data))  # the stream keeps this object until it is sent
        self._at[file] += len(data)

    def _writer(self, file: str) -> Any:
        if file not in self._writers:
            from obstore import open_writer

            header = self._files[file].header
            part = max(_PART_BYTES, -(-header.file_size // _MOST_PARTS))
            with translated(f"{self._url}/{file}", self._scheme, "write"):
                writer = open_writer(self._store, file, buffer_size=part, max_concurrency=_PARTS_AT_ONCE)
                writer.write(header.encode())
            self._writers[file], self._at[file] = writer, header.data_begin
        return self._writers[file]


def check_empty(store: Any, url: str) -> None:
    """Raises RecipeError where something is there."""
    with translated(url, url.partition("://")[0], "write"):
        first = next((meta["path"] for page in store.list() for meta in page), None)
    if first is not None:
        raise RecipeError(f"{url} is not empty ({first}); an output is never written over, choose another --out or remove it")
