"""An output on a local or mounted disk: built beside its final place, resumable, published by one rename."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from threading import Lock, local

from lswap_core.descriptors import Descriptors
from lswap_core.digests import RunDigests
from lswap_core.errors import located
from lswap_core.manifest import StepRecord
from lswap_core.options import WriteOptions
from lswap_core.plan import MANIFEST_FILE, Plan, Step
from lswap_core.ports import Source, Tally
from lswap_core.runs import Run, base_of, is_shareable
from lswap_core.sinks.copying import Copier, Span
from lswap_core.sinks.durable import sync_directory, sync_file, write_all
from lswap_core.sinks.earlier import find_earlier, finished, is_intact
from lswap_core.sinks.journal import Journal
from lswap_core.sinks.partial import JOURNAL_FILE, Partial, check_destination
from lswap_core.sinks.placing import WRITTEN, place, try_copying
from lswap_core.sinks.writeback import Writeback
from lswap_core.sizes import format_size
from lswap_core.traffic import Traffic

_PIECE_BYTES = 256 * 1024
"""See `lswap_core.evaluate.CHUNK_BYTES`."""
_COMMIT_SECONDS = 5.0
"""What a power cut costs, at most, beside the steps in flight."""


class LocalSink:
    """Writes to `.<name>.partial` beside `destination`. What was finished there is kept when a run fails, for the next one."""

    in_order = False
    """See `lswap_core.ports.Sink`."""
    most_workers: int | None = None
    """See `lswap_core.ports.Sink`."""

    def __init__(
        self,
        destination: str | os.PathLike[str],
        *,
        sources: Iterable[str] = (),
        options: WriteOptions = WriteOptions(),
        traffic: Traffic | None = None,
        restart: bool = False,
    ) -> None:
        """Claim the partial directory. RecipeError where the destination exists, lies in, is or holds one of `sources`
        (paths), or is being written by another process. restart: discard what an earlier run left.
        """
        self._partial = Partial(check_destination(destination, sources))
        self._options = options
        self._traffic = traffic or Traffic()
        self._restart = restart
        self._copier = Copier(options.copy_method, self._traffic)
        self._writeback = Writeback()
        self._descriptors = Descriptors(self._open)
        self._buffers = local()
        self._journal: Journal | None = None
        self._lock, self._committing = Lock(), Lock()
        self._touched: set[str] = set()
        self._events = 0
        self._committed_at = time.monotonic()
        self._steps_left: Counter[str] = Counter()
        self._shared: frozenset[str] = frozenset()
        self._open_still = True
        self.shard_sha256: dict[str, str] = {}
        """Of whole shards, as far as they were asked for."""
        self._worth_keeping = not restart and self._partial.holds_work

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """See `lswap_core.ports.Sink`. RecipeError where an unfinished merge of another plan is in the way,
        or the copying method that was asked for does not work.
        """
        try_copying(plan, source, self.partial, self._copier, self._options.copy_method)
        earlier = None if self._restart else find_earlier(self.partial, plan, self._options.digest)
        self._worth_keeping = earlier is not None
        self._partial.clear(keep=[JOURNAL_FILE, MANIFEST_FILE, *earlier.placed] if earlier else ())
        self._journal = Journal(self.partial / JOURNAL_FILE, plan.digest, self._options.digest)
        intact = {f.name for f in plan.files if earlier and is_intact(self.partial, f, earlier.placed.get(f.name))}
        held = finished(self.partial, plan, earlier, intact) if earlier is not None else {}
        if earlier is not None and len(intact) < len(plan.files):
            # A file that is made anew must not be taken for the one that the journal tells of.
            self._sync(intact)
            self._journal.start({name: earlier.placed[name] for name in intact}, list(held.values()))
        placed, shared = {}, set()
        for file in plan.files:
            base = base_of(file)
            if earlier is not None and file.name in intact:
                how = earlier.placed[file.name]
            else:
                path = self.partial / file.name
                how = place(file, base, source, path, copier=self._copier, link=self._options.link)
            placed[file.name] = how
            if base is not None and how != WRITTEN:
                shared |= {step.name for step in base.shared}
                self._traffic.add(how, sum(step.size_bytes for step in base.shared))
        self._shared = frozenset(shared)
        done = dict(held)
        if self._options.digest in ("auto", "none"):
            done |= {name: StepRecord(name, None) for name in shared}
        self._steps_left.update(step.file for step in plan.steps if step.name not in done)
        self._check_space(step for step in plan.steps if step.name not in done and step.name not in shared)
        self._sync(placed)
        sync_directory(self._partial.destination.parent)
        self._traffic.add("resume", sum(step.size_bytes for step in plan.steps if step.name in held))
        self._journal.start(placed, list(held.values()))
        (self.partial / MANIFEST_FILE).unlink(missing_ok=True)  # what it told stands in the journal now
        self._events = 1 if held else 0
        return done

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.ports.Sink`."""
        digests = None if self._options.digest == "none" else RunDigests(run.steps)
        if run.steps[0].name in self._shared:  # nothing to be written; only a digest was asked for
            self._through(run, 0, run.size_bytes, source, tally, digests, write=False)
        else:
            self._transfer(run, source, tally, digests)
        return [StepRecord(step.name, None) for step in run.steps] if digests is None else digests.records()

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.ports.Sink`."""
        self._write(run, offset, data)
        self._traffic.add("compute", len(data))

    def finish(self, run: Run, records: list[StepRecord]) -> None:
        """See `lswap_core.ports.Sink`."""
        assert self._journal is not None
        with self._lock:
            self._events = self._journal.record(records)
            self._touched.add(run.file)
            self._steps_left[run.file] -= len(run.steps)
            complete = not self._steps_left[run.file]
            due = time.monotonic() - self._committed_at > _COMMIT_SECONDS
            self._worth_keeping = True
        if complete and self._options.digest == "sha256":
            self.hash_shard(run.file)  # now, while its pages are in the cache
        if due and self._committing.acquire(blocking=False):
            try:
                self._commit()
            finally:
                self._committing.release()

    def hash_shard(self, name: str) -> None:
        """Take the SHA-256 of a whole shard, unless that was done."""
        if name not in self.shard_sha256:
            with open(self.partial / name, "rb", buffering=0) as file:
                self.shard_sha256[name] = file_digest(file, "sha256").hexdigest()

    def put(self, name: str, data: bytes) -> None:
        """See `lswap_core.ports.Sink`."""
        path = self.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with located(path), open(path, "xb") as handle:  # never over a shard
            handle.write(data)

    def publish(self) -> None:
        """See `lswap_core.ports.Sink`."""
        self._let_go()
        self._partial.publish()
        self.close()

    def close(self) -> None:
        """See `lswap_core.ports.Sink`."""
        if self._open_still:
            self._open_still = False
            self._let_go()
            try:
                if not (self.kept or self._partial.published):
                    self._partial.remove()
            finally:
                self._partial.release()

    @property
    def kept(self) -> bool:
        """What was finished is kept in the partial directory, for the same command to go on from."""
        return self._worth_keeping and not self._partial.published

    @property
    def partial(self) -> Path:
        """Where it is built."""
        return self._partial.path

    def _let_go(self) -> None:
        self._descriptors.close()
        if self._journal is not None:
            self._journal.close()

    def _check_space(self, left: Iterable[Step]) -> None:
        """Raise ENOSPC where the steps that are left do not fit. What can be shared with a source takes no room."""
        needed = sum(step.size_bytes for step in left if not (self._copier.shares and is_shareable(step)))
        free = shutil.disk_usage(self.partial).free
        if needed > free:
            what = f"{format_size(needed)} are to be written, the disk has {format_size(free)} free"
            raise OSError(errno.ENOSPC, what, str(self._partial.destination.parent))

    def _open(self, _slot: str, name: str) -> int:
        return os.open(self.partial / name, os.O_RDWR | os.O_CLOEXEC)

    def _sync(self, names: Iterable[str]) -> None:
        for name in names:
            sync_file(self.partial / name)
        sync_directory(self.partial)

    def _commit(self) -> None:
        """Make what was written so far durable, then say so in the journal: never the other way round."""
        assert self._journal is not None
        with self._lock:
            events, touched, self._touched = self._events, self._touched, set()
        try:
            for name in touched:
                sync_file(self.partial / name)
        except OSError:
            with self._lock:  # another thread may still come here, and must not vouch for what was not synced
                self._touched |= touched
            raise
        self._journal.synced(events)
        self._committed_at = time.monotonic()

    # Bytes

    def _transfer(self, run: Run, source: Source, tally: Tally, digests: RunDigests | None) -> None:
        """By sharing extents where that can be; else by the kernel where no digest is wanted; else through a buffer, in which
        the bytes are digested while they are in the cache.
        """
        theirs, end = source.descriptor(run.source.role, run.source.file), run.size_bytes
        if theirs is None:
            return self._through(run, 0, end, source, tally, digests)
        span = Span(theirs, run.source.begin, self._descriptors.get("out", run.file), run.begin, end)
        with located(self.partial / run.file):
            body = self._copier.clone(span)
        if body is not None:
            self._through(run, 0, body[0], source, tally, digests)
            if digests is not None and self._options.digest != "auto":
                self._through(run, *body, source, tally, digests, write=False)
            else:
                tally(body[1] - body[0])
            return self._through(run, body[1], end, source, tally, digests)
        if digests is not None and self._options.copy_method == "auto":
            return self._through(run, 0, end, source, tally, digests)

        def advance(begin: int, stop: int) -> None:
            self._wrote(run, span.target, run.begin + begin, run.begin + stop)
            if digests is None:
                tally(stop - begin)
            else:
                self._through(run, begin, stop, source, tally, digests, write=False)

        with located(self.partial / run.file):
            done = self._copier.move(span, advance)
        return self._through(run, done, end, source, tally, digests)

    def _through(
        self, run: Run, begin: int, end: int, source: Source, tally: Tally, digests: RunDigests | None, *, write: bool = True
    ) -> None:
        """Bring bytes [begin, end) of a run over through a buffer; or only digest them, if they are there already."""
        for offset, piece in self._pieces(end - begin):
            source.read_into(run.source, begin + offset, piece)
            if digests is not None:
                digests.feed(run.begin + begin + offset, piece)
            if write:
                self._write(run, begin + offset, piece)
            tally(len(piece))
        if write and end > begin:
            self._traffic.add("read_write", end - begin)

    def _write(self, run: Run, offset: int, data: memoryview) -> None:
        fd, at = self._descriptors.get("out", run.file), run.begin + offset
        with located(self.partial / run.file):
            write_all(fd, data, at)
        self._wrote(run, fd, at, at + len(data))

    def _wrote(self, run: Run, fd: int, begin: int, end: int) -> None:
        path = self.partial / run.file
        try:
            with located(path):
                self._writeback.wrote(fd, begin, end)
        except OSError:
            path.unlink(missing_ok=True)  # as `sync_file` does, and for the same reason
            raise

    def _pieces(self, size: int) -> Iterable[tuple[int, memoryview]]:
        """Offsets of the pieces of something, and a buffer for each, the same one."""
        buffer: bytearray = self._buffers.__dict__.setdefault("piece", bytearray(_PIECE_BYTES))
        for offset in range(0, size, _PIECE_BYTES):
            yield offset, memoryview(buffer)[: min(_PIECE_BYTES, size - offset)]
