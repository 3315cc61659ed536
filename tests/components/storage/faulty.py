"""A server of buckets on loopback that fails on purpose, is as far away as you like, and counts what it is asked."""

from __future__ import annotations

import io
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("unavailable", "busy", "reset", "deaf", "lost answer", "cut short", "cut in headers", "slow")


class Faults:
    """Which requests go wrong, by a seeded draw; counts what it did, and the requests at work at one time."""

    def __init__(self, share: float = 0.0, seed: int = 0, latency: float = 0.0) -> None:
        """latency: seconds that every request waits before it is looked at, until `enough` were at work at one time."""
        self.share, self.latency, self.enough = share, latency, sys.maxsize
        self.kinds: tuple[str | int, ...] = FAULTS  # a number is an HTTP status
        self.only: Callable[[BaseHTTPRequestHandler], bool] = lambda request: True
        self.most = sys.maxsize  # faults over all requests
        self.random, self.lock = random.Random(seed), threading.Condition()
        self.done: Counter[str | int] = Counter()
        self.requests = self.at_work = self.most_at_work = 0

    def draw(self, request: BaseHTTPRequestHandler) -> str | int | None:
        with self.lock:
            if not self.only(request) or self.done.total() >= self.most:
                return None
            if self.random.random() >= self.share:
                return None
            fault = self.random.choice(self.kinds)
            self.done[fault] += 1
            return fault

    def wait(self) -> None:
        with self.lock:
            self.lock.wait_for(lambda: self.most_at_work >= self.enough, self.latency)

    def __enter__(self) -> Faults:
        with self.lock:
            self.requests += 1
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            self.lock.notify_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.at_work -= 1


class FaultyHandler(BaseHTTPRequestHandler):
    """One request at a time reaches the storage, so checking and creating are one step."""

    storage_lock = threading.Lock()

    def __init__(self, faults: Faults, *args: Any) -> None:
        self.faults = faults
        super().__init__(*args)

    def handle_storage(self) -> None:
        """Answer the request from `rfile` into `wfile`."""
        raise NotImplementedError

    def send_error_answer(self, code: int, reason: str) -> None:
        """As the store words it."""
        raise NotImplementedError

    def do_GET(self) -> None:
        with self.faults:
            self._answer()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815  (http.server's names)

    def _answer(self) -> None:
        fault = self.faults.draw(self)
        self.faults.wait()
        if fault == "deaf":
            self._cut()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = {"unavailable": 503, "busy": 429}.get(str(fault), fault)
        if isinstance(status, int):
            self.send_error_answer(status, str(fault))
            return
        if fault == "reset":
            self._cut()
            return
        if fault == "slow":
            time.sleep(0.2)
        (out, into), self.wfile, self.rfile = (self.wfile, self.rfile), io.BytesIO(), io.BytesIO(body)
        with self.storage_lock:
            self.handle_storage()
        answer = self.wfile.getvalue()
        self.wfile, self.rfile = out, into
        if fault == "lost answer":
            self._cut()
            return
        end = {"cut short": len(answer) * 2 // 3, "cut in headers": answer.index(b"\r\n\r\n") // 2}.get(str(fault))
        out.write(answer[:end])
        if end is not None:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with 5, many clients at once wait a second to connect


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    """The address of a running server."""
    server = _Server(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that we cut off is no news
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
