"""Objects behind http(s)://, read-only: files of a public mirror, read by ranges, with bounded retries."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import BinaryIO, Protocol, TypeVar, cast

import requests
from urllib3.exceptions import HTTPError

from components.base.errors import PermanentError, TemporaryError
from components.storage import ranged_reader
from components.storage.http import mistake_of, open_session, reason_of
from components.storage.opening import open_storage
from components.storage.retry import PASSING_STATUS, TIMEOUT, attempted, short

T = TypeVar("T")
CONNECTIONS = 16  # kept open per process: some readers with their requests ahead
LONGEST_WAIT = 60  # seconds of a Retry-After that are waited; attempts end after retry.DEADLINE anyway
CHUNK = 1 << 20
NEVER = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,  # of a redirect
    requests.exceptions.TooManyRedirects,
)


class Source(Protocol):
    """The reading half of a Storage."""

    uri: str

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes: ...

    def open(self, path: str) -> BinaryIO: ...


def open_source(uri: str, allow_networks: Sequence[str] = ()) -> Source:
    """Return the source at https://…, or at any address that open_storage takes.

    Args:
        allow_networks: CIDRs of private networks in which an http(s):// address may lie.
    """
    if uri.startswith(("https://", "http://")):
        return WebSource(uri, allow_networks)
    return open_storage(uri)


class WebSource:
    """Objects below one address. It raises the errors that a Storage raises."""

    def __init__(self, uri: str, allow_networks: Sequence[str] = ()) -> None:
        self.uri = uri.rstrip("/")
        self._session = open_session(allow_networks, CONNECTIONS)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        with self.open(path) as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def open(self, path: str) -> BinaryIO:
        """Open a reader that fetches ahead; if the server knows no ranges, fetch all into a temporary file first.

        It reads one version of the object: if ETag or size change, it raises TemporaryError.
        """

        def look() -> BinaryIO:
            with self._got(path, "bytes=0-0") as answer:
                if answer.status_code == 206:
                    seen = answer.headers.get("ETag"), _total(answer)
                    return ranged_reader.read_ahead(partial(self._fetch, path, *seen), seen[1])
                if answer.status_code == 416:  # it is empty
                    return cast(BinaryIO, tempfile.TemporaryFile())
                return _kept(answer)

        return self._tried(path, look)

    def _fetch(self, path: str, etag: str | None, size: int, start: int, length: int) -> bytes:
        def attempt() -> bytes:
            with self._got(path, f"bytes={start}-{start + length - 1}") as answer:
                if answer.status_code != 206 or (answer.headers.get("ETag"), _total(answer)) != (etag, size):
                    raise TemporaryError(f"cannot read {self.uri}/{path}: it was replaced while it was read; run again")
                data: bytes = answer.raw.read(length + 1, decode_content=False)
            if len(data) != length:
                raise ConnectionError(f"got {len(data)} of {length} bytes")
            return data

        return self._tried(path, attempt)

    @contextmanager
    def _got(self, path: str, some: str) -> Iterator[requests.Response]:
        """Yield an answer whose body is still to be read."""
        with self._get(path, some) as answer:
            if answer.status_code >= 400 and answer.status_code != 416:
                time.sleep(_asked_to_wait(answer))
                answer.raise_for_status()
            yield answer

    def _get(self, path: str, some: str) -> requests.Response:
        try:
            return self._session.get(f"{self.uri}/{path}", headers={"Range": some}, stream=True, timeout=TIMEOUT)
        except requests.ConnectionError as error:
            if mistake := mistake_of(error):
                raise PermanentError(f"cannot read {self.uri}/{path}: {mistake}") from None
            raise ConnectionError(reason_of(error)) from error

    def _tried(self, path: str, attempt: Callable[[], T]) -> T:
        name = f"{self.uri}/{path}"
        try:
            return attempted(attempt, f"read {name}", _passing)
        except (OSError, HTTPError) as error:
            answer = getattr(error, "response", None)
            if answer is None:
                raise PermanentError(f"cannot read {name}: {short(error)}") from error
            hint = " (no such file, or no permission)" if answer.status_code in (401, 403, 404, 410) else ""
            raise PermanentError(f"cannot read {name}: {answer.status_code} {answer.reason}{hint}") from error


def _kept(answer: requests.Response) -> BinaryIO:
    """Return the whole body in a temporary file, which is deleted when it is closed."""
    with ExitStack() as unless_whole:
        file = unless_whole.enter_context(tempfile.TemporaryFile())
        size = 0
        while data := answer.raw.read(CHUNK, decode_content=False):
            file.write(data)
            size += len(data)
        if size != int(answer.headers.get("Content-Length", size)):
            raise ConnectionError(f"got {size} of {answer.headers['Content-Length']} bytes")
        file.seek(0)
        unless_whole.pop_all()
    return cast(BinaryIO, file)


def _total(answer: requests.Response) -> int:
    """Return the object's size, as in `Content-Range: bytes 0-0/1234`."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if not total.isdecimal():
        raise ConnectionError("the answer to a range has no size")
    return int(total)


def _asked_to_wait(answer: requests.Response) -> int:
    """Return the seconds of a Retry-After (503 SlowDown, 429); 0 for a date, which is rare."""
    asked = answer.headers.get("Retry-After", "")
    return min(int(asked), LONGEST_WAIT) if asked.isdecimal() and _passing_status(answer.status_code) else 0


def _passing_status(status: int) -> bool:
    return status in PASSING_STATUS or status >= 500


def _passing(error: BaseException) -> bool:
    answer = getattr(error, "response", None)
    if answer is not None:
        return _passing_status(answer.status_code)
    if isinstance(error, NEVER):
        return False
    return isinstance(error, OSError | HTTPError)  # requests' errors are OSErrors
