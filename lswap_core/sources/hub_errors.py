"""Translates the errors of `huggingface_hub` and its HTTP session into this package's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lswap_core.errors import SourceError, no_such_file
from lswap_core.io.retries import InterruptedTransferError
from lswap_core.sources.http_range import LATER, delay_of

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def open_session() -> Any:
    """The HTTP session that `huggingface_hub` uses, as the user may have configured it."""
    utils: Any = import_module("huggingface_hub.utils")
    return utils.get_session()


@contextmanager
def translated(where: str, repository: str, revision: str | None = None, *, patient: bool = False) -> Iterator[None]:
    """Translate errors of `huggingface_hub` and its session; those that another attempt may resolve become
    InterruptedTransferError.

    patient: a hub that cannot be reached is such an error.
    """
    from huggingface_hub import constants, errors

    unreachable = _transport_errors()
    try:
        yield
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repository}"
        raise SourceError(f"{where}: gated; ask for access at {page}, then {LOG_IN}") from None
    except errors.RevisionNotFoundError:
        raise SourceError(f"{where}: {repository} has no revision {revision or where.rpartition('@')[2]!r}; check it") from None
    except errors.EntryNotFoundError:
        raise no_such_file(where) from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"{where}: no such directory here, and no such model on {constants.ENDPOINT}, or a private one; "
            f"check the name, or {LOG_IN}"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise SourceError(f"{where}: HF_HUB_OFFLINE is set, and this is not in the local cache; unset it") from None
    except errors.HFValidationError as error:
        raise SourceError(f"{where}: {str(error).splitlines()[0]}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in LATER:
            raise delay_of(status, error.response.headers) from None
        raise SourceError(f"{where}: {_by_status(status)}") from None
    except InterruptedTransferError:
        raise
    except unreachable as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        what = what if len(what) < 200 else f"{type(error).__name__}: ...{what[-160:]}"  # the reason is at the end
        if patient:
            raise InterruptedTransferError(f"cannot reach {constants.ENDPOINT} ({what})") from None
        raise SourceError(
            f"{where}: cannot reach {constants.ENDPOINT} ({what}); check the network, proxies, HF_ENDPOINT"
        ) from None


def _by_status(status: int | None) -> str:
    if status == 401:
        return f"the hub does not accept the token (401); {LOG_IN}"
    if status == 403:
        return f"refused (403) by the hub, or by a proxy on the way; {LOG_IN} with a token that gives access, or check proxies"
    return f"unexpected answer {status} from the hub, or from a proxy on the way; check HF_ENDPOINT and proxies"


def _transport_errors() -> tuple[type[Exception], ...]:
    """The session's errors where there is no response; those of requests are OSErrors."""
    library: Any = sys.modules[type(open_session()).__module__.partition(".")[0]]
    return (OSError, library.HTTPError, library.InvalidURL) if hasattr(library, "InvalidURL") else (OSError,)
