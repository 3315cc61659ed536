"""gcp-storage-emulator on loopback, made stricter and less reliable: it enforces preconditions and injects faults."""

from __future__ import annotations

import io
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"
FAULTS = ("unavailable", "busy", "reset", "lost answer", "cut short", "slow")


class PreconditionFailed(Exception):
    """The object exists and the request wanted it absent."""


class StrictStorage(Storage):  # type: ignore[misc]
    """Refuses to create over an existing object where the request in this thread asked for that."""

    asked = threading.local()

    def create_file(self, bucket_name: str, file_name: str, *args: Any, **kwargs: Any) -> Any:
        if getattr(self.asked, "absent", False) and self.has(bucket_name, file_name):
            raise PreconditionFailed
        return super().create_file(bucket_name, file_name, *args, **kwargs)

    def has(self, bucket: str, name: str) -> bool:
        try:
            self.get_file_obj(bucket, name)
        except NotFound:
            return False
        return True


class Faults:
    """Which requests go wrong, by a seeded draw; counts what it did."""

    def __init__(self, share: float = 0.0, seed: int = 0) -> None:
        self.share, self.random, self.lock = share, random.Random(seed), threading.Lock()
        self.done: Counter[str] = Counter()

    def draw(self) -> str | None:
        with self.lock:
            if self.random.random() >= self.share:
                return None
            fault = self.random.choice(FAULTS)
            self.done[fault] += 1
            return fault


class Handler(RequestHandler):  # type: ignore[misc]
    """One request at a time reaches the storage, so checking and creating are one step."""

    protocol_version = "HTTP/1.0"
    lock = threading.Lock()

    def __init__(self, faults: Faults, storage: StrictStorage, *args: Any) -> None:
        self.faults = faults
        super().__init__(storage, *args)

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def do_POST(self) -> None:
        self._answer(super().do_POST)

    def do_PUT(self) -> None:
        self._answer(super().do_PUT)

    def do_DELETE(self) -> None:
        self._answer(super().do_DELETE)

    def _answer(self, handle: Any) -> None:
        fault = self.faults.draw()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault in ("unavailable", "busy"):
            self._error(503 if fault == "unavailable" else 429, fault)
            return
        if fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "slow":
            time.sleep(0.2)
        out, self.wfile, self.rfile = self.wfile, io.BytesIO(), io.BytesIO(body)
        query = parse_qs(urlsplit(self.path).query)
        with self.lock:
            self.storage.asked.absent = query.get("ifGenerationMatch") == ["0"]
            try:
                handle()
            except PreconditionFailed:
                self.wfile = io.BytesIO()
                self._headers_buffer: list[bytes] = []
                self._error(412, "conditionNotMet")
        answer = self.wfile.getvalue()
        self.wfile = out
        if fault == "lost answer":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        out.write(answer[: len(answer) * 2 // 3] if fault == "cut short" else answer)

    def _error(self, code: int, reason: str) -> None:
        data = json.dumps({"error": {"code": code, "message": reason}}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def gcs_server(faults: Faults | None = None) -> Iterator[str]:
    """The address of a running server with an empty bucket, for STORAGE_EMULATOR_HOST."""
    storage = StrictStorage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, faults or Faults(), storage))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that we cut off is no news
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
