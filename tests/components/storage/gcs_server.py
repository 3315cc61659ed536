"""gcp-storage-emulator on loopback, made stricter and less reliable.

It enforces preconditions and generations, lists in pages, and takes uploads in parts (the XML API's).
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.handlers.objects import _checksums, _make_object_resource
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

from tests.components.storage.faulty import Faults, FaultyHandler, serving

__all__ = ["BUCKET", "Faults", "gcs_server"]

BUCKET = "bucket"
PAGE = 1000  # objects of one listing: GCS's


class PreconditionFailed(Exception):
    """The object exists and the request wanted it absent."""


class StrictStorage(Storage):  # type: ignore[misc]
    """Refuses to create over an existing object where the request in this thread asked for that."""

    asked = threading.local()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.uploads: dict[str, tuple[dict[str, str], dict[int, bytes]]] = {}  # id → metadata, parts

    def create_file(self, bucket_name: str, file_name: str, *args: Any, **kwargs: Any) -> Any:
        if getattr(self.asked, "absent", False) and self.has(bucket_name, file_name):
            raise PreconditionFailed
        return super().create_file(bucket_name, file_name, *args, **kwargs)

    def _write_config_to_file(self) -> None:
        """Not after every write: all metadata would be written each time."""

    def _object_path(self, bucket_name: str, file_name: str) -> str:
        """Where the emulator keeps an object. As of a real bucket, any name is one, also with `..` in it."""
        return f"{bucket_name}/{quote(file_name, safe='')}"

    def has(self, bucket: str, name: str) -> bool:
        return self.generation(bucket, name) is not None

    def generation(self, bucket: str, name: str) -> str | None:
        try:
            return str(self.get_file_obj(bucket, name)["generation"])
        except NotFound:
            return None


class Handler(FaultyHandler, RequestHandler):  # type: ignore[misc]
    protocol_version = "HTTP/1.0"

    def handle_storage(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        listing = re.fullmatch(r"/storage/v1/b/([^/]+)/o", parts.path)
        one = re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o/(.+)", parts.path)
        if "uploads" in query or "uploadId" in query:
            self._parts(*(unquote(p) for p in parts.path[1:].split("/", 1)), query)
        elif self.command == "GET" and listing:
            self._list(listing[1], query)
        elif one and query.get("generation", self._generation(*one.groups())) != self._generation(*one.groups()):
            self.send_error_answer(404, "no such generation")
        else:
            self._emulate(query)

    def _emulate(self, query: dict[str, str]) -> None:
        self.storage.asked.absent = query.get("ifGenerationMatch") == "0"
        try:
            getattr(RequestHandler, f"do_{self.command}")(self)
        except PreconditionFailed:
            self.wfile = io.BytesIO()
            self._headers_buffer: list[bytes] = []
            self.send_error_answer(412, "conditionNotMet")

    def _generation(self, bucket: str, name: str) -> str | None:
        return self.storage.generation(bucket, unquote(name))

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        try:
            found, _ = self.storage.get_file_list(bucket, query.get("prefix"), None)
        except NotFound:
            self.send_error_answer(404, "no such bucket")
            return
        rest = sorted((item for item in found if item["name"] > query.get("pageToken", "")), key=lambda i: i["name"])
        page = {"kind": "storage#objects", "items": rest[:PAGE]}
        if len(rest) > PAGE:
            page["nextPageToken"] = rest[PAGE - 1]["name"]
        self._send(200, json.dumps(page).encode(), {"Content-Type": "application/json"})

    def _parts(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """https://cloud.google.com/storage/docs/xml-api/overview: initiate, part, complete, abort."""
        uploads, body = self.storage.uploads, self.rfile.read()
        if "uploads" in query:
            number = uuid.uuid4().hex
            meta = {k[12:].lower(): v for k, v in self.headers.items() if k.lower().startswith("x-goog-meta-")}
            uploads[number] = meta, {}
            self._send(
                200,
                f"<Result xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><UploadId>{number}</UploadId></Result>".encode(),
            )
        elif query["uploadId"] not in uploads:
            self._send(404, b"<Error><Code>NoSuchUpload</Code></Error>")
        elif self.command == "PUT":
            crc = base64.b64encode(google_crc32c.Checksum(body).digest()).decode()
            if self.headers.get("X-Goog-Hash", f"crc32c={crc}") != f"crc32c={crc}":
                self._send(400, b"<Error><Code>BadDigest</Code></Error>")
                return
            uploads[query["uploadId"]][1][int(query["partNumber"])] = body
            self._send(200, b"", {"ETag": f'"{crc}"', "X-Goog-Hash": f"crc32c={crc}"})
        elif self.command == "DELETE":
            del uploads[query["uploadId"]]
            self._send(204, b"")
        else:
            meta, parts = uploads.pop(query["uploadId"])
            if sorted(parts) != [int(number) for number in re.findall(rb"<PartNumber>(\d+)<", body)]:
                self._send(400, b"<Error><Code>InvalidPartOrder</Code></Error>")
                return
            data = b"".join(parts[number] for number in sorted(parts))
            made = _make_object_resource(
                "", bucket, name, "application/octet-stream", str(len(data)), {"metadata": meta}
            )
            self.storage.create_file(bucket, name, data, _checksums(data, made))
            self._send(200, b"<Result/>")

    def send_error_answer(self, code: int, reason: str) -> None:
        data = json.dumps({"error": {"code": code, "message": reason}}).encode()
        self._send(code, data, {"Content-Type": "application/json"})

    def _send(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def gcs_server(faults: Faults | None = None) -> Iterator[str]:
    """The address of a running server with an empty bucket, for STORAGE_EMULATOR_HOST."""
    storage = StrictStorage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    with serving(partial(Handler, faults or Faults(), storage)) as address:
        yield address
