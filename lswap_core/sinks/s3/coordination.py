"""Where all who write one output in an S3-compatible store meet: below its prefix, in small objects.

    .lswap-partial/state.json                       what they agree on, and the ids of the uploads: see `SharedState`
    .lswap-partial/part-3-of-16.json                the records of a part that is done, and the ETags of its upload parts
    .lswap-partial/unfinished/part-3-of-16.json     likewise, as far as one process that does all parts has come with it

The first is made only if it is not there. A record holds the ids of the uploads that it is of. What it
says of an upload counts for nothing if that was lost, or is one that another process began at the same moment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Lock
from typing import Any

from lswap_core.errors import FormatError, LswapError, RecipeError, SourceError
from lswap_core.io.ports import Source
from lswap_core.options import WriteOptions
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import MANIFEST_FILE, Plan
from lswap_core.sinks.part_records import PART_FILE, Terms, decode_part, encode_part, part_file, refuse_terms
from lswap_core.sinks.s3.bucket import BucketPrefix, GoneError, UnknownCallError
from lswap_core.sinks.s3.copy_sources import find_alike, find_copy_sources
from lswap_core.sinks.s3.multipart import Origin, UploadPart
from lswap_core.sinks.s3.state import FOLDER, STATE_FILE, SharedState
from lswap_core.sinks.s3.uploads import abort_strays, begin_uploads, is_ours, not_empty

_UNFINISHED = FOLDER + "unfinished/"
_RECORD = re.compile(f"({re.escape(FOLDER)}|{re.escape(_UNFINISHED)}){PART_FILE}")
LOST = "the store no longer has its upload, as where a lifecycle rule aborts unfinished ones"
"""What to say of a file."""
_DISCARD = "discard it with --restart and without --part, once nobody works on it"
Key = tuple[str, int]
"""An upload part: the output file's name, the part's number."""
Done = tuple[list[StepRecord], dict[Key, str]]
"""What a part has done: the records of its steps, and ETags."""


class Coordination:
    """The small objects of one destination and plan. Safe to use from several threads."""

    def __init__(self, client: Any, url: str, plan: Plan) -> None:
        """Nothing is asked of the store yet."""
        self._client, self._plan, self._losing = client, plan, Lock()
        self.place = BucketPrefix(client, url)
        self.began = False
        """The uploads were begun here, not by a run before or by another process."""
        self.copied: dict[Key, str] = {}
        """The upload part that the store copied, if any, to show that it can."""

    def find(self) -> SharedState | None:
        """What was agreed on; None where nobody has begun. RecipeError where the place is not empty beside that, is published
        already, or holds another plan's unfinished merge; FormatError where the agreement cannot be read.
        """
        names = self.place.names()
        found = self._current() if STATE_FILE in names else None
        if found is not None and found.terms.plan != self._plan.digest:
            raise refuse_terms(found.terms, replace(found.terms, plan=self._plan.digest), self.place.url(), _DISCARD)
        self._refuse_strangers(names, None if found is None else found.terms.plan)
        if found is not None and MANIFEST_FILE in names:
            self.clear()  # what was left when publishing was cut off after its last visible act
            what = f"{self.place.url()} is published already"
            raise RecipeError(f"{what}; an output is never written over, choose another --out")
        if found is not None and found.uploads.keys() != {file.name for file in self._plan.files}:
            raise FormatError("does not have the uploads of this plan's files", path=self.place.url(STATE_FILE))
        return found

    def join(self, parts: int | None, source: Source, options: WriteOptions) -> SharedState:
        """Agree with those who have begun, or begin. parts: None for as many as there are, or else one. RecipeError where they
        have agreed on something else.
        """
        terms = Terms(self._plan.digest, parts or 1, options.digest)
        found = self.find() or self._begin(terms, source, options) or self.find()
        if found is None:
            raise RecipeError(f"{self.place.url()}: another process began there and gave up in the same moment; start again")
        self.check(found, parts, options)
        return found

    def check(self, found: SharedState, parts: int | None, options: WriteOptions) -> None:
        """RecipeError where what was agreed on is something else. parts: None for any number."""
        terms = Terms(self._plan.digest, parts or found.terms.parts, options.digest)
        if found.terms != terms:
            raise refuse_terms(found.terms, terms, self.place.url(), _DISCARD)
        if found.copy_method != options.copy_method:
            what = f"begun with --copy-method {found.copy_method}, not with --copy-method {options.copy_method}"
            raise RecipeError(f"{self.place.url()} holds an unfinished merge {what}; give the same to all parts, or {_DISCARD}")

    def done(self, part: Part, state: SharedState, *, unfinished: bool = False) -> Done | None:
        """What a part has done, without what it sent to uploads that were lost; None where there is no record or it is damaged.
        RecipeError where the record is of something else. unfinished: as far as one process has come with it.
        """
        name = _name(part, unfinished)
        try:
            found = decode_part(self.place.get(name), part, state.terms, self.place.url(name))
            if found is None:
                return None
            records, document = found
            etags: dict[Key, str] = {}
            for file, entry in document["sent"].items():
                pairs = [pair.elements(2) for pair in entry["etags"].elements()]
                if entry["upload"].text() == state.uploads.get(file):
                    etags |= {(file, number.integer()): etag.text() for number, etag in pairs}
        except (GoneError, FormatError):
            return None
        return records, etags

    def note(
        self,
        part: Part,
        state: SharedState,
        records: Sequence[StepRecord],
        etags: Mapping[Key, str],
        *,
        unfinished: bool = False,
    ) -> None:
        """Record that a part is done; nothing where all of the output is by now. unfinished: record how far it is. RecipeError
        where the uploads that it went to are not those of the output any more.
        """
        name = _name(part, unfinished)
        sent: dict[str, dict[str, Any]] = {}
        for (file, number), etag in sorted(etags.items()):
            sent.setdefault(file, {"upload": state.uploads[file], "etags": []})["etags"].append([number, etag])
        files = () if unfinished else sent.keys()
        if not self._goes_on(state, files):
            return
        self.place.put(name, encode_part(part, state.terms, records, {"sent": sent}), state.terms.plan)
        try:
            stays = self._goes_on(state, files)
        except RecipeError:
            self.place.delete(name)
            raise
        if not stays:
            self.place.delete(name)  # published in this moment: nobody else would remove it

    def forget(self, part: Part) -> None:
        """Take back what a part has done."""
        for unfinished in (False, True):
            self.place.delete(_name(part, unfinished))

    def replace_lost(self, state: SharedState, files: Collection[str]) -> SharedState:
        """Begin other uploads in place of those that the store has lost, unless another process did so; returns what counts now.
        Records of the lost ones count for nothing from then on. RecipeError where the output was published or given up instead.
        """
        current = self._current()
        if current is None or current.terms != state.terms or self.place.names() & {*files}:
            raise RecipeError(f"{self.place.url()}: was published or given up by another process meanwhile; look what is there")
        if lost := [file for file in files if current.uploads[file] == state.uploads[file]]:
            begun: dict[str, str] = {}
            begin_uploads(self.place, self._plan, lost, begun)
            current = replace(current, uploads={**current.uploads, **begun})
            self.place.put(STATE_FILE, current.to_json(), state.terms.plan)
        return current

    def lose(self, state: SharedState, file: str) -> LswapError:
        """What to raise where the store no longer has the upload of a file, another one of which is begun."""
        try:
            with self._losing:
                self.replace_lost(state, [file])
        except LswapError as error:
            return error
        return SourceError(
            f"{self.place.url(file)}: {LOST}; another is begun, and every part that has bytes in it is to be done again"
        )

    def clear(self) -> None:
        """Remove everything but the output, and abort what other uploads of its files there are."""
        abort_strays(self.place, self._plan)
        self._delete(name for name in self.place.names() if _is_small(name))

    def give_up(self, state: SharedState) -> None:
        """Leave nothing of what was begun here, unless another process has joined and recorded something."""
        current = self._current()
        if current is not None and current.uploads == state.uploads and self.place.names() == {STATE_FILE}:
            self._abort(state.uploads)
            self.place.delete(STATE_FILE)

    def discard(self) -> None:
        """Remove an unfinished merge of whatever plan, with the objects that it has published. RecipeError for other objects."""
        names = self.place.names()
        state: SharedState | None = None
        with suppress(GoneError, FormatError):
            state = self._current()
        self._refuse_strangers(names, None if state is None else state.terms.plan)
        abort_strays(self.place, self._plan, () if state is None else state.uploads.items())
        self._delete(names)

    def _begin(self, terms: Terms, source: Source, options: WriteOptions) -> SharedState | None:
        """Begin all uploads and say so; None where another process was faster."""
        origins = find_copy_sources(self._client, self._plan, source) if options.copy_method != "read_write" else {}
        alike = find_alike(self._client, self._plan, origins)
        ids: dict[str, str] = {}
        found: SharedState | None = None
        published = False
        try:
            begin_uploads(self.place, self._plan, [file.name for file in self._plan.files], ids)
            state = SharedState(terms, options.copy_method, origins, alike, ids)
            if not self._can_splice(state):
                state = replace(state, origins={}, alike={})
            published = True  # cut off from here on, nobody knows whether others count on these uploads
            published = self.place.claim(STATE_FILE, state.to_json(), terms.plan)
            # What is there is what counts: some stores let two make an object that must not be there yet.
            found = self._current() if published else None
        finally:
            if not published or (found is not None and found.uploads != ids):
                self._abort(ids)
        names = self.place.names() if found is not None else set()
        visible = {name for name in names if not _is_small(name)}
        if visible and names == visible | {STATE_FILE}:  # an output was published just before, and nobody has joined this one
            self._abort(ids)
            self.place.delete(STATE_FILE)
            raise not_empty(self.place, min(visible))
        self.began = found is not None and found.uploads == ids
        return found

    def _abort(self, ids: Mapping[str, str]) -> None:
        with suppress(LswapError):  # what led here counts
            for name, upload in ids.items():
                self.place.abort(name, upload)

    def _delete(self, names: Collection[str] | Any) -> None:
        """Remove objects, the agreement last."""
        for name in sorted(names, key=lambda name: (name == STATE_FILE, name)):
            self.place.delete(name)

    def _can_splice(self, state: SharedState) -> bool:
        """Whether the store knows how to copy an upload part: it is asked for the smallest one."""
        parts = state.divide(self._plan).parts
        spliced = [(file, part, part.origin) for file, of in parts.items() for part in of if part.origin is not None]
        try:
            if spliced:
                file, part, origin = min(spliced, key=lambda one: one[1].size_bytes)
                self.copied[file, part.number] = splice(self.place, state, file, part, origin)
        except UnknownCallError:
            return False
        return True

    def _goes_on(self, state: SharedState, files: Collection[str]) -> bool:
        """False where the output is published by now. RecipeError where it was given up, or where one of `files` goes to another
        upload.
        """
        current = self._current()
        if current is None and is_ours(self.place, MANIFEST_FILE, self._plan.digest):
            return False
        if current is None or any(current.uploads.get(file) != state.uploads[file] for file in files):
            what = "the output was given up" if current is None else "other uploads were begun"
            raise RecipeError(f"{self.place.url()}: {what} by another process meanwhile, so that this part does not count")
        return True

    def _current(self) -> SharedState | None:
        """FormatError says how to be rid of an agreement that cannot be read, as one of another version."""
        path = self.place.url(STATE_FILE)
        try:
            return SharedState.from_json(self.place.get(STATE_FILE), path=path)
        except GoneError:
            return None
        except FormatError as error:
            raise FormatError(f"{str(error).removeprefix(path + ': ')}; {_DISCARD}", path=path) from None

    def _refuse_strangers(self, names: Collection[str], plan: str | None) -> None:
        """RecipeError for objects that are none of these and, of a `plan` that is being published, none of its files."""
        for name in sorted(names):
            if not _is_small(name) and (plan is None or not is_ours(self.place, name, plan)):
                raise not_empty(self.place, name)


def splice(place: BucketPrefix, state: SharedState, file: str, part: UploadPart, origin: Origin) -> str:
    """Have the store copy an upload part; returns its ETag. StalePlanError, UnknownCallError: see `BucketPrefix.splice`."""
    url, version = state.origins[origin.role, origin.file]
    begin, end = origin.begin, origin.begin + part.size_bytes
    return place.splice(file, state.uploads[file], part.number, url, version, begin, end)


def _name(part: Part, unfinished: bool) -> str:
    return (_UNFINISHED if unfinished else FOLDER) + part_file(part)


def _is_small(name: str) -> bool:
    """It is one of the small objects that processes leave each other."""
    return name == STATE_FILE or _RECORD.fullmatch(name) is not None
