"""A place in an S3-compatible store, `s3://bucket/prefix`: the calls that writing a model takes, with errors of our own.

Credentials, region and endpoint are found as every program that uses boto3 finds them: the environment, ~/.aws, roles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lswap_core.errors import RecipeError, SourceError, StalePlanError

SCHEME = "s3://"

PLAN_KEY = "lswap-plan"
"""Metadata of an object that a run has made: the digest of its plan."""

_READ_SECONDS = 300
"""A store that copies a large part may be silent for minutes."""

_CONNECT_SECONDS = 10

_UNKNOWN_CALL = frozenset({"NotImplemented", "MethodNotAllowed", "501", "405", "XNotImplemented"})

_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"})

_REFUSED = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "401", "Unauthorized"})

_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "503", "500", "429", "TooManyRequests"})

_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"})


class UnknownCallError(SourceError):
    """The store does not know this call."""


class GoneError(SourceError):
    """There is no such object or upload."""


class LostUploadError(GoneError):
    """There is no such upload, or no longer."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: its size, and its ETag, which tells one content from another."""

    size: int
    etag: str
    plan: str | None


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of `scheme://bucket/key`; the key without slashes at its ends."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key.strip("/")


def connect(connections: int) -> Any:
    """An S3 client, safe to use from several threads. RecipeError where boto3 is missing, SourceError for a bad setup."""
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
        # Other stores refuse the newer checksums; over HTTPS and by the signature over HTTP bodies are protected anyway.
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
        """Every object."""
        found: set[str] = set()
        with told(self.url()):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key("")):
                found |= {entry["Key"][len(self._key("")) :] for entry in page.get("Contents", ())}
        return found

    def uploads(self) -> list[tuple[str, str]]:
        """Unfinished uploads: name and id. UnknownCallError where the store cannot say."""
        found: list[tuple[str, str]] = []
        with told(self.url()):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self._key("")):
                found += [(entry["Key"], entry["UploadId"]) for entry in page.get("Uploads", ())]
        return [(key[len(self._key("")) :], upload) for key, upload in found if key.startswith(self._key(""))]

    def begin(self, name: str, plan: str) -> str:
        """Begin an upload; returns its id."""
        with told(self.url(name)):
            answer = self._client.create_multipart_upload(**self._at(name), Metadata={PLAN_KEY: plan})
        return str(answer["UploadId"])

    def parts(self, name: str, upload: str) -> dict[int, tuple[int, str]]:
        """Size and ETag of the parts that an upload has. GoneError, UnknownCallError."""
        found: dict[int, tuple[int, str]] = {}
        with told(self.url(name)):
            for page in self._client.get_paginator("list_parts").paginate(**self._at(name), UploadId=upload):
                found |= {int(part["PartNumber"]): (int(part["Size"]), _bare(part["ETag"])) for part in page.get("Parts", ())}
        return found

    def send(self, name: str, upload: str, number: int, data: bytes | bytearray | memoryview) -> str:
        """Send one part; returns its ETag."""
        with told(self.url(name)):
            answer = self._client.upload_part(**self._at(name), UploadId=upload, PartNumber=number, Body=_body(data))
        return _bare(answer["ETag"])

    def splice(self, name: str, upload: str, number: int, source: str, etag: str, begin: int, end: int) -> str:
        """Have the store copy bytes [begin, end) of the object at `source`, a URL, as one part; returns its ETag.
        StalePlanError where the object is not that with `etag` any more. UnknownCallError.
        """
        bucket, key = split_url(source)
        with told(source):
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
        """Put an object together. GoneError where there is no such upload, or no longer."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        with told(self.url(name)):
            self._client.complete_multipart_upload(**self._at(name), UploadId=upload, MultipartUpload={"Parts": parts})

    def abort(self, name: str, upload: str) -> None:
        """Give an upload up, with its parts; nothing where that was done."""
        try:
            with told(self.url(name)):
                self._client.abort_multipart_upload(**self._at(name), UploadId=upload)
        except GoneError:
            pass

    def put(self, name: str, data: bytes, plan: str) -> None:
        """Write a small object."""
        with told(self.url(name)):
            self._client.put_object(**self._at(name), Body=data, Metadata={PLAN_KEY: plan})

    def claim(self, name: str, data: bytes, plan: str) -> bool:
        """Write a small object that must not be there yet; False where it is. Stores that cannot tell are believed."""
        try:
            with told(self.url(name)):
                self._client.put_object(**self._at(name), Body=data, Metadata={PLAN_KEY: plan}, IfNoneMatch="*")
        except StalePlanError:
            return False
        except UnknownCallError:
            self.put(name, data, plan)
        return True

    def get(self, name: str) -> bytes:
        """All of a small object. GoneError."""
        with told(self.url(name)):
            return bytes(self._client.get_object(**self._at(name))["Body"].read())

    def delete(self, name: str) -> None:
        """Remove an object."""
        with told(self.url(name)):
            self._client.delete_object(**self._at(name))

    def look(self, name: str) -> Stored:
        """What is known of an object. GoneError."""
        return look(self._client, self.url(name))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(name)}


def look(client: Any, url: str) -> Stored:
    """What is known of the object at `url`. GoneError."""
    bucket, key = split_url(url)
    with told(url):
        found = client.head_object(Bucket=bucket, Key=key)
    return Stored(int(found["ContentLength"]), str(found["ETag"]), found.get("Metadata", {}).get(PLAN_KEY))


def read_head(client: Any, url: str, etag: str, size: int) -> bytes:
    """The first `size` bytes of the object at `url`. StalePlanError where it is not that with `etag`."""
    bucket, key = split_url(url)
    with told(url):
        found = client.get_object(Bucket=bucket, Key=key, IfMatch=etag, Range=f"bytes=0-{size - 1}")
        return bytes(found["Body"].read())


@contextmanager
def told(where: str) -> Iterator[None]:
    """Say in one line what a call to the store failed of: SourceError, StalePlanError, GoneError or UnknownCallError."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except exceptions.ClientError as error:
        _tell(where, error.response.get("Error", {}), error.response.get("ResponseMetadata", {}))
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError) as error:
        raise SourceError(f"{where}: no credentials for the store ({error}); set AWS_ACCESS_KEY_ID or log in") from None
    except exceptions.ProxyConnectionError as error:
        raise SourceError(f"{where}: the proxy refuses ({error}); see HTTPS_PROXY and NO_PROXY") from None
    except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
        raise SourceError(f"{where}: the store cannot be reached ({error}); see AWS_ENDPOINT_URL and the network") from None
    except (exceptions.BotoCoreError, HTTPError) as error:
        raise SourceError(f"{where}: {error}") from None


def _tell(where: str, error: dict[str, Any], answer: dict[str, Any]) -> None:
    code, message = str(error.get("Code", "")), str(error.get("Message", "")).rstrip(".")
    status = str(answer.get("HTTPStatusCode", ""))
    if code == "NoSuchUpload":
        raise LostUploadError(f"{where}: the store has no such upload, or no longer; another process may have ended it") from None
    if code in {"NoSuchKey", "404", "NotFound"}:
        raise GoneError(f"{where}: is not there, or no longer; another process may have removed it") from None
    if code in _UNKNOWN_CALL or status in {"501", "405"}:
        raise UnknownCallError(f"{where}: the store does not know a call that this needs: {message or code}") from None
    if code in {"PreconditionFailed", "ConditionalRequestConflict", "412"}:
        raise StalePlanError(f"{where}: changed after it was planned; plan again") from None
    if code == "NoSuchBucket":
        raise SourceError(f"{where}: there is no bucket {split_url(where)[0]!r}; make it, or name another") from None
    if code == "RequestTimeTooSkewed":
        raise SourceError(f"{where}: this machine's clock is too far from the store's; set it right") from None
    if code == "InvalidPart" and "same length" in message:  # as Cloudflare R2 does
        raise SourceError(f"{where}: the store wants parts of one size; use --copy-method read_write --restart") from None
    if code in _REFUSED:
        raise SourceError(f"{where}: the store does not take these credentials ({code}); renew them") from None
    if code in _DENIED or status == "403":
        raise SourceError(f"{where}: these credentials may not do this ({code}); ask for leave to read, write and list") from None
    if code in _ELSEWHERE:
        raise SourceError(f"{where}: the bucket is in another region ({message}); set AWS_REGION or AWS_ENDPOINT_URL") from None
    if code in _BUSY:
        raise SourceError(f"{where}: the store is too busy ({code}); the same command goes on later") from None
    raise SourceError(f"{where}: the store refuses: {code}: {message}") from None


def _bare(etag: object) -> str:
    """An ETag without the quotation marks that some answers have and others have not."""
    return str(etag).strip('"')


def _body(data: bytes | bytearray | memoryview) -> bytes | bytearray:
    return data if isinstance(data, bytes | bytearray) else bytes(data)


CONNECTIONS = 32
"""To the store, at a time."""
