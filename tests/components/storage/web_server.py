"""A mirror on loopback: serves bytes by ranges, and misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.components.storage.faulty import serving

LOOPBACK = ["127.0.0.0/8"]
"""What a reader of it must be allowed to connect to."""


@dataclass
class Mirror:
    """What it serves, by path; requests that it was sent; and answers it gives before it serves."""

    files: Mapping[str, bytes]
    faults: list[str | int] = field(default_factory=list)
    """Taken from the front, one per request: a status, `hang up`, `cut` (half the body), `slow` (503, Retry-After)."""
    ranges: bool = True
    etag: str = '"1"'
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def mirror(files: Mapping[str, bytes], **how: object) -> Iterator[Mirror]:
    served = Mirror(files, **how)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            served.requests.append((self.path, asked))
            fault = served.faults.pop(0) if served.faults else None
            data = served.files.get(self.path.lstrip("/"))
            if fault == "hang up":
                self.close_connection = True
            elif fault == "slow":
                self.answer(503, b"SlowDown", {"Retry-After": "1"})
            elif isinstance(fault, int) or data is None:
                self.answer(fault if isinstance(fault, int) else 404, b"no")
            else:
                self.serve(data, asked, cut=fault == "cut")

        def serve(self, data: bytes, asked: str | None, cut: bool) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
            if not found or not served.ranges:
                return self.answer(200, data, {"ETag": served.etag}, cut)
            start, end = int(found[1]), min(int(found[2]) + 1, len(data))
            if start >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers = {"ETag": served.etag, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
            self.answer(206, data[start:end], headers, cut)
            return None

        def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as served.url:
        yield served
        for thread in threading.enumerate():  # of a reader that was left: without the server, it would try for long
            if thread.name == "ahead":
                thread.join(60)
