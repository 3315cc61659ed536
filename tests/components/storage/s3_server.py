"""moto's S3 on loopback, made less reliable. moto enforces If-None-Match; that nothing comes between is faulty.py's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from wsgiref.handlers import SimpleHandler

from moto.moto_server.werkzeug_app import create_backend_app
from moto.s3 import models

from tests.components.storage.faulty import Faults, FaultyHandler, serving

BUCKET = "bucket"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@cache
def _moto() -> Any:
    return create_backend_app("s3")


class _Wsgi(SimpleHandler):
    http_version = "1.1"


class Handler(FaultyHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, faults: Faults, app: Any, conditions: bool, *args: Any) -> None:
        self.app, self.conditions = app, conditions
        super().__init__(faults, *args)

    def handle_storage(self) -> None:
        if not self.conditions:
            del self.headers["If-None-Match"]
        _Wsgi(self.rfile, self.wfile, sys.stderr, self._environment(), multithread=True).run(self.app)

    def _environment(self) -> dict[str, Any]:
        parts = urlsplit(self.path)
        headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in self.headers.items()}
        host, port = self.server.server_address[:2]
        return {
            **headers,
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(parts.path, "latin-1"),
            "QUERY_STRING": parts.query,
            "RAW_URI": self.path,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": self.headers.get("Content-Length", "0"),
            "SERVER_NAME": str(host),
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
        }

    def send_error_answer(self, code: int, reason: str) -> None:
        names = {503: "SlowDown", 429: "TooManyRequests"}
        data = f"<Error><Code>{names.get(code, reason)}</Code><Message>{reason}</Message></Error>".encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def s3_server(faults: Faults | None = None, conditions: bool = True) -> Iterator[str]:
    """The address of a running server with an empty bucket, for AWS_ENDPOINT_URL_S3 (beside ENVIRONMENT).

    conditions: False makes it a store that does not know If-None-Match.
    """
    app = _moto()
    backend = models.s3_backends["123456789012"]["aws"]
    models.S3_UPLOAD_PART_MIN_SIZE = 1  # S3's is 5 MiB: tests use parts of fewer bytes
    backend.reset()
    backend.create_bucket(BUCKET, "us-east-1")
    try:
        with serving(partial(Handler, faults or Faults(), app, conditions)) as address:
            yield address
    finally:
        backend.reset()


class Secret:
    """A folder as the kubelet mounts a Secret: there and empty while there is none, and replaced in one step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.versions = folder, 0
        folder.mkdir()

    def mount(self, values: dict[str, str]) -> None:
        self.versions += 1
        version = self.folder / f"..{self.versions}"
        version.mkdir()
        for name, value in values.items():
            (version / name).write_text(value)
        (self.folder / "..new").symlink_to(version.name)
        (self.folder / "..new").rename(self.folder / "..data")
        for name in values:
            with suppress(FileExistsError):
                (self.folder / name).symlink_to(f"..data/{name}")


@contextmanager
def s3_environment(address: str) -> Iterator[None]:
    """os.environ for the clients of this process and its children."""
    before = dict(os.environ)
    os.environ.update({**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": address})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
