"""Writes an output to a local or mounted disk: builds it beside its final place, can resume, and publishes it with one
rename.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from threading import Lock

from lswap_core.errors import RecipeError, located
from lswap_core.io.ports import Source, Tally
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import MANIFEST_FILE, Plan
from lswap_core.plan.runs import Run, base_of
from lswap_core.sinks.disk.durable import sync_directory, sync_file
from lswap_core.sinks.disk.journal import Journal
from lswap_core.sinks.disk.new_files import SCRATCH_FILE, WRITTEN, check_space, place, try_copying
from lswap_core.sinks.disk.partial_directory import JOURNAL_FILE, Partial, check_destination
from lswap_core.sinks.disk.resume import find_earlier, finished, is_intact
from lswap_core.sinks.disk.writing import Mover

_COMMIT_SECONDS = 5.0
"""Most work that a power cut loses, in seconds, beside the steps in progress."""


class DiskSink:
    """Writes to `.<name>.partial` beside `destination`. Finished work stays there when a run fails, for the next run."""

    in_order = False
    """See `lswap_core.io.ports.Sink`."""
    most_workers: int | None = None
    """See `lswap_core.io.ports.Sink`."""

    def __init__(
        self,
        destination: str | os.PathLike[str],
        *,
        sources: Iterable[str] = (),
        options: WriteOptions = WriteOptions(),
        traffic: Traffic | None = None,
        restart: bool = False,
    ) -> None:
        """Claim the partial directory. restart: discard what an earlier run left.

        Raises RecipeError where the destination exists, is inside, is or contains one of `sources` (paths), or is being
        written by another process.
        """
        self._partial = Partial(check_destination(destination, sources))
        self._options = options
        self._traffic = traffic or Traffic()
        self._restart = restart
        self._mover = Mover(self.partial, options, self._traffic, open_file=self._open, on_loss=_remove)
        self._journal: Journal | None = None
        self._lock, self._committing = Lock(), Lock()
        self._touched: set[str] = set()
        self._events = 0
        self._committed_at = time.monotonic()
        self._steps_left: Counter[str] = Counter()
        self._shared: frozenset[str] = frozenset()
        self._open_still = True
        self.shard_sha256: dict[str, str] = {}
        """SHA-256 of whole shards by name, where asked for."""
        self._worth_keeping = not restart and self._partial.holds_work

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """See `lswap_core.io.ports.Sink`. Raises RecipeError where an unfinished merge of another plan is there, or the
        copying method that was asked for does not work.
        """
        try_copying(plan, source, self.partial / SCRATCH_FILE, self._mover.copier, self._options.copy_method)
        earlier = None if self._restart else find_earlier(self.partial, plan, self._options.digest)
        self._worth_keeping = earlier is not None
        self._partial.clear(keep=[JOURNAL_FILE, MANIFEST_FILE, *earlier.placed] if earlier else ())
        self._journal = Journal(self.partial / JOURNAL_FILE, plan.digest, self._options.digest)
        intact = {f.name for f in plan.files if earlier and is_intact(self.partial, f, earlier.placed.get(f.name))}
        held = finished(self.partial, plan, earlier, intact) if earlier is not None else {}
        if earlier is not None and len(intact) < len(plan.files):
            # A new file must not be mistaken for the one in the journal.
            self._sync(intact)
            self._journal.start({name: earlier.placed[name] for name in intact}, list(held.values()))
        placed, shared = {}, set()
        for file in plan.files:
            base = base_of(file)
            if earlier is not None and file.name in intact:
                how = earlier.placed[file.name]
            else:
                path = self.partial / file.name
                how = place(file, base, source, path, copier=self._mover.copier, link=self._options.link)
            placed[file.name] = how
            if base is not None and how != WRITTEN:
                shared |= {step.name for step in base.shared}
                self._traffic.add(how, sum(step.size_bytes for step in base.shared))
        self._shared = frozenset(shared)
        done = dict(held)
        if self._options.digest in ("auto", "none"):
            done |= {name: StepRecord(name, None) for name in shared}
        self._steps_left.update(step.file for step in plan.steps if step.name not in done)
        left = [step for step in plan.steps if step.name not in done and step.name not in shared]
        check_space(self.partial, left, self._mover.copier)
        self._sync(placed)
        sync_directory(self._partial.destination.parent)
        self._traffic.add("resume", sum(step.size_bytes for step in plan.steps if step.name in held))
        self._journal.start(placed, list(held.values()))
        (self.partial / MANIFEST_FILE).unlink(missing_ok=True)  # the journal has its content now
        self._events = 1 if held else 0
        return done

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Sink`."""
        # Shared bytes need no writing; only a digest was asked for.
        return self._mover.copy(run, source, tally, there=run.steps[0].name in self._shared)

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Sink`."""
        self._mover.write(run, offset, data)

    def finish(self, run: Run, records: list[StepRecord]) -> None:
        """See `lswap_core.io.ports.Sink`."""
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
        """Take the SHA-256 of a whole shard, unless it is known."""
        if name not in self.shard_sha256:
            with open(self.partial / name, "rb", buffering=0) as file:
                self.shard_sha256[name] = file_digest(file, "sha256").hexdigest()

    def put(self, name: str, data: bytes) -> None:
        """See `lswap_core.io.ports.Sink`."""
        path = self.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with located(path), open(path, "xb") as handle:  # never over a shard
                handle.write(data)
        except FileExistsError:
            raise RecipeError(f"{path}: two files of the output would have this name") from None

    def publish(self) -> None:
        """See `lswap_core.io.ports.Sink`."""
        self._let_go()
        self._partial.publish()
        self.close()

    def close(self) -> None:
        """See `lswap_core.io.ports.Sink`."""
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
        """Whether finished work stays in the partial directory, so that the same command can resume."""
        return self._worth_keeping and not self._partial.published

    @property
    def partial(self) -> Path:
        """The partial directory."""
        return self._partial.path

    def _let_go(self) -> None:
        self._mover.close()
        if self._journal is not None:
            self._journal.close()

    def _open(self, name: str) -> int:
        return os.open(self.partial / name, os.O_RDWR | os.O_CLOEXEC)

    def _sync(self, names: Iterable[str]) -> None:
        for name in names:
            sync_file(self.partial / name)
        sync_directory(self.partial)

    def _commit(self) -> None:
        """Make the bytes written so far durable, and only then record that in the journal."""
        assert self._journal is not None
        with self._lock:
            events, touched, self._touched = self._events, self._touched, set()
        try:
            for name in touched:
                sync_file(self.partial / name)
        except OSError:
            with self._lock:  # another thread may still come here, and must not record what was not synced
                self._touched |= touched
            raise
        self._journal.synced(events)
        self._committed_at = time.monotonic()


def _remove(path: Path) -> None:
    """Remove the file, as `sync_file` does, and for the same reason."""
    path.unlink(missing_ok=True)
