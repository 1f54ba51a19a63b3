"""An output in an S3-compatible store: its files are put together from parts, many of which the store copies itself."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from threading import Lock

from lswap_core.errors import LswapError, RecipeError, StalePlanError
from lswap_core.io.ports import Source, Tally
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions, check_options
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan, Step
from lswap_core.plan.runs import Run
from lswap_core.sinks.s3.bucket import CONNECTIONS, Place, connect
from lswap_core.sinks.s3.copy_sources import Origins, confirm_origins, find_origins, part_files
from lswap_core.sinks.s3.sender import Key, Sender
from lswap_core.sinks.s3.state import STATE_FILE, State, Upload
from lswap_core.sinks.s3.uploads import Uploads, find_state, put_small, put_together, take_up

_SAVE_SECONDS = 5.0
"""What a kill costs, at most, beside the steps in flight."""


class StoreSink:
    """Writes below `s3://bucket/prefix`. Nothing is visible there before all is sent; the manifest appears last. What is
    finished is kept in unfinished uploads when a run fails, for the next one, and told of in `STATE_FILE`.
    """

    in_order = True
    """See `lswap_core.io.ports.Sink`."""
    most_workers: int | None = None
    """See `lswap_core.io.ports.Sink`."""

    def __init__(
        self,
        destination: str,
        *,
        options: WriteOptions = WriteOptions(),
        traffic: Traffic | None = None,
        restart: bool = False,
    ) -> None:
        """RecipeError for options that make no sense there. Nothing is asked of the store yet. restart: give up what an
        earlier run left.
        """
        check_options(options)
        self._client = connect(CONNECTIONS)
        self._place = Place(self._client, destination)
        self._options = options
        self._traffic = traffic or Traffic()
        self._restart = restart
        self._uploads = Uploads()
        self._finished: dict[str, StepRecord] = {}
        self._small: dict[str, bytes] = {}
        self._lock, self._saving = Lock(), Lock()
        self._saved_at = time.monotonic()
        self._plan: Plan | None = None
        self._earlier: State | None = None
        self._publishing = self._published = self._ready = False
        self.shard_sha256: dict[str, str] = {}
        """Always empty: nobody here sees the bytes of a shard in order."""

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """See `lswap_core.io.ports.Sink`. RecipeError where the place is not empty, or holds an unfinished merge of another
        plan; SourceError where the store refuses.
        """
        state = find_state(self._place, plan, self._options.digest, restart=self._restart)
        self._steps = {file.name: file.steps() for file in plan.files}
        origins = find_origins(self._client, plan, source) if self._options.copy_method != "read_write" else {}
        self._set_parts(plan, origins)
        first = State(plan.digest, self._options.digest).to_json()
        # Before the uploads: who finds those must know whose they are.
        if state is None and not self._place.claim(STATE_FILE, first, plan.digest):
            where = self._place.url()
            raise RecipeError(f"{where} is being written by another process; wait for it or choose another --out")
        self._plan, self._earlier, self._publishing = plan, state, state is not None and state.publishing
        self._sender = self._new_sender(origins, {})
        take_up(self._place, plan, state, self._parts, self._uploads)
        self._sender = self._new_sender(origins, self._uploads.etags)
        complete = {(file, part.number) for file in self._uploads.complete for part in self._parts[file]}
        every = {(file, part.number) for file, parts in self._parts.items() for part in parts}
        if not self._sender.can_splice(every - complete):  # then everything is sent
            self._set_parts(plan, {})
            self._sender = self._new_sender({}, {})
            complete = {(file, part.number) for file in self._uploads.complete for part in self._parts[file]}
        there = complete | self._sender.etags.keys()
        self._kept = there
        self._sender.begin(complete)
        records = {} if state is None else state.steps
        done = {step.name: records[step.name] for step in plan.steps if step.name in records and self._holds(step, there)}
        self._finished = dict(done)
        self._traffic.add("resume", sum(step.size_bytes for step in plan.steps if step.name in done))
        self._save()
        self._ready = True
        self._sender.deliver_heads()
        return done

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Sink`."""
        return self._sender.copy(run, source, tally)

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Sink`."""
        self._sender.write(run, offset, data)

    def finish(self, run: Run, records: list[StepRecord]) -> None:  # noqa: ARG002 - its parts tell
        """See `lswap_core.io.ports.Sink`."""
        with self._lock:
            self._finished |= {record.name: record for record in records}
        if time.monotonic() - self._saved_at > _SAVE_SECONDS and self._saving.acquire(blocking=False):
            try:
                self._save()
            finally:
                self._saving.release()

    def put(self, name: str, data: bytes) -> None:
        """See `lswap_core.io.ports.Sink`."""
        if name in self._small or name in self._parts:
            raise RecipeError(f"{self._place.url(name)}: two files of the output would have this name")
        self._small[name] = data

    def publish(self) -> None:
        """See `lswap_core.io.ports.Sink`. Shards appear first, then the small files, the index, and the manifest at last."""
        plan = self._plan_of()
        try:
            confirm_origins(self._client, self._sender.origins)
        except StalePlanError:
            self._sender.disown_spliced()
            raise
        self._publishing = True
        self._save()
        complete = self._uploads.complete
        put_together(self._place, plan, self._parts, self._uploads.ids, self._sender.etags, complete=complete)
        put_small(self._place, plan, self._small)
        self._place.delete(STATE_FILE)
        self._published = True

    def hash_shard(self, name: str) -> None:
        """Is never asked for; see `check_options`."""
        raise RecipeError(f"{self._place.url(name)}: cannot be hashed, since nobody here sees its bytes in order")

    def close(self) -> None:
        """See `lswap_core.io.ports.Sink`."""
        if self._plan is None or self._published:
            return
        with suppress(LswapError):  # the error that led here counts; what is left now, the next run finds
            if self.kept:
                if self._ready:
                    self._save()
            else:
                for name, upload in self._uploads.ids.items():
                    self._place.abort(name, upload)
                self._place.delete(STATE_FILE)
        self._plan = None

    @property
    def kept(self) -> bool:
        """What was sent is kept in unfinished uploads, for the same command to go on from."""
        if self._plan is None or self._published:
            return False
        return bool(self._sender.etags or self._uploads.complete or (self._earlier is not None and self._earlier.uploads))

    @property
    def partial(self) -> str:
        """Where it is told what was sent."""
        return self._place.url(STATE_FILE)

    @property
    def most_held_bytes(self) -> int:
        """The most memory that parts took at a time."""
        return self._sender.most_held_bytes

    # Before the first byte

    def _set_parts(self, plan: Plan, origins: Origins) -> None:
        self._parts = part_files(self._client, plan, origins)
        self._ends = {file: [part.end for part in parts] for file, parts in self._parts.items()}

    def _new_sender(self, origins: Origins, etags: Mapping[Key, str]) -> Sender:
        ids = self._uploads.ids
        return Sender(
            self._place, self._plan_of(), self._parts, origins, ids, etags, options=self._options, traffic=self._traffic
        )

    # What is finished

    def _holds(self, step: Step, there: Collection[Key]) -> bool:
        return all((step.file, number) in there for number in self._numbers(step))

    def _numbers(self, step: Step) -> Iterable[int]:
        """Numbers of the parts that a step's bytes lie in."""
        if step.begin == step.end:
            return ()
        ends = self._ends[step.file]
        return range(bisect_right(ends, step.begin) + 1, bisect_right(ends, step.end - 1) + 2)

    def _sound(self, etags: Mapping[Key, str], finished: Mapping[str, StepRecord]) -> Iterator[Key]:
        """Parts that hold none but bytes of finished steps, whose sources were found to be unchanged."""
        doubtful = {
            (file, n) for file, steps in self._steps.items() for s in steps if s.name not in finished for n in self._numbers(s)
        }
        return (key for key in etags if key in self._kept or key not in doubtful)

    def _save(self) -> None:
        """Tell the next run what there is."""
        plan = self._plan_of()
        with self._lock:
            finished = dict(self._finished)
        etags = self._sender.etags
        listed: dict[str, dict[int, tuple[int, int, str]]] = {file: {} for file in self._parts}
        for file, number in self._sound(etags, finished):
            part = self._parts[file][number - 1]
            listed[file][number] = part.begin, part.end, etags[file, number]
        uploads = {file: Upload(upload, listed[file]) for file, upload in self._uploads.ids.items()}
        state = State(plan.digest, self._options.digest, uploads, finished, self._publishing)
        self._place.put(STATE_FILE, state.to_json(), plan.digest)
        self._saved_at = time.monotonic()

    def _plan_of(self) -> Plan:
        assert self._plan is not None
        return self._plan
