"""The end of an output in an S3-compatible store: its files appear, shards first, the manifest last."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lswap_core.checkpoint.catalogue import INDEX_FILE
from lswap_core.errors import SourceError
from lswap_core.io.ports import Silence, Tally
from lswap_core.io.threads import run_all
from lswap_core.plan.plan import MANIFEST_FILE, OutputFile, Plan
from lswap_core.sinks.buckets import GoneError, Place
from lswap_core.sinks.origins import CALLS_AT_A_TIME
from lswap_core.sinks.parting import Part
from lswap_core.sinks.resuming import is_complete


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
