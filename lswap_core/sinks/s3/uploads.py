"""What an earlier run left in a store, how much of it holds, and the uploads that go on from there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lswap_core.checkpoint.catalogue import INDEX_FILE
from lswap_core.errors import FormatError, RecipeError, SourceError
from lswap_core.io.ports import Silence, Tally
from lswap_core.io.threads import run_all
from lswap_core.options import DigestKind
from lswap_core.plan.plan import MANIFEST_FILE, OutputFile, Plan
from lswap_core.sinks.s3.bucket import GoneError, Place, UnknownCallError
from lswap_core.sinks.s3.copy_sources import CALLS_AT_A_TIME
from lswap_core.sinks.s3.multipart import Part
from lswap_core.sinks.s3.state import FOLDER, SHARED_FORMAT, STATE_FILE, Joint, State
from lswap_core.strict_json import parse_object


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
        raise not_empty(place, min(names))


def find_state(place: Place, plan: Plan, digest: DigestKind, *, restart: bool) -> State | None:
    """What a run of this plan left that is to be gone on from. RecipeError where the place is not empty beside that, or holds
    an unfinished merge of another plan. restart: nothing is; uploads, objects and state of an earlier run are removed.
    """
    names = place.names()
    state = _known_state(place, damaged_is_none=restart) if STATE_FILE in names else None
    if isinstance(state, Joint) and not restart:
        what = f"{place.url()} holds an unfinished merge in {state.terms.parts} parts"
        raise RecipeError(
            f"{what}; go on with --part and `lswap-core publish`, or discard it with --restart once nobody works on it"
        )
    if isinstance(state, State) and not restart and (state.plan, state.digest) != (plan.digest, digest):
        what = "of another plan" if state.plan != plan.digest else f"begun with --digest {state.digest}"
        raise RecipeError(f"{place.url()} holds an unfinished merge {what}; finish that first, or discard it with --restart")
    kept = {name for name in names if name.startswith(FOLDER)} if STATE_FILE in names else set()
    visible = names - kept
    publishing = state.terms.plan if isinstance(state, Joint) else state.plan if state is not None and state.publishing else None
    ours = set() if publishing is None else {name for name in visible if is_ours(place, name, publishing)}
    if strange := sorted(visible - ours):
        raise not_empty(place, strange[0])
    if not restart:
        return state if isinstance(state, State) else None
    abort_strays(place, plan, _told(state), {})
    for name in (*sorted(ours), *sorted(kept - {STATE_FILE}), *(kept & {STATE_FILE})):
        place.delete(name)
    return None


def not_empty(place: Place, name: str) -> RecipeError:
    """The error for a place where something is."""
    what = f"{place.url()} is not empty ({name})"
    return RecipeError(f"{what}; an output is never written over, choose another --out or remove it")


def is_ours(place: Place, name: str, plan: str) -> bool:
    """An object was made by a run of the plan with that digest."""
    try:
        return place.look(name).plan == plan
    except GoneError:
        return False


def read_state(place: Place) -> State | Joint:
    """What a run keeps there, of one process or of several. GoneError, FormatError."""
    raw, path = place.get(STATE_FILE), place.url(STATE_FILE)
    in_parts = parse_object(raw, path=path).get("format") == SHARED_FORMAT
    return Joint.from_json(raw, path=path) if in_parts else State.from_json(raw, path=path)


def _known_state(place: Place, *, damaged_is_none: bool) -> State | Joint | None:
    try:
        return read_state(place)
    except FormatError:
        if damaged_is_none:
            return None
        raise


def _told(state: State | Joint | None) -> set[tuple[str, str]]:
    """The uploads that a state tells of."""
    if isinstance(state, Joint):
        return set(state.uploads.items())
    return set() if state is None else {(name, upload.id) for name, upload in state.uploads.items()}


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
    abort_strays(place, plan, _told(state), uploads.ids)
    absent = [file.name for file in plan.files if file.name not in uploads.ids and file.name not in uploads.complete]

    begin_uploads(place, plan, absent, uploads.ids)


def begin_uploads(place: Place, plan: Plan, names: Sequence[str], ids: dict[str, str]) -> None:
    """Begin an upload for each of these files; their ids are put into `ids`, as far as it gets."""

    def begin(name: str, _: Tally) -> None:
        ids[name] = place.begin(name, plan.digest)

    run_all(begin, names, total_bytes=0, progress=Silence(), workers=CALLS_AT_A_TIME)


def is_complete(place: Place, file: OutputFile, plan: Plan) -> bool:
    """The file was put together by a run of this plan."""
    try:
        found = place.look(file.name)
    except GoneError:
        return False
    return (found.size, found.plan) == (file.header.file_size, plan.digest)


def abort_strays(place: Place, plan: Plan, told: Collection[tuple[str, str]], ids: Mapping[str, str]) -> None:
    """Abort unfinished uploads of this plan's files and those that are `told` of, by name and id, but for `ids`."""
    names = {name for name, _ in told} | {file.name for file in plan.files}
    try:
        listed = {(name, upload) for name, upload in place.uploads() if name in names}
    except UnknownCallError:
        listed = set()
    for name, upload in (set(told) | listed) - set(ids.items()):
        place.abort(name, upload)


def put_together(
    place: Place,
    plan: Plan,
    parts: Mapping[str, tuple[Part, ...]],
    ids: Mapping[str, str],
    etags: Mapping[tuple[str, int], str],
    *,
    complete: Collection[str],
) -> None:
    """Complete the uploads of all shards but those that are `complete` already. Several may do so at once. SourceError where the
    store does not have what it was sent.
    """

    def put(file: OutputFile, _: Tally) -> None:
        try:
            place.complete(file.name, ids[file.name], [etags[file.name, part.number] for part in parts[file.name]])
        except GoneError:  # as after an answer that was lost on its way
            if not is_complete(place, file, plan):
                raise
        if place.look(file.name).size != file.header.file_size:
            raise SourceError(f"{place.url(file.name)}: the store put together another size than was sent; do not use it")

    todo = [file for file in plan.files if file.name not in complete]
    run_all(put, todo, total_bytes=0, progress=Silence(), workers=CALLS_AT_A_TIME)


def put_small(place: Place, plan: Plan, small: Mapping[str, bytes]) -> None:
    """Write the small files, the index and the manifest last."""
    for name in sorted(small, key=lambda name: (name == MANIFEST_FILE, name == INDEX_FILE)):
        place.put(name, small[name], plan.digest)
