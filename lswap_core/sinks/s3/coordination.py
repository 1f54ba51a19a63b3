"""Where the workers of one output in an S3-compatible store meet: below its prefix, in small objects.

    .lswap-partial/state.json             what all parts agree on, the ids of the uploads among it: see `joint`
    .lswap-partial/part-3-of-16.json      the records of a part that is done, and what the store called each part of an upload

The first is made only if it is not there. A record holds the ids of the uploads that it is of, so one that tells of an upload
which was lost, or of one that another worker began in the same moment, counts for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lswap_core.errors import FormatError, LswapError, RecipeError, SourceError
from lswap_core.io.ports import Source
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import MANIFEST_FILE, Plan
from lswap_core.sinks.part_records import PART_FILE, Terms, decode_part, encode_part, part_file, refuse_terms
from lswap_core.sinks.s3.bucket import GoneError, Place
from lswap_core.sinks.s3.copy_sources import find_alike, find_origins
from lswap_core.sinks.s3.sender import Key, Sender
from lswap_core.sinks.s3.state import FOLDER, STATE_FILE, Joint, State
from lswap_core.sinks.s3.uploads import abort_strays, begin_uploads, is_ours, not_empty, read_state

_RECORD = re.compile(re.escape(FOLDER) + PART_FILE)
LOST = "the store no longer has its upload, as where a lifecycle rule aborts unfinished ones"
"""What to say of a file."""
_DISCARD = "discard it with --restart and without --part, once nobody works on it"
Done = tuple[list[StepRecord], dict[Key, str]]
"""What a part has done: the records of its steps, and ETags."""


class Rendezvous:
    """The small objects of one destination and plan. Safe to use from several threads."""

    def __init__(self, client: Any, url: str, plan: Plan) -> None:
        """Nothing is asked of the store yet."""
        self._client, self._plan = client, plan
        self.place = Place(client, url)

    def find(self) -> Joint | None:
        """What was agreed on; None where nobody has begun. RecipeError where the place is not empty beside that, or holds
        another plan's unfinished merge or one that is not in parts; FormatError where that cannot be read.
        """
        names = self.place.names()
        found = read_state(self.place) if STATE_FILE in names else None
        if isinstance(found, State):
            what = f"{self.place.url()} holds an unfinished merge that one process began, without --part"
            raise RecipeError(f"{what}; finish that first, or discard it with --restart")
        if found is not None and found.terms.plan != self._plan.digest:
            raise refuse_terms(found.terms, replace(found.terms, plan=self._plan.digest), self.place.url(), _DISCARD)
        self._refuse_strangers(names, None if found is None else found.terms.plan)
        if found is not None and found.uploads.keys() != {file.name for file in self._plan.files}:
            raise FormatError("does not tell of the uploads of this plan's files", path=self.place.url(STATE_FILE))
        return found

    def join(self, terms: Terms, source: Source, options: WriteOptions) -> Joint:
        """Agree with those who have begun, or begin. RecipeError where they have agreed on something else."""
        found = self.find() or self._begin(terms, source, options) or self.find()
        if found is None:
            raise RecipeError(f"{self.place.url()}: another process began there and gave up in the same moment; start again")
        self.check(found, terms, options)
        return found

    def check(self, found: Joint, terms: Terms, options: WriteOptions) -> None:
        """RecipeError where what was agreed on is something else."""
        if found.terms != terms:
            raise refuse_terms(found.terms, terms, self.place.url(), _DISCARD)
        if found.copy_method != options.copy_method:
            what = f"begun with --copy-method {found.copy_method}, not with --copy-method {options.copy_method}"
            raise RecipeError(f"{self.place.url()} holds an unfinished merge {what}; give the same to all parts, or {_DISCARD}")

    def done(self, part: Part, joint: Joint) -> Done | None:
        """What a part has done; None where it is not done, its record is damaged, or an upload that it was sent to was lost.
        RecipeError where the record is of something else.
        """
        name = FOLDER + part_file(part)
        try:
            found = decode_part(self.place.get(name), part, joint.terms, self.place.url(name))
            if found is None:
                return None
            records, document = found
            etags: dict[Key, str] = {}
            for file, entry in document["sent"].items():
                if entry["upload"].text() != joint.uploads.get(file):
                    return None
                pairs = (pair.elements(2) for pair in entry["etags"].elements())
                etags |= {(file, number.integer()): etag.text() for number, etag in pairs}
        except (GoneError, FormatError):
            return None
        return records, etags

    def note(self, part: Part, joint: Joint, records: Sequence[StepRecord], etags: Mapping[Key, str]) -> None:
        """Record that a part is done; nothing where all of the output is by now. RecipeError where the uploads that it went to
        are not those of the output any more.
        """
        name = FOLDER + part_file(part)
        sent: dict[str, dict[str, Any]] = {}
        for (file, number), etag in sorted(etags.items()):
            sent.setdefault(file, {"upload": joint.uploads[file], "etags": []})["etags"].append([number, etag])
        if not self._goes_on(joint):
            return
        self.place.put(name, encode_part(part, joint.terms, records, {"sent": sent}), joint.terms.plan)
        try:
            stays = self._goes_on(joint)
        except RecipeError:
            self.forget(part)
            raise
        if not stays:
            self.forget(part)  # published in this moment: nobody else would remove it

    def forget(self, part: Part) -> None:
        """Take back that a part is done."""
        self.place.delete(FOLDER + part_file(part))

    def replace_lost(self, joint: Joint, files: Collection[str]) -> None:
        """Begin other uploads in place of those that the store has lost, unless another worker did so. What parts tell of the
        lost ones counts for nothing from then on. RecipeError where the output was published or given up instead.
        """
        current = self._current()
        if current is None or current.terms != joint.terms or any(self._is_there(file) for file in files):
            raise RecipeError(f"{self.place.url()}: was published or given up by another process meanwhile; look what is there")
        lost = [file for file in files if current.uploads[file] == joint.uploads[file]]
        if lost:
            begun: dict[str, str] = {}
            begin_uploads(self.place, self._plan, lost, begun)
            renewed = replace(current, uploads={**current.uploads, **begun})
            self.place.put(STATE_FILE, renewed.to_json(), joint.terms.plan)

    def lose(self, joint: Joint, file: str) -> LswapError:
        """What to raise where the store no longer has the upload of a file, another one of which is begun."""
        try:
            self.replace_lost(joint, [file])
        except LswapError as error:
            return error
        return SourceError(
            f"{self.place.url(file)}: {LOST}; another is begun, and every part that has bytes in it is to be done again"
        )

    def clear(self) -> None:
        """Remove everything but the output, and abort what other uploads of its files there are."""
        abort_strays(self.place, self._plan, set(), {})
        for name in sorted(name for name in self.place.names() if _RECORD.fullmatch(name)):
            self.place.delete(name)
        self.place.delete(STATE_FILE)

    @property
    def is_published(self) -> bool:
        """The output is there: its manifest, which comes last, is this plan's."""
        try:
            return self.place.look(MANIFEST_FILE).plan == self._plan.digest
        except GoneError:
            return False

    def _begin(self, terms: Terms, source: Source, options: WriteOptions) -> Joint | None:
        """Begin all uploads and say so; None where another worker was faster."""
        origins = find_origins(self._client, self._plan, source) if options.copy_method != "read_write" else {}
        alike = find_alike(self._client, self._plan, origins)
        ids: dict[str, str] = {}
        found: Joint | None = None
        told = False
        try:
            begin_uploads(self.place, self._plan, [file.name for file in self._plan.files], ids)
            joint = Joint(terms, options.copy_method, origins, alike, ids)
            if not self._can_splice(joint, options):
                joint = replace(joint, origins={}, alike={})
            told = True  # cut off from here on, nobody knows whether others count on these uploads
            told = self.place.claim(STATE_FILE, joint.to_json(), terms.plan)
            # What is there is what counts: some stores let two make an object that must not be there yet.
            found = self._current() if told else None
        finally:
            if not told or (found is not None and found.uploads != ids):
                self._abort(ids)
        names = self.place.names() if found is not None else set()
        visible = {name for name in names if not _is_told(name)}
        if visible and names == visible | {STATE_FILE}:  # an output was published just before, and nobody has joined this one
            self._abort(ids)
            self.place.delete(STATE_FILE)
            raise not_empty(self.place, min(visible))
        return found

    def _abort(self, ids: Mapping[str, str]) -> None:
        with suppress(LswapError):  # what led here counts
            for name, upload in ids.items():
                self.place.abort(name, upload)

    def _can_splice(self, joint: Joint, options: WriteOptions) -> bool:
        """Whether the store knows how to copy a part: it is asked for the smallest one."""
        parts = joint.allot(self._plan).parts
        spliced = [(p.size_bytes, file, p.number) for file, of in parts.items() for p in of if p.origin is not None]
        sender = Sender(self.place, self._plan, parts, joint.origins, joint.uploads, {}, options=options, traffic=Traffic())
        return sender.can_splice({(file, number) for _, file, number in sorted(spliced)[:1]})

    def _goes_on(self, joint: Joint) -> bool:
        """False where the output is published by now. RecipeError where it was given up, or goes to other uploads."""
        current = self._current()
        if current is None and self.is_published:
            return False
        if current is None or current.uploads != joint.uploads:
            what = "the output was given up" if current is None else "uploads were begun anew"
            raise RecipeError(f"{self.place.url()}: {what} by another process meanwhile, so that this part does not count")
        return True

    def _current(self) -> Joint | None:
        try:
            found = read_state(self.place)
        except GoneError:
            return None
        return found if isinstance(found, Joint) else None

    def _is_there(self, file: str) -> bool:
        try:
            self.place.look(file)
        except GoneError:
            return False
        return True

    def _refuse_strangers(self, names: Collection[str], plan: str | None) -> None:
        """RecipeError for objects that are none of these and, of a `plan` that is being published, none of its files."""
        for name in sorted(names):
            if plan is None or not (_is_told(name) or is_ours(self.place, name, plan)):
                raise not_empty(self.place, name)


def _is_told(name: str) -> bool:
    """It is one of the small objects that workers leave each other."""
    return name == STATE_FILE or _RECORD.fullmatch(name) is not None
