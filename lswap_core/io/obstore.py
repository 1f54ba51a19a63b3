"""Opens object stores with obstore and translates its errors. Sources read through it; GCS and Azure outputs are written
through it.

Credentials come from each ecosystem's usual places: the environment variables of AWS, Google and Azure, and roles of the
machine. Where boto3 is installed, everything that AWS's own tools accept works too. AWS_ENDPOINT_URL names another S3.
Without credentials, requests to S3 are not signed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

from lswap_core.errors import RecipeError, SourceError, StalePlanError, no_such_file
from lswap_core.io.retries import InterruptedTransferError

WEB_SCHEMES = ("https", "http")
Purpose = Literal["look", "stream", "write"]
"""What a call is for: to list or look up files, to stream a file that was found, or to write."""
_CODE_AND_MESSAGE = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<]*)</Message>")
_REFUSALS = (
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "RequestTimeTooSkewed",
    "AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch", "InsufficientAccountPermissions",
)  # fmt: skip
"""Codes of S3, Google and Azure for a request that credentials do not allow."""
_METADATA_SERVER = "169.254.169.254"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the other AZURE_* variables",
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT",),
}
"""Environment variables that name another server. The first that is set counts."""


def open_store(url: str, *, retries: int = 5, silence_seconds: float | None = None) -> Any:
    """Open the store at `scheme://bucket/prefix` or `https://host/path`.

    retries: attempts after the first, within two minutes. silence_seconds: how long the server may be silent in the middle of a
    response; None for any time. A whole transfer may take a day. Raises RecipeError where obstore is not installed, SourceError
    for a bad setup.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    try:
        from obstore import store
    except ImportError as error:
        raise RecipeError(f"{url}: {error.name} is not installed; `pip install lswap-core[stores]` brings it") from None
    client: Any = {"timeout": timedelta(days=1), "connect_timeout": timedelta(seconds=10), "allow_http": _is_plain(scheme)}
    if silence_seconds is not None:
        client["read_timeout"] = timedelta(seconds=silence_seconds)
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(minutes=2)}
    how: dict[str, Any] = {"client_options": client, "retry_config": retry}
    with translated(url, scheme, "look"):
        if scheme in WEB_SCHEMES:
            return store.HTTPStore(url, **how)
        if scheme == "gs":
            return store.GCSStore(bucket, prefix=prefix or None, **how)
        if scheme == "az":
            return store.AzureStore(bucket, prefix=prefix or None, **how)
        return store.S3Store(bucket, prefix=prefix or None, **how, **_aws_credentials())


def _is_plain(scheme: str) -> bool:
    """Whether the server is addressed by HTTP without TLS."""
    named = (os.environ.get(name) for name in _ENDPOINTS.get(scheme, ()))
    return scheme == "http" or next(filter(None, named), "").startswith("http://")


def _aws_credentials() -> dict[str, Any]:
    """The credentials for S3. obstore itself reads the environment and roles; boto3 also reads profiles and logins."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    try:
        from boto3.session import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = Session()
    if session.get_credentials() is None:
        return {"skip_signature": True}
    return {"credential_provider": Boto3CredentialProvider(session)}


@contextmanager
def translated(where: str, scheme: str, purpose: Purpose) -> Iterator[None]:
    """Translate obstore's errors into this package's, in one line.

    FileNotFoundError for a missing file that is looked up, StalePlanError for a changed one, InterruptedTransferError for an
    unknown error in the middle of a stream, and SourceError for anything else.
    """
    from obstore import exceptions

    try:
        yield
    except exceptions.PreconditionError:
        raise StalePlanError(f"{where}: changed while it was read (another ETag); plan again") from None
    except exceptions.NotSupportedError:
        raise SourceError(f"{where}: the server does not serve ranges; download it first and give the directory") from None
    except (exceptions.BaseError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and purpose == "look":
            raise no_such_file(where) from None
        if isinstance(error, FileNotFoundError) and purpose == "stream":
            raise SourceError(f"{where}: the server does not have it any more (404); was it removed?") from None
        message, code = _message_of(error)
        refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        if refused or code in _REFUSALS:  # a stream that is written raises one kind of error, whatever the answer was
            raise SourceError(f"{where}: {_refusal(code, scheme)}") from None
        if _METADATA_SERVER in message:  # the last place to look for credentials
            raise SourceError(f"{where}: no credentials were found; set {_CREDENTIALS[scheme]}") from None
        if purpose == "stream":
            raise InterruptedTransferError(f"{message:.200}") from None
        what = "check the address, the network and proxies" + (", and AWS_ENDPOINT_URL" if scheme == "s3" else "")
        raise SourceError(f"{where}: {message:.200}; {what}") from None


def _message_of(error: Exception) -> tuple[str, str | None]:
    """The error's text in one line, and the store's own code for it. S3, Google and Azure all answer in S3's XML form."""
    text = " ".join(str(error).replace("\\n", " ").split())
    match = _CODE_AND_MESSAGE.search(text)
    return (text, None) if match is None else (f"{match[1]}: {match[2]}", match[1])


def _refusal(code: str | None, scheme: str) -> str:
    if code == "RequestTimeTooSkewed":
        return "the store refuses it since this machine's clock is wrong; set it, as by `timedatectl set-ntp true`"
    if scheme in WEB_SCHEMES:
        return "the server refuses it; use an address that needs no login, or download it first"
    told = "" if code is None else f" ({code})"
    return f"the store refuses it{told}; check your access to it, and {_CREDENTIALS[scheme]}"
