"""A web server on loopback that does what a test says, however wrong, and name servers that know what they are told."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp.abc import AbstractResolver, ResolveResult


@dataclass
class Answer:
    """An HTTP answer; a header that is None is left out."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str | None] = field(default_factory=dict)
    delay: float = 0.0
    when: Callable[[], bool] = lambda: True
    """The answer is given once this is true."""

    def head(self) -> bytes:
        headers = {"Content-Length": str(len(self.body)), "Content-Type": "image/jpeg"} | self.headers
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        return "\r\n".join([f"HTTP/1.1 {self.status} Whatever", *lines, "", ""]).encode()


Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    at: float


class Web:
    """Serves `pages` by path: an answer, several (one after the other, the last stays), or a function that writes."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.host, self.port, self.tls = host, port, tls
        self.pages: dict[str, Answer | list[Answer] | Handler] = {}
        self.requests: list[Request] = []
        self.connections = 0
        self.most_at_once = 0
        self._now = 0
        self._loop = asyncio.new_event_loop()

    def url(self, path: str = "/", host: str | None = None) -> str:
        return f"http{'s' if self.tls else ''}://{host or self.host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(60)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._loop.close()

    def _run(self, ready: threading.Event) -> None:
        self._loop.run_until_complete(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._end = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, self.host, self.port, ssl=self.tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.connections += 1
        with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
            while head := await _read_head(reader):
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
                try:
                    going_on = await self._answer(head, writer)
                finally:
                    self._now -= 1
                if not going_on:
                    break
        writer.close()
        with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
            await writer.wait_closed()
        self._tasks.discard(task)

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> bool:
        first, *lines = head.split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        path = first.split(" ")[1]
        self.requests.append(Request(path, headers, self._loop.time()))
        page = self.pages.get(path, Answer(b"nothing here", 404))
        if isinstance(page, list):
            page = page.pop(0) if len(page) > 1 else page[0]
        if not isinstance(page, Answer):
            await page(writer)
            return False
        await asyncio.sleep(page.delay)
        while not page.when():
            await asyncio.sleep(0.01)
        writer.write(page.head() + page.body)
        await writer.drain()
        return headers.get("connection") != "close"


async def _read_head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip()
    except asyncio.IncompleteReadError:
        return ""


async def endless(writer: asyncio.StreamWriter) -> None:
    """Chunks for ever."""
    writer.write(Answer(headers={"Content-Length": None, "Transfer-Encoding": "chunked"}).head())
    while True:
        writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        await writer.drain()


async def drip(writer: asyncio.StreamWriter) -> None:
    """A byte now and then."""
    writer.write(Answer(bytes(10_000)).head())
    while True:
        writer.write(b"\xff")
        await writer.drain()
        await asyncio.sleep(0.05)


async def endless_head(writer: asyncio.StreamWriter) -> None:
    """Header lines for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: " + b"x" * 4000 + b"\r\n")
        await writer.drain()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def reset(writer: asyncio.StreamWriter) -> None:
    _reset(writer)


async def reset_within(writer: asyncio.StreamWriter) -> None:
    """More than the kernel's buffers hold, so that the client has read the head before the connection breaks."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    writer.transport.set_write_buffer_limits(0)
    writer.write(Answer(bytes(1_000_000)).head() + bytes(900_000))
    await writer.drain()
    _reset(writer)


async def cut_short(writer: asyncio.StreamWriter) -> None:
    """Fewer bytes than it says."""
    writer.write(Answer(bytes(10_000)).head() + bytes(5_000))
    await writer.drain()


async def no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 smtp.example.org ESMTP ready\r\n\r\n")
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN."""
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Names(AbstractResolver):
    """Name servers: host (its final dot left out) → addresses, or the error to raise."""

    def __init__(self, known: dict[str, list[str] | OSError]) -> None:
        self.known = known
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        found = self.known.get(host.removesuffix("."), OSError(socket.EAI_NONAME, "no such name"))
        if isinstance(found, OSError):
            raise found
        kinds: list[Any] = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
        return [
            {"hostname": host, "host": address, "port": port, "family": kind, "proto": 0, "flags": 0}
            for address, kind in zip(found, kinds, strict=True)
        ]

    async def close(self) -> None:
        pass


class Blackhole:
    """A port that takes no connection and refuses none: its queue is full, so the kernel drops what comes."""

    def __init__(self, host: str, port: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((host, port))
        self.socket.listen(0)
        self.host, self.port = self.socket.getsockname()
        self.fill = [socket.socket() for _ in range(3)]
        for one in self.fill:
            one.setblocking(False)
            one.connect_ex((self.host, self.port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (*self.fill, self.socket):
            one.close()
