"""Chooses the sink for an output, by the form of its name: a path, or a URL in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lswap_core.errors import RecipeError
from lswap_core.io.locations import is_url
from lswap_core.io.ports import FinishedParts, PartSink, Sink, Source
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions, check_options
from lswap_core.plan.division import Part
from lswap_core.plan.plan import Plan
from lswap_core.sinks.disk.build_directory import Build
from lswap_core.sinks.disk.part_sink import DiskParts, DiskPartSink
from lswap_core.sinks.disk.partial_directory import check_destination
from lswap_core.sinks.disk.sink import DiskSink
from lswap_core.sinks.part_records import Terms

SCHEMES = ("s3", "gs", "az")
"""Schemes of outputs' URLs."""


def check_place(into: str | os.PathLike[str], sources: Iterable[str]) -> None:
    """Raise what a sink would raise where `into` is an impossible place for an output: see `check_destination`."""
    if is_url(into):
        url = _checked_url(os.fspath(into), sources)
        from lswap_core.io.obstore import open_store
        from lswap_core.sinks import gcs_azure
        from lswap_core.sinks.s3 import bucket, uploads

        if url.startswith(bucket.SCHEME):
            uploads.check_empty(bucket.BucketPrefix(bucket.connect(1), url))
        else:
            gcs_azure.check_empty(open_store(url), url)
    else:
        check_destination(into, sources)


def open_sink(
    into: str | os.PathLike[str], *, sources: Iterable[str], options: WriteOptions, traffic: Traffic | None, restart: bool
) -> Sink:
    """Return the sink for an output at `into`. Raises RecipeError for an impossible place."""
    if not is_url(into):
        return DiskSink(into, sources=sources, options=options, traffic=traffic, restart=restart)
    url = _checked_url(os.fspath(into), sources)
    if not url.startswith("s3://"):
        from lswap_core.sinks.gcs_azure import StreamSink

        return StreamSink(url, options=options, traffic=traffic)
    from lswap_core.sinks.s3.sink import S3Sink

    return S3Sink(url, options=options, traffic=traffic, restart=restart)


def open_part(
    into: str | os.PathLike[str],
    plan: Plan,
    part: Part,
    source: Source,
    *,
    sources: Iterable[str],
    options: WriteOptions,
    traffic: Traffic | None,
    restart: bool,
) -> PartSink:
    """Return the sink for one part of an output at `into`. It begins or joins the build. Raises RecipeError for an impossible
    place.
    """
    if not is_url(into):
        return DiskPartSink(into, plan, part, sources=sources, options=options, traffic=traffic, restart=restart)
    url = _checked_shared_url(os.fspath(into), sources)
    from lswap_core.sinks.s3.part_sink import S3PartSink

    return S3PartSink(url, plan, part, source, options=options, traffic=traffic, restart=restart)


def open_parts(into: str | os.PathLike[str], plan: Plan, *, sources: Iterable[str]) -> FinishedParts:
    """Return the finished parts of an output at `into`. Raises RecipeError for an impossible place, or where some are
    missing.
    """
    if not is_url(into):
        return DiskParts(into, plan, sources=sources)
    url = _checked_shared_url(os.fspath(into), sources)
    from lswap_core.sinks.s3.part_sink import S3Parts

    return S3Parts(url, plan)


def find_parts(
    into: str | os.PathLike[str], plan: Plan, parts: int | None, *, sources: Iterable[str], options: WriteOptions
) -> int | None:
    """The number of parts of a build at `into`, None where there is no build. parts: None for any number.

    Raises what `open_part` would raise for an impossible place, and for a build on other terms.
    """
    if not is_url(into):
        build = Build(check_destination(into, sources))
        terms = build.terms()
        if terms is not None:
            build.check(Terms(plan.digest, parts or terms.parts, options.digest))
        return None if terms is None else terms.parts
    url = _checked_shared_url(os.fspath(into), sources)
    from lswap_core.sinks.s3 import bucket, coordination

    check_options(options)
    state = (place := coordination.Coordination(bucket.connect(1), url, plan)).find()
    if state is not None:
        place.check(state, parts, options)
    return None if state is None else state.terms.parts


def _checked_shared_url(url: str, sources: Iterable[str]) -> str:
    place = _checked_url(url, sources)
    if not place.startswith("s3://"):
        scheme = place.partition("://")[0]
        raise RecipeError(
            f"{place}: parts are built in a directory that all workers share, or in an s3:// store; to {scheme}:// one process "
            "sends every shard as one stream"
        )
    return place


def _checked_url(url: str, sources: Iterable[str]) -> str:
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.strip("/").partition("/")
    if scheme not in SCHEMES:
        raise RecipeError(f"nothing can be written to {url}; --out takes a path or a URL of {', '.join(SCHEMES)}")
    if not bucket or not all(part not in ("", ".", "..") for part in prefix.split("/")):
        raise RecipeError(f"{url} does not name a place of its own in a bucket; expected {scheme}://bucket/prefix")
    place = f"{scheme}://{bucket}/{prefix}"
    for source in sources:
        theirs = source.rstrip("/")
        if f"{place}/".startswith(f"{theirs}/") or f"{theirs}/".startswith(f"{place}/"):
            raise RecipeError(f"the output {place} is, contains or is inside the source {source}; choose another --out")
    return place
