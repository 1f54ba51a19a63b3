"""A place in an S3-compatible store, `s3://bucket/prefix`: the calls that writing a model needs, with this package's errors.

Credentials, region and endpoint come from the same places as for every program with boto3: the environment, ~/.aws, roles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from lswap_core.errors import LswapError, RecipeError, SourceError, StalePlanError
from lswap_core.io.ports import Silence
from lswap_core.io.threads import run_all

SCHEME = "s3://"
CONNECTIONS = 32
"""Most connections to the store at a time."""
PLAN_KEY = "lswap-plan"
"""Metadata key of an object that a run has written; the value is the digest of its plan."""
_READ_SECONDS = 300
"""Read timeout: a store that copies a large part may be silent for minutes."""
_CONNECT_SECONDS = 10
_CALLS_AT_A_TIME = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


class UnknownCallError(SourceError):
    """The store does not know this call."""


class GoneError(SourceError):
    """The object or upload does not exist."""


class LostUploadError(GoneError):
    """The upload does not exist, or no longer."""


_REFUSALS: tuple[tuple[str, type[LswapError], str], ...] = (
    ("NoSuchBucket", SourceError, "there is no bucket {bucket!r}; make it, or name another"),
    ("NoSuchUpload", LostUploadError, "the store has no such upload, or no longer; another process may have ended it"),
    ("NoSuchKey NotFound 404", GoneError, "is not there, or no longer; another process may have removed it"),
    (
        "NotImplemented XNotImplemented 501 MethodNotAllowed 405",
        UnknownCallError,
        "the store does not know a call that this needs: {message}",
    ),
    ("PreconditionFailed ConditionalRequestConflict 412", StalePlanError, "changed after it was planned; plan again"),
    ("RequestTimeTooSkewed", SourceError, "this machine's clock is too far from the store's; set it right"),
    (
        "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken ExpiredToken Unauthorized 401",
        SourceError,
        "the store does not take these credentials ({code}); renew them",
    ),
    (
        "AccessDenied AllAccessDisabled AccountProblem Forbidden 403",
        SourceError,
        "these credentials may not do this ({code}); ask for leave to read, write and list",
    ),
    (
        "PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301",
        SourceError,
        "the bucket is in another region ({message}); set AWS_REGION or AWS_ENDPOINT_URL",
    ),
    (
        "SlowDown ServiceUnavailable InternalError RequestTimeout TooManyRequests 503 500 429",
        SourceError,
        "the store is too busy ({code}); the same command goes on later",
    ),
)
"""Codes and HTTP statuses of a store's refusals, and the errors to raise for them. The first row that matches counts."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: its size, and its ETag, which identifies its content."""

    size: int
    etag: str
    plan: str | None


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of `scheme://bucket/key`; the key without slashes at its ends."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key.strip("/")


def at_once(call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the results of several calls to a store, in the order of `items`. The calls run concurrently."""
    return run_all(lambda item, _: call(item), items, total_bytes=0, progress=Silence(), workers=_CALLS_AT_A_TIME)


def connect(connections: int) -> Any:
    """Return an S3 client, safe to use from several threads. Raises RecipeError where boto3 is missing, SourceError for a bad
    setup.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise RecipeError(
            f"s3:// needs {error.name}, which is not installed; `pip install lswap-core[stores]` brings it"
        ) from None
    named = next((os.environ[n] for n in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if os.environ.get(n)), None)
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=max(connections, 10),
        # Other stores refuse the newer checksums. HTTPS protects bodies anyway, and over HTTP the signature does.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if named else None,
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=named, config=config)
    except (BotoCoreError, ValueError) as error:
        raise SourceError(f"s3://: cannot be set up: {error}; see the AWS configuration") from None


class BucketPrefix:
    """Everything below one prefix of a bucket. Names are relative to the prefix. Errors name the object."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.bucket, self.prefix = split_url(url)

    def url(self, name: str = "") -> str:
        """The full address of `name`."""
        return f"{SCHEME}{self.bucket}/{self._key(name)}"

    def names(self) -> set[str]:
        """Names of all objects."""
        return {entry["Key"][len(self._key("")) :] for entry in self._below("list_objects_v2", "Contents")}

    def uploads(self) -> list[tuple[str, str]]:
        """Name and id of all unfinished uploads. Raises UnknownCallError where the store cannot list them."""
        start = self._key("")
        uploads = [(entry["Key"], entry["UploadId"]) for entry in self._below("list_multipart_uploads", "Uploads")]
        return [(key[len(start) :], upload) for key, upload in uploads if key.startswith(start)]

    def begin(self, name: str, plan: str) -> str:
        """Begin an upload. Returns its id."""
        return str(self._call("create_multipart_upload", name, Metadata={PLAN_KEY: plan})["UploadId"])

    def parts(self, name: str, upload: str) -> dict[int, tuple[int, str]]:
        """Size and ETag of the parts of an upload, by number. Raises GoneError, UnknownCallError."""
        listed = self._listed("list_parts", "Parts", self.url(name), **self._at(name), UploadId=upload)
        return {int(part["PartNumber"]): (int(part["Size"]), _bare(part["ETag"])) for part in listed}

    def send(self, name: str, upload: str, number: int, data: bytes | bytearray | memoryview) -> str:
        """Send one part. Returns its ETag."""
        return _bare(self._call("upload_part", name, UploadId=upload, PartNumber=number, Body=_body(data))["ETag"])

    def splice(self, name: str, upload: str, number: int, source: str, etag: str, begin: int, end: int) -> str:
        """Have the store copy bytes [begin, end) of the object at `source`, a URL, as one part. Returns the part's ETag.

        Raises StalePlanError where the object no longer has `etag`, and UnknownCallError.
        """
        bucket, key = split_url(source)
        with translated(source):
            answer = self._client.upload_part_copy(
                **self._at(name),
                UploadId=upload,
                PartNumber=number,
                CopySource={"Bucket": bucket, "Key": key},
                CopySourceIfMatch=etag,
                CopySourceRange=f"bytes={begin}-{end - 1}",
            )
        if "ETag" not in answer.get("CopyPartResult", {}):
            raise UnknownCallError(f"{source}: the store does not copy parts")
        return _bare(answer["CopyPartResult"]["ETag"])

    def complete(self, name: str, upload: str, etags: Sequence[str]) -> None:
        """Complete an upload. Raises GoneError where it does not exist, or no longer."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        self._call("complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": parts})

    def abort(self, name: str, upload: str) -> None:
        """Abort an upload and remove its parts. Does nothing where it does not exist."""
        with suppress(GoneError):
            self._call("abort_multipart_upload", name, UploadId=upload)

    def put(self, name: str, data: bytes, plan: str) -> None:
        """Write a small object."""
        self._call("put_object", name, Body=data, Metadata={PLAN_KEY: plan})

    def claim(self, name: str, data: bytes, plan: str) -> bool:
        """Write a small object that must not exist yet. False where it exists. Stores that cannot check always succeed."""
        try:
            self._call("put_object", name, Body=data, Metadata={PLAN_KEY: plan}, IfNoneMatch="*")
        except StalePlanError:
            return False
        except UnknownCallError:
            self.put(name, data, plan)
        return True

    def get(self, name: str) -> bytes:
        """Return the content of a small object. Raises GoneError."""
        with translated(self.url(name)):
            return bytes(self._client.get_object(**self._at(name))["Body"].read())

    def delete(self, name: str) -> None:
        """Remove an object."""
        self._call("delete_object", name)

    def find(self, name: str) -> Stored | None:
        """Size, ETag and plan of an object, None where it does not exist."""
        try:
            return look(self._client, self.url(name))
        except GoneError:
            return None

    def _call(self, call: str, name: str, **given: Any) -> Any:
        with translated(self.url(name)):
            return getattr(self._client, call)(**self._at(name), **given)

    def _below(self, call: str, member: str) -> list[Any]:
        return self._listed(call, member, self.url(), Bucket=self.bucket, Prefix=self._key(""))

    def _listed(self, call: str, member: str, where: str, **asked: Any) -> list[Any]:
        with translated(where):
            pages = self._client.get_paginator(call).paginate(**asked)
            return [entry for page in pages for entry in page.get(member, ())]

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(name)}


def look(client: Any, url: str) -> Stored:
    """Size, ETag and plan of the object at `url`. Raises GoneError."""
    bucket, key = split_url(url)
    with translated(url):
        answer = client.head_object(Bucket=bucket, Key=key)
    return Stored(int(answer["ContentLength"]), str(answer["ETag"]), answer.get("Metadata", {}).get(PLAN_KEY))


def read_head(client: Any, url: str, etag: str, size: int) -> bytes:
    """Return the first `size` bytes of the object at `url`. Raises StalePlanError where it no longer has `etag`."""
    bucket, key = split_url(url)
    with translated(url):
        answer = client.get_object(Bucket=bucket, Key=key, IfMatch=etag, Range=f"bytes=0-{size - 1}")
        return bytes(answer["Body"].read())


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise the error of a call to the store, in one line, as SourceError, StalePlanError, GoneError or UnknownCallError."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except exceptions.ClientError as error:
        raise _refusal(where, error.response.get("Error", {}), error.response.get("ResponseMetadata", {})) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError) as error:
        raise SourceError(f"{where}: no credentials for the store ({error}); set AWS_ACCESS_KEY_ID or log in") from None
    except exceptions.ProxyConnectionError as error:
        raise SourceError(f"{where}: the proxy refuses ({error}); see HTTPS_PROXY and NO_PROXY") from None
    except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
        raise SourceError(f"{where}: the store cannot be reached ({error}); see AWS_ENDPOINT_URL and the network") from None
    except (exceptions.BotoCoreError, HTTPError) as error:
        raise SourceError(f"{where}: {error}") from None


def _refusal(where: str, error: dict[str, Any], answer: dict[str, Any]) -> LswapError:
    code, message = str(error.get("Code", "")), str(error.get("Message", "")).rstrip(".")
    if code == "InvalidPart" and "same length" in message:  # as Cloudflare R2 does
        return SourceError(f"{where}: the store wants parts of one size; use --copy-method read_write --restart")
    given = {code, str(answer.get("HTTPStatusCode", ""))}
    for codes, kind, what in _REFUSALS:
        if not given.isdisjoint(codes.split()):
            return kind(f"{where}: {what.format(bucket=split_url(where)[0], code=code, message=message or code)}")
    return SourceError(f"{where}: the store refuses: {code}: {message}")


def _bare(etag: object) -> str:
    """An ETag without quotation marks, which only some answers have."""
    return str(etag).strip('"')


def _body(data: bytes | bytearray | memoryview) -> bytes | bytearray:
    return data if isinstance(data, bytes | bytearray) else bytes(data)
