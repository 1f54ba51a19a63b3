"""Finds out which of a plan's source files are in the output's store, so that the store can copy from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lswap_core.checkpoint.catalogue import Role
from lswap_core.errors import StalePlanError
from lswap_core.io.ports import Source
from lswap_core.plan.plan import OutputFile, Plan
from lswap_core.plan.runs import is_plain
from lswap_core.plan.upload_parts import UploadPart
from lswap_core.sinks.s3.bucket import SCHEME, at_once, look, read_head

CopySources = Mapping[tuple[Role, str], tuple[str, str]]
"""URL and ETag of source files, by role and name."""


def find_copy_sources(client: Any, plan: Plan, source: Source) -> CopySources:
    """The source files of copied bytes that are in the store, as they are now. Raises StalePlanError where the size has
    changed.
    """
    sizes = {(of.role, file.name): file.size for of in plan.sources for file in of.files}
    refs = (step.made_of.refs[0] for step in plan.steps if is_plain(step))
    files = [file for file in dict.fromkeys((ref.role, ref.file) for ref in refs) if source.path_of(*file).startswith(SCHEME)]

    def find(file: tuple[Role, str]) -> tuple[str, str]:
        url = source.path_of(*file)
        stored = look(client, url)
        if stored.size != sizes[file]:
            raise StalePlanError(f"{url}: changed after it was planned ({stored.size} bytes now); plan again")
        return url, stored.etag

    return dict(zip(files, at_once(find, files), strict=True))


def find_alike(client: Any, plan: Plan, sources: CopySources) -> dict[str, tuple[Role, str]]:
    """Source files that begin like an output file, by output file: one upload part of them has header and data."""

    def look(file: OutputFile) -> tuple[Role, str] | None:
        first = next(iter(file.steps()), None)
        if first is None or not is_plain(first):
            return None
        ref, head = first.made_of.refs[0], file.header.encode()
        origin = sources.get((ref.role, ref.file))
        alike = origin is not None and ref.begin == first.begin and read_head(client, *origin, len(head)) == head
        return (ref.role, ref.file) if alike else None

    alike_of = zip(plan.files, at_once(look, plan.files), strict=True)
    return {file.name: theirs for file, theirs in alike_of if theirs is not None}


def confirm_copied(
    client: Any, sources: CopySources, parts: Mapping[str, Sequence[UploadPart]], keys: Iterable[tuple[str, int]]
) -> None:
    """Raises StalePlanError where a source file that upload parts were copied from has changed: some stores ignore
    `CopySourceIfMatch`. keys: of the upload parts, by file and number.
    """
    origins = (parts[file][number - 1].origin for file, number in keys)

    def confirm(file: tuple[Role, str]) -> None:
        url, etag = sources[file]
        if look(client, url).etag != etag:
            raise StalePlanError(f"{url}: changed after it was planned; plan again")

    used = {(origin.role, origin.file) for origin in origins if origin is not None}
    at_once(confirm, sorted(used))
