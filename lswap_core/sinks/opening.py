"""Where an output goes, by the form of what the user wrote: a path, or the URL of a place in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lswap_core.errors import RecipeError
from lswap_core.options import WriteOptions
from lswap_core.sinks.local import LocalSink
from lswap_core.sinks.partial import check_destination
from lswap_core.traffic import Traffic

if TYPE_CHECKING:
    from lswap_core.sinks.stores import StoreSink
    from lswap_core.sinks.streams import StreamSink

SCHEMES = ("s3", "gs", "az")
"""Of the URLs of outputs."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """It is a URL, not a path."""
    return "://" in os.fspath(place)


def check_place(into: str | os.PathLike[str], sources: Iterable[str]) -> None:
    """Raise what a sink would where `into` is an impossible place for an output: see `check_destination`."""
    if is_url(into):
        url = _checked_url(os.fspath(into), sources)
        from lswap_core.sinks import buckets, resuming, streams

        if url.startswith(buckets.SCHEME):
            resuming.check_empty(buckets.Place(buckets.connect(1), url))
        else:
            streams.check_empty(streams.open_store(url), url)
    else:
        check_destination(into, sources)


def open_sink(
    into: str | os.PathLike[str], *, sources: Iterable[str], options: WriteOptions, traffic: Traffic | None, restart: bool
) -> LocalSink | StoreSink | StreamSink:
    """The sink for an output at `into`. RecipeError for an impossible place."""
    if not is_url(into):
        return LocalSink(into, sources=sources, options=options, traffic=traffic, restart=restart)
    url = _checked_url(os.fspath(into), sources)
    if not url.startswith("s3://"):
        from lswap_core.sinks.streams import StreamSink

        return StreamSink(url, options=options, traffic=traffic)
    from lswap_core.sinks.stores import StoreSink

    return StoreSink(url, options=options, traffic=traffic, restart=restart)


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
            raise RecipeError(f"the output {place} is, holds or lies in the source {source}; choose another --out")
    return place
