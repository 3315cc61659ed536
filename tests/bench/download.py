"""Downloading from a loopback server, resize included, against the floor: decoding, resizing and encoding alone.

The server is a process of its own, and so are the addresses that answer nothing; loopback addresses stand for hosts.
Rates per core count the CPU time of the downloader with its decoders, since the server has the same cores.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq

from components.recipe.sources import Download
from components.stages.download.picture import make_picture
from components.stages.download.shard import Candidates
from components.stages.download.task import download
from components.storage.local import LocalStorage
from tests.bench import worker
from tests.bench.measure import peak_mb, show
from tests.components.stages.download.web import Blackhole
from tests.pools import jpeg, uid

PORT, DEAD_PORT = 18_080, 18_081
SIZE = (800, 600)
PHOTOS, IMAGES, MANY = 32, 3_000, 100_000
DELAY, SLOTS = 0.2, 64  # seconds, connections: where slots are the limit
DEAD = 0.3  # of the addresses


def photos() -> list[bytes]:
    worker.SIZE = SIZE
    return [worker.photo(seed) for seed in range(PHOTOS)]


class Server(asyncio.Protocol):
    """Answers /photo/N, /slow/N (a small image after DELAY), /small and /span (seconds from first to last answer)."""

    span = (0.0, 0.0)
    photos: Sequence[bytes] = ()
    small = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1].decode().split("/")
        if path[1] == "slow":
            asyncio.get_running_loop().call_later(DELAY, self._send, Server.small)
        elif path[1] == "span":
            self._send(json.dumps(Server.span[1] - Server.span[0]).encode())
            Server.span = (0.0, 0.0)
        else:
            self._send(Server.photos[int(path[2]) % PHOTOS] if path[1] == "photo" else Server.small)

    def _send(self, body: bytes) -> None:
        now = time.monotonic()
        Server.span = (Server.span[0] or now, now)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def serve(dead: list[str]) -> None:
    Server.photos, Server.small = photos(), jpeg(0)
    server = await asyncio.get_running_loop().create_server(Server, "0.0.0.0", PORT, backlog=4096)
    holes = [Blackhole(address, DEAD_PORT) for address in dead]
    print("ready", flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)
    for hole in holes:
        hole.__exit__()


@contextmanager
def server() -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.download", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield
        process.communicate()


def hosts(count: int, net: int = 1) -> list[str]:
    return [f"127.{net}.{i // 250}.{i % 250 + 1}" for i in range(count)]


def dead_hosts(live: int) -> list[str]:
    return hosts(round(live * DEAD / (1 - DEAD)), 2)


def run(folder: Path, urls: Sequence[str], **options: object) -> tuple[float, int]:
    """CPU seconds and images."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "candidates").mkdir(parents=True)
    todo = []
    for start in range(0, len(urls), 10_000):
        some, name = urls[start : start + 10_000], f"{start // 10_000:08d}"
        rows = {"uid": [uid(start + i) for i in range(len(some))], "url": some, "text": ["a text"] * len(some)}
        pq.write_table(pa.table(rows), folder / f"candidates/{name}.parquet")
        todo.append(Candidates(name, f"candidates/{name}.parquet"))
    wanted = {"per_host_rate": 10_000.0, "allow_networks": ["127.0.0.0/8"], **options}
    began = cpu()
    records = download(todo, Download.model_validate(wanted), LocalStorage(folder), "shards")
    return cpu() - began, sum(record.samples for record in records)


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def span() -> float:
    """Seconds in which the server gave its answers, since this was asked last."""
    with urlopen(f"http://127.0.0.1:{PORT}/span") as answer:
        return float(json.loads(answer.read()))


def memory_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024 / 1e6


class Watch(threading.Thread):
    """The highest memory of this process, by tenths of the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.seen: list[float] = []

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.seen.append(memory_mb())

    def highest(self) -> tuple[float, float]:
        """In the first fifth and in the last."""
        fifth = max(1, len(self.seen) // 5)
        return max(self.seen[:fifth]), max(self.seen[-fifth:])


def bench_rates(folder: Path) -> None:
    data = photos()
    began = cpu()
    for one in data * 4:
        make_picture(one)
    floor = (cpu() - began) / 4
    show(floor=f"{PHOTOS / floor:,.0f} images/s on one core ({len(data[0]) / 1e3:.0f} kB JPEGs of 800 × 600)")
    for count in (1, 64, 512):
        places = hosts(count)
        urls = [f"http://{places[i % count]}:{PORT}/photo/{i}" for i in range(IMAGES)]
        began = time.monotonic()
        used, images = run(folder, urls, per_host_connections=512 if count == 1 else 8)
        took = time.monotonic() - began
        assert images == IMAGES
        show(
            **{
                f"{count}_hosts": f"{images / used:,.0f} images/s per core, {used / images * PHOTOS / floor:.2f} × the "
                f"floor's CPU time; {images / took:,.0f} images/s beside the server"
            }
        )


def bench_dead(folder: Path) -> None:
    live, dead = hosts(512), dead_hosts(512)
    good = [f"http://{live[i % 512]}:{PORT}/slow/{i}" for i in range(IMAGES)]
    bad = [f"http://{dead[i % len(dead)]}:{DEAD_PORT}/{i}" for i in range(round(IMAGES * DEAD / (1 - DEAD)))]
    mixed = [u for i in range(0, IMAGES, 7) for u in (*good[i : i + 7], *bad[i * 3 // 7 : i * 3 // 7 + 3])]
    rates = []
    for urls in (good, mixed) * 2:
        span()
        _, images = run(folder, urls, connections=SLOTS)
        assert images == IMAGES
        rates.append(IMAGES / span())
    alone, beside = rates[0] + rates[2], rates[1] + rates[3]
    show(
        slots_are_the_limit=f"{alone / 2:,.0f} images/s with {SLOTS} connections, answers after {DELAY} s "
        f"({SLOTS / DELAY:,.0f} at most)",
        **{f"{DEAD:.0%}_of_the_addresses_dead": f"{beside / alone:.2f} × that rate"},
    )


def bench_memory(folder: Path) -> None:
    places = hosts(512)
    watch = Watch()
    watch.start()
    began = time.monotonic()
    _, images = run(folder, [f"http://{places[i % 512]}:{PORT}/small/{i}" for i in range(MANY)])
    took = time.monotonic() - began
    watch.over.set()
    first, last = watch.highest()
    assert images == MANY
    show(
        memory=f"{last:,.0f} MB in the last fifth of {MANY:,} URLs, {first:,.0f} in the first",
        peak_memory=f"{peak_mb():,.0f} MB with its largest decoder",
        **{"1_kB_images": f"{MANY / took:,.0f}/s"},
    )


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    with server():
        bench_rates(folder)
        bench_dead(folder)
        bench_memory(folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve(dead_hosts(512)))
    else:
        main()
