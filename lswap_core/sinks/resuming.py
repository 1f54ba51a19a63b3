"""What an earlier run left in a store, how much of it holds, and the uploads that go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lswap_core.errors import FormatError, RecipeError
from lswap_core.options import DigestKind
from lswap_core.parallel import run_all
from lswap_core.plan import OutputFile, Plan
from lswap_core.ports import Silence
from lswap_core.sinks.buckets import GoneError, Place, UnknownCallError
from lswap_core.sinks.parting import Part
from lswap_core.sinks.uploads import STATE_FILE, State

CALLS_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class Uploads:
    """ids: of the uploads, by file. complete: files that were put together already. etags: of the parts that hold, by file
    and number.
    """

    ids: dict[str, str] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    etags: dict[tuple[str, int], str] = field(default_factory=dict)


def check_empty(place: Place) -> None:
    """RecipeError where something is there and no unfinished merge of this program's, of which `find_state` judges."""
    names = place.names()
    if names and STATE_FILE not in names:
        raise _not_empty(place, min(names))


def find_state(place: Place, plan: Plan, digest: DigestKind, *, restart: bool) -> State | None:
    """What a run of this plan left that is to be gone on from. RecipeError where the place is not empty beside that, or holds
    an unfinished merge of another plan. restart: nothing is; uploads, objects and state of an earlier run are removed.
    """
    names = place.names()
    state = _read_state(place, damaged_is_none=restart) if STATE_FILE in names else None
    if state is not None and not restart and (state.plan, state.digest) != (plan.digest, digest):
        what = "of another plan" if state.plan != plan.digest else f"begun with --digest {state.digest}"
        raise RecipeError(f"{place.url()} holds an unfinished merge {what}; finish that first, or discard it with --restart")
    visible = names - {STATE_FILE}
    ours = {name for name in visible if place.look(name).plan == state.plan} if state is not None and state.publishing else set()
    if strange := sorted(visible - ours):
        raise _not_empty(place, strange[0])
    if not restart:
        return state
    _abort_strays(place, plan, state, Uploads())
    for name in (*ours, *({STATE_FILE} & names)):
        place.delete(name)
    return None


def _not_empty(place: Place, name: str) -> RecipeError:
    what = f"{place.url()} is not empty ({name})"
    return RecipeError(f"{what}; an output is never written over, choose another --out or remove it")


def _read_state(place: Place, *, damaged_is_none: bool) -> State | None:
    try:
        return State.from_json(place.get(STATE_FILE), path=place.url(STATE_FILE))
    except FormatError:
        if damaged_is_none:
            return None
        raise


def take_up(place: Place, plan: Plan, state: State | None, parts: Mapping[str, tuple[Part, ...]], uploads: Uploads) -> None:
    """Put an upload for every file into `uploads`, as far as it gets: the earlier run's, with what the store says it has, or
    a new one. Others are aborted.
    """

    def look(file: OutputFile, _: object) -> None:
        if state is not None and state.publishing and is_complete(place, file, plan):
            uploads.complete.add(file.name)
            return
        earlier = None if state is None else state.uploads.get(file.name)
        if earlier is None:
            return
        try:
            there = place.parts(file.name, earlier.id)
        except (GoneError, UnknownCallError):
            return
        uploads.ids[file.name] = earlier.id
        for part in parts[file.name]:
            begin, end, etag = earlier.parts.get(part.number, (0, 0, ""))
            if (begin, end) == (part.begin, part.end) and there.get(part.number) == (part.size_bytes, etag):
                uploads.etags[file.name, part.number] = etag

    run_all(look, plan.files, total_bytes=0, progress=Silence(), workers=CALLS_AT_A_TIME)
    _abort_strays(place, plan, state, uploads)
    absent = [file.name for file in plan.files if file.name not in uploads.ids and file.name not in uploads.complete]

    def start(name: str, _: object) -> None:
        uploads.ids[name] = place.begin(name, plan.digest)

    run_all(start, absent, total_bytes=0, progress=Silence(), workers=CALLS_AT_A_TIME)


def is_complete(place: Place, file: OutputFile, plan: Plan) -> bool:
    """The file was put together by a run of this plan."""
    try:
        found = place.look(file.name)
    except GoneError:
        return False
    return (found.size, found.plan) == (file.header.file_size, plan.digest)


def _abort_strays(place: Place, plan: Plan, state: State | None, uploads: Uploads) -> None:
    """Abort unfinished uploads of this plan's files and of those that a state tells of, but for the ones taken up."""
    told = set() if state is None else {(name, upload.id) for name, upload in state.uploads.items()}
    names = {name for name, _ in told} | {file.name for file in plan.files}
    try:
        listed = {(name, upload) for name, upload in place.uploads() if name in names}
    except UnknownCallError:
        listed = set()
    for name, upload in (told | listed) - set(uploads.ids.items()):
        place.abort(name, upload)
