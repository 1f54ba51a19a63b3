"""The uploads of an output's shards: beginning, aborting, and completing them when the output is published."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lswap_core.checkpoint.catalogue import INDEX_FILE
from lswap_core.errors import RecipeError, SourceError
from lswap_core.plan.plan import MANIFEST_FILE, OutputFile, Plan
from lswap_core.plan.upload_parts import UploadPart
from lswap_core.sinks.s3.bucket import BucketPrefix, GoneError, UnknownCallError, at_once
from lswap_core.sinks.s3.state import STATE_FILE


def check_empty(place: BucketPrefix) -> None:
    """Raises RecipeError where there are objects, but no unfinished merge of this program, which `Coordination` checks."""
    names = place.names()
    if names and STATE_FILE not in names:
        raise not_empty(place, min(names))


def not_empty(place: BucketPrefix, name: str) -> RecipeError:
    """The error for a place that is not empty."""
    what = f"{place.url()} is not empty ({name})"
    return RecipeError(f"{what}; an output is never written over, choose another --out or remove it")


def is_ours(place: BucketPrefix, name: str, plan: str) -> bool:
    """Whether a run of the plan with that digest wrote the object."""
    stored = place.find(name)
    return stored is not None and stored.plan == plan


def is_complete(place: BucketPrefix, file: OutputFile, plan: Plan) -> bool:
    """Whether a run of this plan completed the file's upload."""
    stored = place.find(file.name)
    return stored is not None and (stored.size, stored.plan) == (file.header.file_size, plan.digest)


def begin_uploads(place: BucketPrefix, plan: Plan, names: Sequence[str], ids: dict[str, str]) -> None:
    """Begin an upload for each of these files. Adds each id to `ids` as soon as it is known."""

    def begin(name: str) -> None:
        ids[name] = place.begin(name, plan.digest)

    at_once(begin, names)


def abort_strays(place: BucketPrefix, plan: Plan, known: Collection[tuple[str, str]] = ()) -> None:
    """Abort the unfinished uploads of this plan's files, and those that are `known`, by name and id."""
    names = {name for name, _ in known} | {file.name for file in plan.files}
    try:
        listed = {(name, upload) for name, upload in place.uploads() if name in names}
    except UnknownCallError:
        listed = set()
    for name, upload in {*known, *listed}:
        place.abort(name, upload)


class Publishing:
    """The part of a sink that makes the output visible. Its subclass sets `_parts` before it calls `_publish`."""

    def __init__(self, place: BucketPrefix) -> None:
        self._place = place
        self._parts: Mapping[str, tuple[UploadPart, ...]] = {}
        self._small: dict[str, bytes] = {}
        self.shard_sha256: dict[str, str] = {}
        """Always empty: no process sees the bytes of a shard in order."""

    def hash_shard(self, name: str) -> None:
        """Never called; see `check_options`."""
        raise RecipeError(f"{self._place.url(name)}: cannot be hashed, since no process sees its bytes in order")

    def put(self, name: str, data: bytes) -> None:
        """Add a small file."""
        if name in self._small or name in self._parts:
            raise RecipeError(f"{self._place.url(name)}: two files of the output would have this name")
        self._small[name] = data

    def _publish(
        self, plan: Plan, ids: Mapping[str, str], etags: Mapping[tuple[str, int], str], complete: Collection[str]
    ) -> None:
        """Complete the uploads of all shards but those that are `complete` already. Then write the small files, the index and
        at last the manifest. Several processes may do so at once. Raises SourceError where the store does not have what was
        sent.
        """

        def put_together(file: OutputFile) -> None:
            try:
                sent = [etags[file.name, part.number] for part in self._parts[file.name]]
                self._place.complete(file.name, ids[file.name], sent)
            except GoneError:  # as where an answer was lost on its way
                if not is_complete(self._place, file, plan):
                    raise
            stored = self._place.find(file.name)
            if stored is None or stored.size != file.header.file_size:
                where = self._place.url(file.name)
                raise SourceError(f"{where}: the store put together another size than was sent; do not use it")

        at_once(put_together, [file for file in plan.files if file.name not in complete])
        for name in sorted(self._small, key=lambda name: (name == MANIFEST_FILE, name == INDEX_FILE)):
            self._place.put(name, self._small[name], plan.digest)
