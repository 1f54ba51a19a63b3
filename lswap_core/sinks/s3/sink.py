"""Writes an output to an S3-compatible store from one process, which does all parts of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock

from lswap_core.errors import LswapError
from lswap_core.io.ports import Source
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions, check_options
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import Run
from lswap_core.sinks.s3.bucket import CONNECTIONS, BucketPrefix, connect
from lswap_core.sinks.s3.coordination import Coordination, Key
from lswap_core.sinks.s3.copy_sources import confirm_copied
from lswap_core.sinks.s3.delivered import Delivered, find_delivered
from lswap_core.sinks.s3.sender import Sender, Sending
from lswap_core.sinks.s3.state import STATE_FILE, SharedState
from lswap_core.sinks.s3.uploads import Publishing

_SAVE_SECONDS = 5.0
"""Most work that a kill loses, in seconds, beside the steps in progress."""


class S3Sink(Sending, Publishing):
    """Writes below `s3://bucket/prefix`. Nothing is visible before everything is sent; the manifest appears last.

    Where workers have begun the same output in parts, this does the parts that are left; else the whole output is one part.
    When a run fails, finished work stays in unfinished uploads, and records say what it is.
    """

    def __init__(
        self,
        destination: str,
        *,
        options: WriteOptions = WriteOptions(),
        traffic: Traffic | None = None,
        restart: bool = False,
    ) -> None:
        """Raises RecipeError for options that do not apply. Asks nothing of the store yet. restart: discard what an earlier
        run left.
        """
        check_options(options)
        self._client, self._url = connect(CONNECTIONS), destination
        super().__init__(BucketPrefix(self._client, destination))
        self._options, self._traffic, self._restart = options, traffic or Traffic(), restart
        self._lock, self._saving = Lock(), Lock()
        self._saved_at = time.monotonic()
        self._finished: dict[str, StepRecord] = {}
        self._confirmed: set[Key] = set()
        self._state: SharedState | None = None
        self._published = False

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """See `lswap_core.io.ports.Sink`. Raises RecipeError where the place is not empty, or has an unfinished merge of
        another plan, and SourceError where the store refuses.
        """
        self._plan, self._coordination = plan, Coordination(self._client, self._url, plan)
        if self._restart:
            self._coordination.discard()
        state = self._coordination.join(None, source, self._options)
        self._division = state.divide(plan)
        self._parts = self._division.parts
        if self._coordination.began:
            delivered = Delivered(etags=self._coordination.copied)
            self._traffic.add("splice", sum(self._parts[file][number - 1].size_bytes for file, number in delivered.etags))
        else:
            delivered = find_delivered(self._coordination, plan, state, self._division)
            self._confirmed |= delivered.etags.keys()
        if delivered.lost:
            state = self._coordination.replace_lost(state, delivered.lost)
        self._kept, self._complete = delivered.etags, delivered.complete
        self._noted = {number for number in delivered.done if not self._division.shares[number - 1].parts & delivered.wrong}
        there = delivered.etags.keys() | {(file, part.number) for file in delivered.complete for part in self._parts[file]}
        self._sender = Sender(self._coordination, plan, state, self._parts, there, options=self._options, traffic=self._traffic)
        self._state = state
        records = {record.name: record for part in (delivered.done | delivered.unfinished).values() for record in part}
        held = [step for step in plan.steps if step.name in records and self._sender.keys(step) <= there]
        done = {step.name: records[step.name] for step in held}
        self._finished = dict(done)
        self._traffic.add("resume", sum(step.size_bytes for step in held))
        self._sender.deliver_heads()
        return done

    def finish(self, run: Run, records: list[StepRecord]) -> None:  # noqa: ARG002 - the records name the steps
        """See `lswap_core.io.ports.Sink`."""
        with self._lock:
            self._finished |= {record.name: record for record in records}
        if time.monotonic() - self._saved_at > _SAVE_SECONDS and self._saving.acquire(blocking=False):
            try:
                self._save()
            finally:
                self._saving.release()

    def publish(self) -> None:
        """See `lswap_core.io.ports.Sink`. Shards appear first, then the small files, the index, and at last the manifest."""
        state = self._save()
        self._publish(self._plan, state.uploads, self._etags(), self._complete)
        self._coordination.clear()
        self._published = True

    def close(self) -> None:
        """See `lswap_core.io.ports.Sink`."""
        if self._state is None or self._published:
            return
        with suppress(LswapError):  # the original error counts; the next run handles what is left
            if self.kept:
                self._save()
            else:
                self._coordination.give_up(self._state)
        self._state = None

    @property
    def kept(self) -> bool:
        """Whether the work stays in unfinished uploads, so that the same command can resume."""
        return self._state is not None and not self._published and (not self._coordination.began or bool(self._etags()))

    @property
    def partial(self) -> str:
        """The URL of the object that names the unfinished uploads."""
        return self._place.url(STATE_FILE)

    @property
    def most_held_bytes(self) -> int:
        """The most memory that upload parts took at a time, in bytes."""
        return self._sender.most_held_bytes

    # the finished work

    def _etags(self) -> dict[Key, str]:
        return self._kept | self._sender.etags

    def _save(self) -> SharedState:
        """Record what the next run may rely on: finished steps, and upload parts that hold bytes of these steps only."""
        state, shares = self._state, self._division.shares
        assert state is not None
        with self._lock:
            finished = dict(self._finished)
        doubtful = {key for step in self._plan.steps if step.name not in finished for key in self._sender.keys(step)}
        sound = {key: etag for key, etag in self._etags().items() if key in self._kept or key not in doubtful}
        confirm_copied(self._client, state.origins, self._parts, sound.keys() - self._confirmed)
        self._confirmed |= sound.keys()
        for number, share in enumerate(shares, 1):
            records = [finished[step.name] for step in share.steps if step.name in finished]
            etags = {key: sound[key] for key in share.parts & sound.keys()}
            done = len(records) == len(share.steps) and len(etags) == len(share.parts)
            if number not in self._noted and (done or etags):
                self._coordination.note(Part(number, len(shares)), state, records, etags, unfinished=not done)
            if done:
                self._noted.add(number)
        self._saved_at = time.monotonic()
        return state
