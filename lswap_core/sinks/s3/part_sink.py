"""Sends a part of an output to an S3-compatible store as one of several workers; and publishes all parts together."""

from __future__ import annotations

from collections.abc import Mapping

from lswap_core.errors import RecipeError
from lswap_core.io.ports import Source
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions, check_options
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import Run
from lswap_core.sinks.part_records import covers, gather, tell_missing
from lswap_core.sinks.s3.bucket import CONNECTIONS, connect
from lswap_core.sinks.s3.coordination import LOST, Coordination
from lswap_core.sinks.s3.copy_sources import confirm_copied
from lswap_core.sinks.s3.delivered import find_delivered
from lswap_core.sinks.s3.sender import Sender, Sending
from lswap_core.sinks.s3.uploads import Publishing


class S3PartSink(Sending):
    """Sends one part to uploads that all workers share. Workers need not know of each other. Two workers may do the same
    part: they send the same bytes under the same numbers. Nothing is visible before `S3Parts` publishes it.
    """

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
        """Begin the uploads or join them. restart: forget that this part is done.

        Raises RecipeError for options that do not apply, where the place is not empty, and where the build has another plan,
        number of parts, kind of digests or method of copying.
        """
        check_options(options)
        self._client = connect(CONNECTIONS)
        self._coordination = Coordination(self._client, destination, plan)
        self._part, self._options, self._traffic = part, options, traffic or Traffic()
        self._state = self._coordination.join(part.count, source, options)
        self._division = self._state.divide(plan)
        self._share = self._division.shares[part.number - 1]
        self.steps = self._share.steps
        """The steps of this part."""
        if restart:
            self._coordination.forget(part)

    @property
    def is_done(self) -> bool:
        """Whether any worker has done the part."""
        done = self._coordination.done(self._part, self._state)
        return done is not None and covers(done[0], self.steps) and done[1].keys() == self._share.parts

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:  # noqa: ARG002 - the protocol's
        """See `lswap_core.io.ports.Writer`. A part that was interrupted begins again."""
        parts = self._division.parts
        theirs = {(file, part.number) for file, of in parts.items() for part in of} - self._share.parts
        self._sender = Sender(self._coordination, plan, self._state, parts, theirs, options=self._options, traffic=self._traffic)
        self._sender.deliver_heads()
        return {}

    def finish(self, run: Run, records: list[StepRecord]) -> None:
        """See `lswap_core.io.ports.Writer`."""

    def seal(self, records: list[StepRecord]) -> None:
        """Record that the part is done. Raises StalePlanError where a source that the store copied from has changed, and
        RecipeError where the output was published or given up.
        """
        confirm_copied(self._client, self._state.origins, self._division.parts, self._share.parts)
        self._coordination.note(self._part, self._state, records, self._sender.etags)

    def close(self) -> None:
        """Do nothing: nothing is open."""


class S3Parts(Publishing):
    """The finished parts of an output in a store, to be published."""

    def __init__(self, destination: str, plan: Plan) -> None:
        """Raises RecipeError where the place is not empty, and where a part is missing or of another plan. Where the store
        does not have what parts sent, removes their records and raises RecipeError.
        """
        self._coordination = Coordination(connect(CONNECTIONS), destination, plan)
        super().__init__(self._coordination.place)
        self._plan, state = plan, self._coordination.find()
        if state is None:
            raise RecipeError(
                f"there are no parts of {self._place.url()}; make them first, as `lswap-core apply PLAN --part 1/1`"
            )
        division, self._state = state.divide(plan), state
        self.digest = state.terms.digest
        """The kind of digests of the parts."""
        self._parts, shares = division.parts, division.shares
        self._found = find_delivered(self._coordination, plan, state, division)
        self.records = gather(
            plan, [share.steps for share in shares], lambda part: self._found.done.get(part.number), self._place.url()
        )
        """Records of every step, in the plan's order."""
        if self._found.lost:
            self._coordination.replace_lost(state, self._found.lost)
        again = [number for number, share in enumerate(shares, 1) if share.parts & self._found.wrong]
        for number in again:
            self._coordination.forget(Part(number, len(shares)))
        if again:
            file, _ = min(self._found.wrong)
            why = "the store does not have what its parts sent, as where two workers did one of them in turns"
            raise RecipeError(
                f"{self._place.url(file)}: {LOST if file in self._found.lost else why}; {tell_missing(again, len(shares))}"
            )

    def publish(self) -> None:
        """Publish the shards first, then the small files, the index, and at last the manifest. Removes all other objects."""
        self._publish(self._plan, self._state.uploads, self._found.etags, self._found.complete)
        self._coordination.clear()
