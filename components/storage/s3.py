"""Storage in a bucket of S3, or of a store that speaks its protocol (s3fs's client; extra `s3`).

Endpoint, region and credentials are the environment's: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION, and the
usual chain (a service account's role in a cluster); those of a mounted Secret go before the environment's, at every
request anew. The store has to honour `If-None-Match: *`.

obstore would take 90 lines less and is as fast, but can't be used: the loading processes of a training are forked, and
a forked process waits forever for its first answer if the parent has used obstore before.
"""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.storage import multipart, ranged_reader
from components.storage.interface import Entry, replaced
from components.storage.retry import PASSING_STATUS, TIMEOUT, attempted, short
from components.storage.secret import secret

try:
    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from fsspec.asyn import sync
    from s3fs import S3FileSystem
except ImportError as missing:
    raise PermanentError(f"s3:// needs s3fs ({missing}): pip install 'recaption[s3]'") from missing

T = TypeVar("T")
CONNECTIONS = 64  # kept open per process: some readers with their requests ahead
WRITER = "recaption-writer"  # metadata of an object: which call wrote it
PASSING = (
    boto.HTTPClientError,  # and ResponseStreamingError
    boto.ConnectionError,
    boto.IncompleteReadError,
    ResponseParserError,  # a load balancer's page instead of S3's XML
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
PASSING_CODES = (  # sent with status 400 or 409
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout",
    "RequestTimeTooSkewed", "XAmzContentSHA256Mismatch",
)  # fmt: skip
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"),
)
NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)

_proven: set[tuple[str | None, str]] = set()  # (endpoint, bucket) that was seen to refuse a second creation


class S3Storage:
    """Objects of one bucket below a prefix."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._made: tuple[int, dict[str, str], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the client out: its connections stay in their process."""
        return {**self.__dict__, "_made": None}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        some = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"} if start or length else {}

        def download() -> bytes:
            try:
                return self._download(path, **some)
            except boto.ClientError as error:
                if _status(error) == 416:  # a range past the end, or all of an empty object
                    return b""
                raise

        return self._tried("read", path, download)

    def open(self, path: str, version: str = "") -> BinaryIO:
        """Open the version that is there now; reading it after it was replaced is an error, never a mixture."""
        head = self._tried("read", path, lambda: self._head(path))
        if head is None:
            raise PermanentError(f"cannot read {self._name(path)}: no such object")
        if version and version != _version(head):
            raise replaced(self._name(path), version, _version(head))
        return ranged_reader.read_ahead(partial(self._fetch, path, head["ETag"]), int(head["ContentLength"]))

    def _fetch(self, path: str, etag: str, start: int, length: int) -> bytes:
        def download() -> bytes:
            try:
                return self._download(path, Range=f"bytes={start}-{start + length - 1}", IfMatch=etag)
            except boto.ClientError as error:
                if _status(error) in (404, 412):
                    raise TemporaryError(
                        f"cannot read {self._name(path)}: it was replaced or deleted while it was read; run again"
                    ) from error
                raise

        data = self._tried("read", path, download)
        if len(data) != length:
            raise TemporaryError(f"cannot read {self._name(path)}: got {len(data)} of {length} bytes; run again")
        return data

    def write(self, path: str, data: bytes) -> None:
        self._tried("write", path, lambda: self._put(path, data))

    def create(self, path: str, data: bytes) -> bool:
        """Create as Storage says. If an answer was lost, its request may have won: then the object names this call.

        aiohttp, too, repeats some requests.
        """
        writer = uuid.uuid4().hex
        created = self._tried(
            "create", path, lambda: self._put_if_absent(path, data, writer) or self._writer(path) == writer
        )
        if created and self._place not in _proven:
            if self._tried("create", path, lambda: self._put_if_absent(path, data, writer)):
                raise PermanentError(
                    f"{self.uri}: this store ignores `If-None-Match: *`, so two workers could both commit the same "
                    "work; use one that honours it (AWS S3, MinIO, Ceph, R2 do in their current versions)"
                )
            _proven.add(self._place)
        return created

    def upload(self, source: Path, path: str) -> None:
        size = source.stat().st_size
        if size < multipart.LARGE:
            self._tried("write", path, lambda: self._put(path, source.read_bytes()))
        else:
            self._upload_parts(source, size, path)

    def _upload_parts(self, source: Path, size: int, path: str) -> None:
        """Send parts with a checksum each, several at once; the last request makes the object appear, whole."""
        writer = uuid.uuid4().hex
        start = partial(self._call, "create_multipart_upload", path, Metadata={WRITER: writer})
        number_of_upload = self._tried("write", path, start)["UploadId"]

        def send(number: int, start: int, length: int) -> dict[str, Any]:
            data = multipart.read_part(source, start, length)
            call = partial(self._call, "upload_part", path, UploadId=number_of_upload, PartNumber=number)
            answer = self._tried("write", path, lambda: call(Body=data, ContentMD5=_md5(data)))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        def complete(parts: list[dict[str, Any]]) -> None:
            what = {"UploadId": number_of_upload, "MultipartUpload": {"Parts": parts}}
            try:
                self._call("complete_multipart_upload", path, **what)
            except boto.ClientError as error:  # the answer of an attempt before this one may have been lost
                if _status(error) != 404 or self._writer(path) != writer:
                    raise

        works = [partial(send, number, *part) for number, part in enumerate(multipart.parts_of(size), start=1)]
        try:
            parts = multipart.in_parallel(works)
            self._tried("write", path, lambda: complete(parts))
        except RecaptionError:
            with suppress(Exception):  # a lifecycle rule clears what stays
                self._call("abort_multipart_upload", path, UploadId=number_of_upload)
            raise

    def size(self, path: str) -> int | None:
        head = self._tried("stat", path, lambda: self._head(path))
        return None if head is None else int(head["ContentLength"])

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """List with one request per thousand objects, each with its own retries."""
        further: dict[str, str] = {}
        while True:
            call = partial(self._call, "list_objects_v2", None, Prefix=self.prefix + prefix, **further)
            page = self._tried("list", prefix, call)
            for found in page.get("Contents", ()):
                yield Entry(found["Key"].removeprefix(self.prefix), int(found["Size"]), _version(found))
            if not page.get("IsTruncated"):
                return
            further = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, path: str) -> None:
        self._tried("delete", path, lambda: self._call("delete_object", path))

    def _put(self, path: str, data: bytes, **more: Any) -> None:
        self._call("put_object", path, Body=data, ContentMD5=_md5(data), **more)

    def _put_if_absent(self, path: str, data: bytes, writer: str) -> bool:
        """Create the object, without retries; return False if it exists."""
        try:
            self._put(path, data, IfNoneMatch="*", Metadata={WRITER: writer})
        except boto.ClientError as error:
            if _status(error) == 412:
                return False
            raise
        return True

    def _head(self, path: str) -> Any:
        """Return the object's metadata; None if there is no such object."""
        try:
            return self._call("head_object", path)
        except boto.ClientError as error:
            if _status(error) == 404:
                return None
            raise

    def _writer(self, path: str) -> str | None:
        head = self._head(path)
        return None if head is None else head["Metadata"].get(WRITER)

    def _download(self, path: str, **how: str) -> bytes:
        found: bytes = self._call("get_object", path, **how)["Body"]
        return found

    def _call(self, method: str, path: str | None, **arguments: Any) -> Any:
        """Send one request, without retries, and return its answer; a body is read whole."""
        files = self._files
        if path is not None:
            arguments["Key"] = self.prefix + path

        async def call() -> Any:
            await files.set_session()
            client = await files.get_s3(self.bucket)
            answer = await getattr(client, method)(Bucket=self.bucket, **arguments)
            if method == "get_object":
                async with answer["Body"] as body:
                    answer["Body"] = await body.read()
            return answer

        return sync(files.loop, call)

    @property
    def _files(self) -> Any:
        """Return the client of this process (a forked one makes its own), made with the settings as they are now."""
        process, settings, made = os.getpid(), _settings(), self._made
        if made is None or made[:2] != (process, settings):
            self._made = made = process, settings, _connect(settings)
        return made[2]

    @property
    def _place(self) -> tuple[str | None, str]:
        return _endpoint(_settings()), self.bucket

    def _name(self, path: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{path}"

    def _tried(self, verb: str, path: str, attempt: Callable[[], T]) -> T:
        """Call until it succeeds, fails for good, or the deadline passes.

        Raises:
            PermanentError, TemporaryError: as Storage says.
        """
        name = self._name(path)
        try:
            return attempted(attempt, f"{verb} {name}", _passing)
        except NO_CREDENTIALS as error:
            raise PermanentError(
                f"cannot {verb} {name}: no AWS credentials ({short(error)}); "
                "give this pod's service account a role, put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the "
                "Secret `recaption` of its namespace, or, on your own machine, run `aws configure`"
            ) from error
        except (boto.BotoCoreError, boto.ClientError) as error:
            hints = {
                401: "no permission",
                403: "no permission: allow this identity s3:ListBucket on the bucket and s3:GetObject, s3:PutObject "
                "and s3:DeleteObject in it",
                404: "no such object or bucket",
                501: "this store lacks what is needed (`If-None-Match: *`?)",
            }
            hint = hints.get(_status(error) or 0)
            raise PermanentError(f"cannot {verb} {name}: {hint or short(error)}") from error


def _connect(settings: Mapping[str, str]) -> Any:
    """Make a client. Checksums are Content-MD5, which every store verifies; retries are ours."""
    config: dict[str, Any] = {
        "connect_timeout": TIMEOUT[0],
        "read_timeout": TIMEOUT[1],
        "max_pool_connections": CONNECTIONS,
        "retries": {"total_max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    endpoint = _endpoint(settings)
    if endpoint:
        config["s3"] = {"addressing_style": "path"}  # a store of one's own has no name per bucket
    return S3FileSystem(
        key=settings.get("AWS_ACCESS_KEY_ID"),
        secret=settings.get("AWS_SECRET_ACCESS_KEY"),
        token=settings.get("AWS_SESSION_TOKEN"),
        endpoint_url=endpoint,
        client_kwargs={"region_name": settings.get("AWS_REGION")},
        config_kwargs=config,
        skip_instance_cache=True,
    )


def _settings() -> dict[str, str]:
    """Return those of VARIABLES that are set, by the mounted Secret or else by the environment."""
    return {name: value for name in VARIABLES if (value := secret(name))}


def _endpoint(settings: Mapping[str, str]) -> str | None:
    return settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL")


def _version(found: Mapping[str, Any]) -> str:
    return str(found["ETag"]).strip('"')


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error; None if it has none."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status else None


def _passing(error: BaseException) -> bool:
    if isinstance(error, boto.ClientError):
        status = _status(error) or 0
        code = error.response.get("Error", {}).get("Code", "")
        return status in PASSING_STATUS or (status >= 500 and status != 501) or code in PASSING_CODES
    return isinstance(error, PASSING)
