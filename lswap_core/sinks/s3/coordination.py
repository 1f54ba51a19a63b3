"""Coordinates all processes that write one output to an S3-compatible store, with small objects below its prefix.

    .lswap-partial/state.json                       the shared terms, and the ids of the uploads: see `SharedState`
    .lswap-partial/part-3-of-16.json                the records of a finished part, and the ETags of its upload parts
    .lswap-partial/unfinished/part-3-of-16.json     the same for a part that the only process has not finished

`state.json` is written only if it does not exist. A record names the uploads that it belongs to. It does not count for
uploads that were lost, or that another process replaced at the same moment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from lswap_core.plan.upload_parts import Origin, UploadPart
from lswap_core.sinks.part_records import PART_FILE, Terms, decode_part, encode_part, part_file, refuse_terms
from lswap_core.sinks.s3.bucket import BucketPrefix, GoneError, UnknownCallError
from lswap_core.sinks.s3.copy_sources import find_alike, find_copy_sources
from lswap_core.sinks.s3.state import FOLDER, STATE_FILE, SharedState
from lswap_core.sinks.s3.uploads import abort_strays, begin_uploads, is_ours, not_empty

_UNFINISHED = FOLDER + "unfinished/"
_RECORD = re.compile(f"({re.escape(FOLDER)}|{re.escape(_UNFINISHED)}){PART_FILE}")
LOST = "the store no longer has its upload, as where a lifecycle rule aborts unfinished ones"
"""The reason to give in messages."""
_DISCARD = "discard it with --restart and without --part, once nobody works on it"
Key = tuple[str, int]
"""An upload part: the output file's name, the part's number."""
Done = tuple[list[StepRecord], dict[Key, str]]
"""What a part has done: the records of its steps, and ETags of its upload parts."""


class Coordination:
    """The small objects of one destination and plan. Safe to use from several threads."""

    def __init__(self, client: Any, url: str, plan: Plan) -> None:
        """Ask nothing of the store yet."""
        self._client, self._plan, self._losing = client, plan, Lock()
        self.place = BucketPrefix(client, url)
        self.began = False
        """Whether this process began the uploads, not an earlier run or another process."""
        self.copied: dict[Key, str] = {}
        """The upload part that the store copied as a test, if any."""

    def find(self) -> SharedState | None:
        """The shared state, None where nobody has begun.

        Raises RecipeError where there are other objects, where the output is published already, or where another plan's merge
        is unfinished. Raises FormatError where the state cannot be read.
        """
        names = self.place.names()
        state = self._current() if STATE_FILE in names else None
        if state is not None and state.terms.plan != self._plan.digest:
            raise refuse_terms(state.terms, replace(state.terms, plan=self._plan.digest), self.place.url(), _DISCARD)
        self._refuse_strangers(names, None if state is None else state.terms.plan)
        if state is not None and MANIFEST_FILE in names:
            self.clear()  # left over where publishing was interrupted after its last visible act
            what = f"{self.place.url()} is published already"
            raise RecipeError(f"{what}; an output is never written over, choose another --out")
        if state is not None and state.uploads.keys() != {file.name for file in self._plan.files}:
            raise FormatError("does not have the uploads of this plan's files", path=self.place.url(STATE_FILE))
        return state

    def join(self, parts: int | None, source: Source, options: WriteOptions) -> SharedState:
        """Join a build, or begin one. parts: None to take the build's number, or 1. Raises RecipeError where the build has
        other terms.
        """
        terms = Terms(self._plan.digest, parts or 1, options.digest)
        state = self.find() or self._begin(terms, source, options) or self.find()
        if state is None:
            raise RecipeError(f"{self.place.url()}: another process began there and gave up in the same moment; start again")
        self.check(state, parts, options)
        return state

    def check(self, state: SharedState, parts: int | None, options: WriteOptions) -> None:
        """Raises RecipeError where the build has other terms. parts: None for any number."""
        terms = Terms(self._plan.digest, parts or state.terms.parts, options.digest)
        if state.terms != terms:
            raise refuse_terms(state.terms, terms, self.place.url(), _DISCARD)
        if state.copy_method != options.copy_method:
            what = f"begun with --copy-method {state.copy_method}, not with --copy-method {options.copy_method}"
            raise RecipeError(f"{self.place.url()} holds an unfinished merge {what}; give the same to all parts, or {_DISCARD}")

    def done(self, part: Part, state: SharedState, *, unfinished: bool = False) -> Done | None:
        """What a part has done, without what it sent to lost uploads. None where the record is missing or damaged.

        unfinished: the record of an unfinished part. Raises RecipeError where the record belongs to something else.
        """
        name = _name(part, unfinished)
        try:
            decoded = decode_part(self.place.get(name), part, state.terms, self.place.url(name))
            if decoded is None:
                return None
            records, document = decoded
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
        """Record that a part is done, or with `unfinished`, what is done of it. Does nothing where the output is complete.

        Raises RecipeError where the uploads that the part went to no longer count.
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
            self.place.delete(name)  # published at this moment: no other process would remove it

    def forget(self, part: Part) -> None:
        """Remove the records of a part."""
        for unfinished in (False, True):
            self.place.delete(_name(part, unfinished))

    def replace_lost(self, state: SharedState, files: Collection[str]) -> SharedState:
        """Begin new uploads for those that the store has lost, unless another process did. Returns the state that counts now.

        Records of the lost uploads no longer count. Raises RecipeError where the output was published or given up.
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
        """The error to raise where the store lost the upload of a file. A new upload is begun."""
        try:
            with self._losing:
                self.replace_lost(state, [file])
        except LswapError as error:
            return error
        return SourceError(
            f"{self.place.url(file)}: {LOST}; another is begun, and every part that has bytes in it is to be done again"
        )

    def clear(self) -> None:
        """Remove everything but the output, and abort other uploads of its files."""
        abort_strays(self.place, self._plan)
        self._delete(name for name in self.place.names() if _is_small(name))

    def give_up(self, state: SharedState) -> None:
        """Remove what this process began, unless another process has joined and recorded something."""
        current = self._current()
        if current is not None and current.uploads == state.uploads and self.place.names() == {STATE_FILE}:
            self._abort(state.uploads)
            self.place.delete(STATE_FILE)

    def discard(self) -> None:
        """Remove an unfinished merge of any plan, with the objects that it published. Raises RecipeError where there are
        other objects.
        """
        names = self.place.names()
        state: SharedState | None = None
        with suppress(GoneError, FormatError):
            state = self._current()
        self._refuse_strangers(names, None if state is None else state.terms.plan)
        abort_strays(self.place, self._plan, () if state is None else state.uploads.items())
        self._delete(names)

    def _begin(self, terms: Terms, source: Source, options: WriteOptions) -> SharedState | None:
        """Begin all uploads and write the state. None where another process was faster."""
        origins = find_copy_sources(self._client, self._plan, source) if options.copy_method != "read_write" else {}
        alike = find_alike(self._client, self._plan, origins)
        ids: dict[str, str] = {}
        stored: SharedState | None = None
        published = False
        try:
            begin_uploads(self.place, self._plan, [file.name for file in self._plan.files], ids)
            state = SharedState(terms, options.copy_method, origins, alike, ids)
            if not self._can_splice(state):
                state = replace(state, origins={}, alike={})
            published = True  # from here on, after an interruption, other processes may rely on these uploads
            published = self.place.claim(STATE_FILE, state.to_json(), terms.plan)
            # The stored state counts: some stores let two processes create an object that must not exist yet.
            stored = self._current() if published else None
        finally:
            if not published or (stored is not None and stored.uploads != ids):
                self._abort(ids)
        names = self.place.names() if stored is not None else set()
        visible = {name for name in names if not _is_small(name)}
        if visible and names == visible | {STATE_FILE}:  # an output was published just before, and nobody has joined this one
            self._abort(ids)
            self.place.delete(STATE_FILE)
            raise not_empty(self.place, min(visible))
        self.began = stored is not None and stored.uploads == ids
        return stored

    def _abort(self, ids: Mapping[str, str]) -> None:
        with suppress(LswapError):  # the original error counts
            for name, upload in ids.items():
                self.place.abort(name, upload)

    def _delete(self, names: Iterable[str]) -> None:
        """Remove objects, the state last."""
        for name in sorted(names, key=lambda name: (name == STATE_FILE, name)):
            self.place.delete(name)

    def _can_splice(self, state: SharedState) -> bool:
        """Whether the store supports copying an upload part. The smallest one is the test."""
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
        """False where the output is published. Raises RecipeError where it was given up, or where one of `files` has another
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
        """The state. The FormatError for one that cannot be read, such as of another version, says how to discard it."""
        path = self.place.url(STATE_FILE)
        try:
            return SharedState.from_json(self.place.get(STATE_FILE), path=path)
        except GoneError:
            return None
        except FormatError as error:
            raise FormatError(f"{str(error).removeprefix(path + ': ')}; {_DISCARD}", path=path) from None

    def _refuse_strangers(self, names: Collection[str], plan: str | None) -> None:
        """Raises RecipeError for objects that are neither small objects of this package nor files of a `plan` that is being
        published.
        """
        for name in sorted(names):
            if not _is_small(name) and (plan is None or not is_ours(self.place, name, plan)):
                raise not_empty(self.place, name)


def splice(place: BucketPrefix, state: SharedState, file: str, part: UploadPart, origin: Origin) -> str:
    """Have the store copy an upload part. Returns its ETag. Raises StalePlanError, UnknownCallError: see
    `BucketPrefix.splice`.
    """
    url, version = state.origins[origin.role, origin.file]
    begin, end = origin.begin, origin.begin + part.size_bytes
    return place.splice(file, state.uploads[file], part.number, url, version, begin, end)


def _name(part: Part, unfinished: bool) -> str:
    return (_UNFINISHED if unfinished else FOLDER) + part_file(part)


def _is_small(name: str) -> bool:
    """Whether it is one of the small objects with which processes coordinate."""
    return name == STATE_FILE or _RECORD.fullmatch(name) is not None
