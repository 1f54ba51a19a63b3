"""An output in an S3-compatible store: its files are put together from parts, many of which the store copies itself."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from threading import Lock, local

from lswap_core.digests import RunDigests
from lswap_core.errors import LswapError, RecipeError, SourceError, StalePlanError
from lswap_core.manifest import StepRecord
from lswap_core.options import WriteOptions
from lswap_core.parallel import run_all
from lswap_core.plan import INDEX_FILE, MANIFEST_FILE, OutputFile, Plan, Step
from lswap_core.ports import Silence, Source, Tally
from lswap_core.runs import Run
from lswap_core.sinks.assembly import Assembly
from lswap_core.sinks.buckets import GoneError, Place, UnknownCallError, connect
from lswap_core.sinks.options import check_options
from lswap_core.sinks.origins import Origins, confirm_origins, find_origins, part_files
from lswap_core.sinks.parting import Part
from lswap_core.sinks.resuming import CALLS_AT_A_TIME, Uploads, find_state, is_complete, take_up
from lswap_core.sinks.uploads import STATE_FILE, State, Upload
from lswap_core.traffic import Traffic

_PIECE_BYTES = 1024 * 1024
_SAVE_SECONDS = 5.0
"""What a kill costs, at most, beside the steps in flight."""
_CONNECTIONS = 32


class StoreSink:
    """Writes below `s3://bucket/prefix`. Nothing is visible there before all is sent; the manifest appears last. What is
    finished is kept in unfinished uploads when a run fails, for the next one, and told of in `STATE_FILE`.
    """

    in_order = True
    """See `lswap_core.ports.Sink`."""
    most_workers: int | None = None
    """See `lswap_core.ports.Sink`."""

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
        self._client = connect(_CONNECTIONS)
        self._place = Place(self._client, destination)
        self._options = options
        self._traffic = traffic or Traffic()
        self._restart = restart
        self._uploads = Uploads()
        self._etags: dict[tuple[str, int], str] = {}
        self._finished: dict[str, StepRecord] = {}
        self._small: dict[str, bytes] = {}
        self._buffers = local()
        self._lock, self._saving = Lock(), Lock()
        self._saved_at = time.monotonic()
        self._plan: Plan | None = None
        self._earlier: State | None = None
        self._publishing = self._published = self._ready = False
        self.shard_sha256: dict[str, str] = {}
        """Always empty: nobody here sees the bytes of a shard in order."""

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """See `lswap_core.ports.Sink`. RecipeError where the place is not empty, or holds an unfinished merge of another
        plan; SourceError where the store refuses.
        """
        state = find_state(self._place, plan, self._options.digest, restart=self._restart)
        self._steps = {file.name: file.steps() for file in plan.files}
        splices = self._options.copy_method != "read_write"
        self._set_origins(plan, find_origins(self._client, plan, source) if splices else {})
        if state is None:  # before the uploads: who finds those must know whose they are
            self._place.claim(STATE_FILE, State(plan.digest, self._options.digest).to_json(), plan.digest)
        self._plan, self._earlier, self._publishing = plan, state, state is not None and state.publishing
        take_up(self._place, plan, state, self._parts, self._uploads)
        self._etags = dict(self._uploads.etags)
        try:
            self._try_splicing()
        except UnknownCallError:  # then everything is sent
            self._set_origins(plan, {})
            self._etags = {}
        there = {(file, part.number) for file in self._uploads.complete for part in self._parts[file]} | self._etags.keys()
        self._kept = there
        heads = {file.name: file.header.encode() for file in plan.files}
        self._assembly = Assembly(self._parts, heads, there, self._deliver)
        records = {} if state is None else state.steps
        done = {step.name: records[step.name] for step in plan.steps if step.name in records and self._holds(step, there)}
        self._finished = dict(done)
        self._traffic.add("resume", sum(step.size_bytes for step in plan.steps if step.name in done))
        self._save()
        self._ready = True
        self._assembly.deliver_heads()
        return done

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.ports.Sink`."""
        digests = None if self._options.digest == "none" else RunDigests(run.steps)
        for part, begin, end in self._assembly.spans(run.file, run.begin, run.end):
            if part.origin is None or self._options.digest == "xxh3":
                self._through(run, part, begin, end, source, tally, digests)
            else:
                self._assembly.arrived(run.file, part, end - begin)
                tally(end - begin)
        return [StepRecord(step.name, None) for step in run.steps] if digests is None else digests.records()

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.ports.Sink`."""
        at = run.begin + offset
        for part, begin, end in self._assembly.spans(run.file, at, at + len(data)):
            room = self._assembly.room(run.file, part, begin, end)
            if room is not None:
                room[:] = data[begin - at : end - at]
            self._assembly.arrived(run.file, part, end - begin)
        self._traffic.add("compute", len(data))

    def finish(self, run: Run, records: list[StepRecord]) -> None:  # noqa: ARG002 - its parts tell
        """See `lswap_core.ports.Sink`."""
        with self._lock:
            self._finished |= {record.name: record for record in records}
        if time.monotonic() - self._saved_at > _SAVE_SECONDS and self._saving.acquire(blocking=False):
            try:
                self._save()
            finally:
                self._saving.release()

    def put(self, name: str, data: bytes) -> None:
        """See `lswap_core.ports.Sink`."""
        if name in self._small or name in self._parts:
            raise RecipeError(f"{self._place.url(name)}: two files of the output would have this name")
        self._small[name] = data

    def publish(self) -> None:
        """See `lswap_core.ports.Sink`. Shards appear first, then the small files, the index, and the manifest at last."""
        plan = self._plan_of()
        try:
            confirm_origins(self._client, self._origins)
        except StalePlanError:
            with self._lock:
                self._etags = {key: etag for key, etag in self._etags.items() if self._parts[key[0]][key[1] - 1].origin is None}
            raise
        self._publishing = True
        self._save()
        todo = [file for file in plan.files if file.name not in self._uploads.complete]
        run_all(lambda file, _: self._put_together(file), todo, total_bytes=0, progress=Silence(), workers=CALLS_AT_A_TIME)
        for name in sorted(self._small, key=lambda name: (name == MANIFEST_FILE, name == INDEX_FILE)):
            self._place.put(name, self._small[name], plan.digest)
        self._place.delete(STATE_FILE)
        self._published = True

    def hash_shard(self, name: str) -> None:
        """Is never asked for; see `check_options`."""
        raise RecipeError(f"{self._place.url(name)}: cannot be hashed, since nobody here sees its bytes in order")

    def close(self) -> None:
        """See `lswap_core.ports.Sink`."""
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
        held = self._etags or self._uploads.complete or (self._earlier is not None and self._earlier.uploads)
        return bool(held) and not self._published

    @property
    def partial(self) -> str:
        """Where it is told what was sent."""
        return self._place.url(STATE_FILE)

    @property
    def most_held_bytes(self) -> int:
        """The most memory that parts took at a time."""
        return self._assembly.most_held_bytes

    # Before the first byte

    def _set_origins(self, plan: Plan, origins: Origins) -> None:
        self._origins = origins
        self._parts = part_files(self._client, plan, origins)
        self._ends = {file: [part.end for part in parts] for file, parts in self._parts.items()}

    def _try_splicing(self) -> None:
        """Splice the first part that can be, which tells whether the store knows how to."""
        for file, parts in self._parts.items():
            for part in parts:
                if part.origin is not None:
                    if (file, part.number) not in self._etags and file not in self._uploads.complete:
                        self._deliver(file, part, None)
                    return

    # Bytes

    def _through(
        self, run: Run, part: Part, begin: int, end: int, source: Source, tally: Tally, digests: RunDigests | None
    ) -> None:
        """Bring bytes [begin, end) of the output file, which lie in `part`, over through memory; or only digest them."""
        scratch: bytearray = self._buffers.__dict__.setdefault("piece", bytearray(_PIECE_BYTES))
        for at in range(begin, end, _PIECE_BYTES):
            stop = min(at + _PIECE_BYTES, end)
            room = self._assembly.room(run.file, part, at, stop)
            piece = memoryview(scratch)[: stop - at] if room is None else room
            if room is not None or digests is not None:
                source.read_into(run.source, at - run.begin, piece)
            if digests is not None:
                digests.feed(at, piece)
            if room is not None:
                self._traffic.add("read_write", stop - at)
            self._assembly.arrived(run.file, part, stop - at)
            tally(stop - at)

    def _deliver(self, file: str, part: Part, data: bytearray | None) -> None:
        upload = self._uploads.ids[file]
        if part.origin is None:
            assert data is not None
            etag = self._place.send(file, upload, part.number, data)
        else:
            url, version = self._origins[part.origin.role, part.origin.file]
            begin = part.origin.begin
            etag = self._place.splice(file, upload, part.number, url, version, begin, begin + part.size_bytes)
            self._traffic.add("splice", part.size_bytes)
        with self._lock:
            self._etags[file, part.number] = etag

    def _put_together(self, file: OutputFile) -> None:
        etags = [self._etags[file.name, part.number] for part in self._parts[file.name]]
        try:
            self._place.complete(file.name, self._uploads.ids[file.name], etags)
        except GoneError:  # as after an answer that was lost on its way
            if not is_complete(self._place, file, self._plan_of()):
                raise
        if self._place.look(file.name).size != file.header.file_size:
            raise SourceError(f"{self._place.url(file.name)}: the store put together another size than was sent; do not use it")

    # What is finished

    def _holds(self, step: Step, there: Collection[tuple[str, int]]) -> bool:
        return all((step.file, number) in there for number in self._numbers(step))

    def _numbers(self, step: Step) -> Iterable[int]:
        """Numbers of the parts that a step's bytes lie in."""
        if step.begin == step.end:
            return ()
        ends = self._ends[step.file]
        return range(bisect_right(ends, step.begin) + 1, bisect_right(ends, step.end - 1) + 2)

    def _sound(self, etags: Mapping[tuple[str, int], str], finished: Mapping[str, StepRecord]) -> Iterator[tuple[str, int]]:
        """Parts that hold none but bytes of finished steps, whose sources were found to be unchanged."""
        doubtful = {
            (file, n) for file, steps in self._steps.items() for s in steps if s.name not in finished for n in self._numbers(s)
        }
        return (key for key in etags if key in self._kept or key not in doubtful)

    def _save(self) -> None:
        """Tell the next run what there is."""
        plan = self._plan_of()
        with self._lock:
            etags, finished = dict(self._etags), dict(self._finished)
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
