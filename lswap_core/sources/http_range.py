"""Makes one range request with another library's HTTP session: requests (huggingface_hub below 1.0), httpx or its successor."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from lswap_core.errors import SourceError, StalePlanError
from lswap_core.io.retries import InterruptedTransferError

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""Seconds that a server may be silent in the middle of a transfer."""
_PIECE_BYTES = 64 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may change with another attempt."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response whose body has not been read. `pieces` yields it; `close` ends the transfer, whether or not it was read."""

    status: int
    headers: Mapping[str, str]
    pieces: Generator[bytes, None, None]
    close: Callable[[], None]


def request_range(session: Any, url: str, headers: Mapping[str, str], begin: int, end: int) -> Response:
    """GET bytes [begin, end) of `url`, without following redirects. Raises InterruptedTransferError where there was no
    response.
    """
    asked = {**headers, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    return _by_httpx(session, url, asked) if hasattr(session, "build_request") else _by_requests(session, url, asked)


def _by_requests(session: Any, url: str, headers: dict[str, str]) -> Response:
    import requests
    import urllib3

    failures = (requests.RequestException, urllib3.exceptions.HTTPError)
    try:
        response = session.get(
            url, headers=headers, stream=True, allow_redirects=False, timeout=(CONNECT_SECONDS, SILENCE_SECONDS)
        )
    except failures as error:
        raise _interrupted(error) from error

    def pieces() -> Generator[bytes, None, None]:
        try:
            yield from response.raw.stream(_PIECE_BYTES, decode_content=False)
        except failures as error:
            raise _interrupted(error) from error

    return Response(response.status_code, response.headers, pieces(), response.close)


def _by_httpx(session: Any, url: str, headers: dict[str, str]) -> Response:
    library: Any = sys.modules[type(session).__module__.partition(".")[0]]  # httpx or httpx2
    timeout = library.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    try:
        request = session.build_request("GET", url, headers=headers, timeout=timeout)
        response = session.send(request, stream=True, follow_redirects=False)
    except library.TransportError as error:
        raise _interrupted(error) from error
    except RuntimeError as error:  # another thread met an error, for which the session was closed and replaced
        if not session.is_closed:
            raise
        raise InterruptedTransferError("the session was closed") from error

    def pieces() -> Generator[bytes, None, None]:
        try:
            yield from response.iter_raw()
        except (library.TransportError, library.StreamError) as error:
            raise _interrupted(error) from error

    return Response(response.status_code, response.headers, pieces(), response.close)


def _interrupted(error: Exception) -> InterruptedTransferError:
    return InterruptedTransferError(f"{type(error).__name__}: {error or 'no response'}")


def check_body(response: Response, *, path: str, begin: int, end: int, size: int) -> None:
    """Check that the body is bytes [begin, end), or the first of them, of a file of `size` bytes. A server that sends the
    whole file is accepted only where the whole file was requested.
    """
    if response.status == 200 and (begin, end) == (0, size):
        length = response.headers.get("Content-Length")
        if length is not None and int(length) != size:
            raise StalePlanError(f"{path}: has {length} bytes now, not {size}; plan again")
        return
    if response.status == 200:
        raise SourceError(
            f"{path}: the server does not serve ranges, it sent all of the file; download it first and give the directory"
        )
    told = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(told)
    if match is not None and match[3] not in ("*", str(size)):
        raise StalePlanError(f"{path}: has {match[3]} bytes now, not {size}; plan again")
    if match is None or int(match[1]) != begin or not begin < int(match[2]) + 1 <= end:
        raise SourceError(f"{path}: asked for bytes {begin}-{end - 1}, the server sent {told!r}; download it first")


def retry_later(response: Response) -> InterruptedTransferError | None:
    """The error for a status that may change with another attempt; None for any other."""
    return delay_of(response.status, response.headers) if response.status in LATER else None


def delay_of(status: int, headers: Mapping[str, str]) -> InterruptedTransferError:
    """The error for a status in LATER, with the wait that the server asks for."""
    told = "rate-limited (429)" if status == 429 else f"the server failed ({status})"
    after = headers.get("Retry-After", "")
    return InterruptedTransferError(told, float(after) if after.isdigit() else None)
