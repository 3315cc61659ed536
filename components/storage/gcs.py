"""Storage in a Google Cloud Storage bucket: preconditions for the commit protocol, bounded retries for the rest."""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import quote
from xml.etree import ElementTree

import google.auth.exceptions
import google_crc32c
import requests
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs
from google.cloud.exceptions import GoogleCloudError
from google.cloud.storage.exceptions import DataCorruption
from requests.adapters import HTTPAdapter

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.storage import multipart, ranged_reader
from components.storage.interface import Entry, replaced
from components.storage.retry import PASSING_STATUS, TIMEOUT, attempted, short

T = TypeVar("T")
_Page = tuple[tuple[Entry, ...], str | None]
CHUNK = 16 << 20  # bytes of one piece of an upload in one stream; a multiple of 256 kB, as resumables want
CONNECTIONS = 64  # kept open per process: some readers with their requests ahead
BINARY = "application/octet-stream"
WRITER = "recaption-writer"  # metadata of an object: which call wrote it
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


class GcsStorage:
    """Objects of one bucket below a prefix. Credentials are the environment's (Workload Identity in a cluster)."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket_name, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")
        self._made: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the client out: its connections stay in their process."""
        return {**self.__dict__, "_made": None}

    @property
    def bucket(self) -> Any:
        """Return the client's bucket in this process; a forked process makes a client of its own."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), self._client().bucket(self.bucket_name)
        return self._made[1]

    def _client(self) -> Any:
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            client = gcs.Client(project="emulator", credentials=AnonymousCredentials())
        else:
            try:
                client = gcs.Client()
            except google.auth.exceptions.DefaultCredentialsError as error:
                raise PermanentError(
                    f"{self.uri}: no Google Cloud credentials; use Workload Identity, or "
                    "`gcloud auth application-default login`"
                ) from error
        session = _session(client)
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
        session.hooks["response"].append(_whole)
        return client

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

    def open(self, path: str, version: str = "") -> BinaryIO:
        """Open the generation that is there now; reading it after it was replaced is an error, never a mixture."""
        blob = self._found(path, "read")
        if blob is None:
            raise PermanentError(f"cannot read {self._name(path)}: no such object")
        if version and version != str(blob.generation):
            raise replaced(self._name(path), version, str(blob.generation))
        fetch = partial(self._fetch, path, int(blob.generation))
        return ranged_reader.read_ahead(fetch, int(blob.size))

    def _fetch(self, path: str, generation: int, start: int, length: int) -> bytes:
        blob = self.bucket.blob(self.prefix + path, generation=generation)

        def download() -> bytes:
            try:
                return cast(
                    bytes, blob.download_as_bytes(start=start, end=start + length - 1, timeout=TIMEOUT, retry=None)
                )
            except api.NotFound as error:
                raise TemporaryError(
                    f"cannot read {self._name(path)}: it was replaced or deleted while it was read; run again"
                ) from error

        data = self._tried("read", path, download)
        if len(data) != length:
            raise TemporaryError(f"cannot read {self._name(path)}: got {len(data)} of {length} bytes; run again")
        return data

    def write(self, path: str, data: bytes) -> None:
        self._tried("write", path, lambda: self._upload(path, data))

    def create(self, path: str, data: bytes) -> bool:
        """Create as Storage says. If an answer was lost, its request may have won: then the object names this call."""
        writer = uuid.uuid4().hex

        def attempt() -> bool:
            try:
                self._upload(path, data, writer, if_generation_match=0)
            except api.PreconditionFailed:
                return _writer_of(self._get(path)) == writer
            return True

        return self._tried("create", path, attempt)

    def upload(self, source: Path, path: str) -> None:
        size = source.stat().st_size
        if size >= multipart.LARGE:
            self._upload_parts(source, size, path)
            return

        def attempt() -> None:
            blob = self.bucket.blob(self.prefix + path, chunk_size=CHUNK)
            blob.upload_from_filename(str(source), checksum="crc32c", timeout=TIMEOUT, retry=None)

        self._tried("write", path, attempt)

    def _upload_parts(self, source: Path, size: int, path: str) -> None:
        """Send parts with a checksum each, several at once; the last request makes the object appear, whole.

        The requests are the XML API's. The client's own function for them, upload_chunks_concurrently, is as fast, but
        sends all other parts after one has failed or the process was told to stop: of 1.5 GB for another 4.6 s.
        """
        writer = uuid.uuid4().hex
        request = partial(self._request, path)
        headers = {"Content-Type": BINARY, f"x-goog-meta-{WRITER}": writer}
        begun = self._tried("write", path, lambda: request("POST", {"uploads": ""}, headers=headers))
        upload = {"uploadId": ElementTree.fromstring(begun.content).findtext("{*}UploadId", "")}

        def send(number: int, start: int, length: int) -> str:
            data = multipart.read_part(source, start, length)
            headers = {"x-goog-hash": f"crc32c={_base64(google_crc32c.value(data))}"}
            which = {"partNumber": f"{number}", **upload}

            def attempt() -> str:
                etag = request("PUT", which, data=data, headers=headers).headers.get("ETag")
                if not etag:
                    raise ConnectionError("the answer to a part has no ETag")
                return f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"

            return self._tried("write", path, attempt)

        def complete(parts: str) -> None:
            try:
                request("POST", upload, data=f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
            except requests.HTTPError as error:  # the answer of an attempt before this one may have been lost
                if _status(error) != 404 or _writer_of(self._get(path)) != writer:
                    raise

        works = [partial(send, number, *part) for number, part in enumerate(multipart.parts_of(size), start=1)]
        try:
            parts = "".join(multipart.in_parallel(works))
            self._tried("write", path, lambda: complete(parts))
        except RecaptionError:
            with suppress(Exception):  # a lifecycle rule clears what stays
                request("DELETE", upload)
            raise
        self._check(source, path, writer)

    def _request(self, path: str, method: str, query: Mapping[str, str], **more: Any) -> requests.Response:
        """Send one request of the XML API for an object, without retries.

        Raises:
            requests.HTTPError: the answer has an error's status.
        """
        url = f"{self.bucket.client.api_endpoint}/{self.bucket_name}/{quote(self.prefix + path)}"
        session = _session(self.bucket.client)
        answer: requests.Response = session.request(method, url, params=query, timeout=TIMEOUT, **more)
        answer.raise_for_status()
        return answer

    def _check(self, source: Path, path: str, writer: str) -> None:
        """Check that the bucket has the local file's bytes, unless another call has replaced the object since."""
        blob, checksum = self._found(path, "write"), 0
        with open(source, "rb") as file:
            while chunk := file.read(1 << 20):
                checksum = google_crc32c.extend(checksum, chunk)
        expected = _base64(checksum)
        if _writer_of(blob) == writer and blob.crc32c != expected:
            raise TemporaryError(
                f"cannot write {self._name(path)}: has CRC32C {blob.crc32c}, expected {expected}: "
                f"did {source} change? run again"
            )

    def size(self, path: str) -> int | None:
        blob = self._found(path, "stat")
        return None if blob is None else int(blob.size)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """List with one request per thousand objects, each with its own retries."""
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
            fields="items(name,size,generation),nextPageToken",
            timeout=TIMEOUT,
            retry=None,
        )
        page = next(found.pages, ())
        entries = tuple(
            Entry(blob.name.removeprefix(self.prefix), int(blob.size), str(blob.generation)) for blob in page
        )
        return entries, found.next_page_token

    def _upload(self, path: str, data: bytes, writer: str | None = None, **conditions: int) -> None:
        blob = self._blob(path)
        if writer:
            blob.metadata = {WRITER: writer}
        blob.upload_from_string(data, BINARY, checksum="crc32c", timeout=TIMEOUT, retry=None, **conditions)

    def _found(self, path: str, verb: str) -> Any:
        """Return the object with its metadata; None if there is no such object."""
        return self._tried(verb, path, lambda: self._get(path))

    def _get(self, path: str) -> Any:
        return self.bucket.get_blob(self.prefix + path, timeout=TIMEOUT, retry=None)

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
        try:
            return attempted(attempt, f"{verb} {name}", _passing)
        except api.NotFound as error:
            raise PermanentError(f"cannot {verb} {name}: no such object or bucket") from error
        except google.auth.exceptions.GoogleAuthError as error:
            raise PermanentError(
                f"cannot {verb} {name}: got no token from Google Cloud ({short(error)}); "
                "is this pod's service account bound by Workload Identity?"
            ) from error
        except (GoogleCloudError, api.GoogleAPIError, requests.HTTPError) as error:
            if _status(error) in (401, 403):
                message = f"cannot {verb} {name}: no permission: give this identity storage.objectUser on the bucket"
                raise PermanentError(message) from error
            if _status(error) == 404:
                raise PermanentError(f"cannot {verb} {name}: no such object or bucket") from error
            raise PermanentError(f"cannot {verb} {name}: {short(error)}") from error


def _whole(answer: requests.Response, *_: Any, **__: Any) -> None:
    """Refuse an answer that was cut off in its headers: urllib3 only warns, and takes what came for all there is."""
    headers = answer.headers
    told = headers.get("Content-Length", "").isdigit() or headers.get("Transfer-Encoding", "").lower() == "chunked"
    if answer.status_code in (200, 206) and not told:
        answer.close()
        raise requests.ConnectionError("the answer was cut off in its headers")


def _session(client: Any) -> requests.Session:
    """Return the session through which a client sends its requests.

    It is the one private name that is used of the client: nothing public sets how many connections it keeps (10, where
    three readers ask for 12 ranges at once), lets us refuse broken answers, or sends other requests with its tokens.
    """
    return cast(requests.Session, client._http)


def _base64(checksum: int) -> str:
    """Return a CRC32C as Google writes it."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _writer_of(blob: Any) -> str | None:
    return None if blob is None else (blob.metadata or {}).get(WRITER)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error; None if it has none."""
    code = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return int(code) if isinstance(code, int) else None


def _passing(error: BaseException) -> bool:
    status = _status(error) or 0
    if isinstance(error, requests.HTTPError):
        return status in PASSING_STATUS or status >= 500
    if isinstance(error, google.auth.exceptions.RefreshError):  # the metadata server of a pod that just started
        return bool(error.retryable) or isinstance(error.__cause__, google.auth.exceptions.TransportError)
    return isinstance(error, PASSING) or (isinstance(error, api.GoogleAPICallError) and status in PASSING_STATUS)
