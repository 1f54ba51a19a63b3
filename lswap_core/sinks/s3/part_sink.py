"""A part of an output in an S3-compatible store, sent by one of several workers; and all parts put together."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from lswap_core.errors import LswapError, RecipeError
from lswap_core.io.ports import Silence, Source, Tally
from lswap_core.io.threads import run_all
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions, check_options
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import OutputFile, Plan
from lswap_core.plan.runs import Run
from lswap_core.sinks.part_records import Terms, covers, gather, tell_missing
from lswap_core.sinks.s3.bucket import CONNECTIONS, GoneError, UnknownCallError, connect
from lswap_core.sinks.s3.coordination import LOST, Rendezvous
from lswap_core.sinks.s3.copy_sources import CALLS_AT_A_TIME, confirm_origins
from lswap_core.sinks.s3.sender import Key, Sender
from lswap_core.sinks.s3.uploads import is_complete, put_small, put_together


class StorePartSink:
    """Sends one part's share of uploads that all workers share, of whom none needs to know of another. Two on one part are
    harmless: they send the same bytes under the same numbers. Nothing is visible before `StoreGathering` publishes it.
    """

    in_order = True
    """See `lswap_core.io.ports.Writer`."""
    most_workers: int | None = None
    """See `lswap_core.io.ports.Writer`."""

    def __init__(
        self,
        destination: str,
        plan: Plan,
        part: Part,
        source: Source,
        *,
        options: WriteOptions = WriteOptions(),
        traffic: Traffic | None = None,
        restart: bool = False,
    ) -> None:
        """Begin the uploads or join those who did. RecipeError for options that make no sense there, where the place is not
        empty, or where parts of another plan, number, kind of digests or method of copying are there. restart: forget that
        this part is done.
        """
        check_options(options)
        self._client = connect(CONNECTIONS)
        self._rendezvous = Rendezvous(self._client, destination, plan)
        self._part, self._options, self._traffic = part, options, traffic or Traffic()
        self._joint = self._rendezvous.join(Terms(plan.digest, part.count, options.digest), source, options)
        self._allotment = self._joint.allot(plan)
        self._share = self._allotment.shares[part.number - 1]
        self.steps = self._share.steps
        """What this part is to do."""
        self._lock = Lock()
        if restart:
            self._rendezvous.forget(part)

    @property
    def is_done(self) -> bool:
        """The part has been done, by whomever."""
        done = self._rendezvous.done(self._part, self._joint)
        return done is not None and covers(done[0], self.steps) and done[1].keys() == self._share.parts

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:  # noqa: ARG002 - the protocol's
        """See `lswap_core.io.ports.Writer`: a part that was cut off is done from its beginning."""
        joint, parts = self._joint, self._allotment.parts
        self._sender = Sender(
            self._rendezvous.place, plan, parts, joint.origins, joint.uploads, {},
            options=self._options, traffic=self._traffic, on_loss=self._lose,
        )  # fmt: skip
        self._sender.begin({(file, part.number) for file, of in parts.items() for part in of} - self._share.parts)
        self._sender.deliver_heads()
        return {}

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Writer`."""
        return self._sender.copy(run, source, tally)

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Writer`."""
        self._sender.write(run, offset, data)

    def finish(self, run: Run, records: list[StepRecord]) -> None:
        """See `lswap_core.io.ports.Writer`."""

    def seal(self, records: list[StepRecord]) -> None:
        """Record that the part is done. StalePlanError where a source that the store copied from changed, RecipeError where the
        output was published or given up meanwhile.
        """
        parts = self._allotment.parts
        origins = [parts[file][number - 1].origin for file, number in self._share.parts]
        used = {(origin.role, origin.file) for origin in origins if origin is not None}
        confirm_origins(self._client, {file: self._joint.origins[file] for file in used})
        self._rendezvous.note(self._part, self._joint, records, self._sender.etags)

    def close(self) -> None:
        """Nothing is open."""

    def _lose(self, file: str) -> LswapError:
        with self._lock:
            return self._rendezvous.lose(self._joint, file)


class StoreGathering:
    """The parts of an output in a store, all of them done, on their way to their final names."""

    def __init__(self, destination: str, plan: Plan) -> None:
        """RecipeError where the place is not empty, where a part is missing or one of another plan, or where the store has not
        what parts sent: their records are taken back then.
        """
        self._rendezvous = Rendezvous(connect(CONNECTIONS), destination, plan)
        self._place = place = self._rendezvous.place
        self._plan = plan
        joint = self._rendezvous.find()
        if joint is None:
            raise RecipeError(f"there are no parts of {place.url()}; make them first, as `lswap-core apply PLAN --part 1/1`")
        if self._rendezvous.is_published:
            self._rendezvous.clear()  # what was left when publishing was cut off after its last visible act
            raise RecipeError(f"{place.url()} is published already; an output is never written over, choose another --out")
        self._joint = joint
        allotment = joint.allot(plan)
        self.digest = joint.terms.digest
        """The kind of digests that the parts were made with."""
        self._etags: dict[Key, str] = {}
        self._parts = allotment.parts
        self._complete: set[str] = set()
        self._small: dict[str, bytes] = {}

        def read(part: Part) -> list[StepRecord] | None:
            done = self._rendezvous.done(part, joint)
            if done is None or done[1].keys() != allotment.shares[part.number - 1].parts:
                return None
            self._etags |= done[1]
            return done[0]

        self.records = gather(plan, [share.steps for share in allotment.shares], read, place.url())
        """Of every step, in the plan's order."""
        self._check([share.parts for share in allotment.shares])
        self.shard_sha256: dict[str, str] = {}
        """Always empty: nobody here sees the bytes of a shard in order."""

    def hash_shard(self, name: str) -> None:
        """Is never asked for; see `check_options`."""
        raise RecipeError(f"{self._place.url(name)}: cannot be hashed, since nobody here sees its bytes in order")

    def put(self, name: str, data: bytes) -> None:
        """Add a small file."""
        if name in self._small or name in self._parts:
            raise RecipeError(f"{self._place.url(name)}: two files of the output would have this name")
        self._small[name] = data

    def publish(self) -> None:
        """Shards appear first, then the small files, the index, and the manifest at last. What was left beside them goes."""
        put_together(self._place, self._plan, self._parts, self._joint.uploads, self._etags, complete=self._complete)
        put_small(self._place, self._plan, self._small)
        self._rendezvous.clear()

    def _check(self, shares: list[frozenset[Key]]) -> None:
        """Hold what parts tell against what the store says it has, where it can say so."""
        lost: set[str] = set()
        wrong: set[Key] = set()

        def look(file: OutputFile, _: Tally) -> None:
            try:
                there = self._place.parts(file.name, self._joint.uploads[file.name])
            except UnknownCallError:
                return
            except GoneError:
                (self._complete if is_complete(self._place, file, self._plan) else lost).add(file.name)
                return
            for part in self._parts[file.name]:
                if there.get(part.number) != (part.size_bytes, self._etags[file.name, part.number]):
                    wrong.add((file.name, part.number))

        run_all(look, self._plan.files, total_bytes=0, progress=Silence(), workers=CALLS_AT_A_TIME)
        if lost:
            self._rendezvous.replace_lost(self._joint, lost)
        wrong |= {(file, part.number) for file in lost for part in self._parts[file]}
        again = [number for number, parts in enumerate(shares, 1) if parts & wrong]
        for number in again:
            self._rendezvous.forget(Part(number, len(shares)))
        if again:
            file, _ = min(wrong)
            why = LOST if file in lost else "the store has not what its parts sent, as where two workers did one of them in turns"
            raise RecipeError(f"{self._place.url(file)}: {why}; {tell_missing(again, len(shares))}")
