"""Storage in a Google Cloud Storage bucket: preconditions for the commit protocol, bounded retries for the rest."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import google.auth.exceptions
import requests
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs
from google.cloud.exceptions import GoogleCloudError
from google.resumable_media import DataCorruption, InvalidResponse

from components.pool.errors import PermanentError, TemporaryError
from components.pool.storage import Entry

log = logging.getLogger(__name__)

T = TypeVar("T")
_Page = tuple[tuple[Entry, ...], str | None]
CHUNK = 16 << 20  # bytes of one ranged read or of one piece of an upload; a multiple of 256 kB, as resumables want
DEADLINE = 120.0  # seconds over all attempts of one request
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
PASSING = (
    api.TooManyRequests,
    api.ServerError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    ConnectionError,
    DataCorruption,
    google.auth.exceptions.TransportError,
)
PASSING_STATUS = (408, 429)


class GcsStorage:
    """Objects of one bucket below a prefix. Credentials are the environment's (Workload Identity in a cluster)."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket_name, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        """A client's connections stay in their process."""
        return {"bucket_name": self.bucket_name, "prefix": self.prefix, "uri": self.uri}

    @cached_property
    def bucket(self) -> Any:
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            return gcs.Client(project="emulator", credentials=AnonymousCredentials()).bucket(self.bucket_name)
        try:
            return gcs.Client().bucket(self.bucket_name)
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise PermanentError(
                f"{self.uri}: no Google Cloud credentials; use Workload Identity, or "
                "`gcloud auth application-default login`"
            ) from error

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        end = None if length is None else start + length - 1
        blob = self._blob(path)

        def download() -> bytes:
            try:
                return cast(bytes, blob.download_as_bytes(start=start or None, end=end, timeout=TIMEOUT, retry=None))
            except api.RequestRangeNotSatisfiable:
                return b""  # a range past the end, or all of an empty object

        return self._tried("read", path, download)

    def open(self, path: str) -> BinaryIO:
        size = self.size(path)
        if size is None:
            raise PermanentError(f"cannot read {self._name(path)}: no such object")
        return cast(BinaryIO, io.BufferedReader(_Reader(self, path, size), CHUNK))

    def write(self, path: str, data: bytes) -> None:
        self._tried("write", path, lambda: self._upload(path, data))

    def create(self, path: str, data: bytes) -> bool:
        """As Storage.create. An attempt whose answer was lost may have won: then the object there is exactly ours."""
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                self._upload(path, data, if_generation_match=0)
            except api.PreconditionFailed:
                return attempts > 1 and self._holds(path, data)
            return True

        return self._tried("create", path, attempt)

    def upload(self, source: Path, path: str) -> None:
        def attempt() -> None:
            blob = self.bucket.blob(self.prefix + path, chunk_size=CHUNK)
            blob.upload_from_filename(str(source), checksum="crc32c", timeout=TIMEOUT, retry=None)

        self._tried("write", path, attempt)

    def size(self, path: str) -> int | None:
        def attempt() -> int | None:
            blob = self.bucket.get_blob(self.prefix + path, timeout=TIMEOUT, retry=None)
            return None if blob is None else int(blob.size)

        return self._tried("stat", path, attempt)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """One request per thousand objects, each with its own retries."""
        token: str | None = None
        while True:
            page, token = self._tried("list", prefix, lambda token=token: self._page(prefix, token))  # type: ignore[misc]
            yield from page
            if not token:
                return

    def delete(self, path: str) -> None:
        def attempt() -> None:
            try:
                self._blob(path).delete(timeout=TIMEOUT, retry=None)
            except api.NotFound:
                return

        self._tried("delete", path, attempt)

    def _page(self, prefix: str, token: str | None) -> _Page:
        found = self.bucket.client.list_blobs(
            self.bucket,
            prefix=self.prefix + prefix,
            page_token=token,
            fields="items(name,size),nextPageToken",
            timeout=TIMEOUT,
            retry=None,
        )
        page = next(found.pages, ())
        entries = tuple(Entry(blob.name.removeprefix(self.prefix), int(blob.size)) for blob in page)
        return entries, found.next_page_token

    def _upload(self, path: str, data: bytes, **conditions: int) -> None:
        self._blob(path).upload_from_string(
            data, "application/octet-stream", checksum="crc32c", timeout=TIMEOUT, retry=None, **conditions
        )

    def _holds(self, path: str, data: bytes) -> bool:
        blob = self.bucket.get_blob(self.prefix + path, timeout=TIMEOUT, retry=None)
        ours = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        return blob is not None and blob.md5_hash == ours

    def _blob(self, path: str) -> Any:
        return self.bucket.blob(self.prefix + path)

    def _name(self, path: str) -> str:
        return f"gs://{self.bucket_name}/{self.prefix}{path}"

    def _tried(self, verb: str, path: str, attempt: Callable[[], T]) -> T:
        """Call until it succeeds, fails for good, or the deadline passes.

        Raises:
            PermanentError, TemporaryError: as Storage says.
        """
        name = self._name(path)
        retry = Retry(
            predicate=_passing,
            initial=0.5,
            maximum=20.0,
            multiplier=2.0,
            timeout=DEADLINE,
            on_error=lambda error: log.warning("%s %s: %s; trying again", verb, name, _short(error)),
        )
        try:
            return cast(T, retry(attempt)())
        except api.RetryError as error:
            raise TemporaryError(
                f"cannot {verb} {name}: gave up after {DEADLINE:.0f} s: {_short(error.cause)}"
            ) from error
        except api.NotFound as error:
            raise PermanentError(f"cannot {verb} {name}: no such object or bucket") from error
        except (GoogleCloudError, api.GoogleAPIError, InvalidResponse) as error:
            if isinstance(error, (api.Forbidden, api.Unauthorized)):
                message = f"cannot {verb} {name}: no permission: give this identity storage.objectUser on the bucket"
                raise PermanentError(message) from error
            raise PermanentError(f"cannot {verb} {name}: {_short(error)}") from error


class _Reader(io.RawIOBase):
    """Seekable ranged reads; io.BufferedReader around it fetches a CHUNK at a time."""

    def __init__(self, storage: GcsStorage, path: str, size: int) -> None:
        self.storage, self.path, self.length, self.at = storage, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.length - self.at))
        data = self.storage.read(self.path, self.at, wanted) if wanted else b""
        if len(data) < wanted:
            raise TemporaryError(f"{self.storage.uri}/{self.path}: became shorter while it was read; run again")
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _passing(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, InvalidResponse):
        return status in PASSING_STATUS or (status or 0) >= 500 or status in (200, 206)
    if isinstance(error, api.GoogleAPICallError) and error.code in PASSING_STATUS:
        return True
    return isinstance(error, PASSING)


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
