"""Reading one object of 100 MB from a bucket 20 ms away: `open` against one range after the other.

The server is a process of its own on loopback and answers ranges from memory, 20 ms after they were asked for,
each stream at 100 MB/s; the plain reader asks it through the same client for one range after the other.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection

from components.storage import ranged_reader
from components.storage.interface import Storage
from components.storage.opening import open_storage
from tests.bench.measure import peak_mb, seconds, show

SIZE, LATENCY, RATE = 100_000_000, 0.020, 100e6  # bytes; seconds per request; bytes/s of one stream
PIECE = 64 << 10  # what a reader of a tar asks for at once
DATA = bytes(SIZE)


class Handler(BaseHTTPRequestHandler):
    """As much of both protocols as reading one object takes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(LATENCY)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not found:  # Google's metadata
            meta = b'{"name": "x", "size": "%d", "generation": "1"}' % SIZE
            self._send(200, {"Content-Type": "application/json", "Content-Length": str(len(meta))}, memoryview(meta))
            return
        start, end = int(found[1]), min(int(found[2]) + 1, SIZE)
        headers = {"Content-Length": str(end - start), "Content-Range": f"bytes {start}-{end - 1}/{SIZE}"}
        self._send(206, {**headers, "ETag": '"1"'}, memoryview(DATA)[start:end])

    def do_HEAD(self) -> None:
        time.sleep(LATENCY)
        self._send(200, {"Content-Length": str(SIZE), "ETag": '"1"'}, memoryview(b""))

    def _send(self, code: int, headers: dict[str, str], body: memoryview) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        step = 1 << 20
        for start in range(0, len(body), step):  # one stream of a bucket is not as fast as loopback
            began = time.perf_counter()
            self.wfile.write(body[start : start + step])
            time.sleep(max(0.0, step / RATE - (time.perf_counter() - began)))

    def log_message(self, format: str, *args: object) -> None:
        return


def serve(pipe: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def read_ahead(storage: Storage) -> None:
    with storage.open("x") as file:
        while file.read(PIECE):
            pass


def read_plainly(storage: Storage, step: int) -> None:
    for start in range(0, SIZE, step):
        storage.read("x", start, step)


def measure(scheme: str) -> dict[str, str]:
    """In a process of its own, for its peak memory."""
    storage = open_storage(f"{scheme}://bucket/")
    storage.read("x", 0, 1)
    before = peak_mb()
    read_ahead(storage)
    peak = peak_mb()
    small, large, quick = seconds(
        lambda: read_plainly(storage, 1 << 20),
        lambda: read_plainly(storage, ranged_reader.CHUNK),
        lambda: read_ahead(storage),
    )
    return {
        f"{scheme}:// 1 MiB after the other": f"{SIZE / small / 1e6:,.0f} MB/s",
        f"{scheme}:// 8 MiB after the other": f"{SIZE / large / 1e6:,.0f} MB/s",
        f"{scheme}:// open": f"{SIZE / quick / 1e6:,.0f} MB/s: {small / quick:.1f} × and {large / quick:.1f} × that",
        f"{scheme}:// peak memory": f"{peak:,.0f} MB, {peak - before:,.0f} MB of it to read",
    }


def main() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    address = f"http://127.0.0.1:{ours.recv()}"
    os.environ.update(STORAGE_EMULATOR_HOST=address, AWS_ENDPOINT_URL_S3=address, AWS_REGION="us-east-1")
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for scheme in ("gs", "s3"):
            show(**pool.apply(measure, (scheme,)))
    server.terminate()
    server.join()


if __name__ == "__main__":
    main()
