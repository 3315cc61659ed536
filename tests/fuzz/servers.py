"""Web servers: whatever they answer, every candidate is an image or a failure with a reason."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from components.stages.download.reasons import REASONS
from tests.components.stages.download.conftest import Pool
from tests.components.stages.download.web import Handler, Web
from tests.fuzz.damage import damaged, text
from tests.pools import jpeg

PAGES = 12
STATUS = (200, 200, 200, 200, 204, 206, 301, 302, 304, 307, 400, 404, 429, 500, 503, 999)


def server(chance: Random, folder: Path) -> None:
    """Download from a server whose heads and bodies are drawn at random."""
    with Web() as web:
        web.pages = {f"/{n}": _handler(chance, web) for n in range(PAGES)}
        web.pages["/robots.txt"] = _handler(chance, web)
        pool = Pool(folder)
        (record,) = pool.download(
            [web.url(f"/{n}") for n in range(PAGES)],
            connect_timeout=2.0,
            read_timeout=2.0,
            timeout=4.0,
            robots=chance.random() < 0.2,
            max_bytes=200_000,
        )
    rows = pool.rows(record)
    assert len(rows) == PAGES == record.samples + sum(record.failures.values())
    assert set(record.failures) <= set(REASONS)
    assert len([name for name in pool.members(record) if name.endswith(".jpg")]) == record.samples


KINDS = {"server": server}


def _handler(chance: Random, web: Web) -> Handler:
    answer = _answer(chance, web)

    async def write(writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(answer), 1 << 15):
            writer.write(answer[start : start + (1 << 15)])
            await writer.drain()

    return write


def _answer(chance: Random, web: Web) -> bytes:
    body = jpeg(chance.randrange(9)) if chance.random() < 0.8 else chance.randbytes(300)
    location = chance.choice(
        (web.url(f"/{chance.randrange(PAGES)}"), "/é\xff", "//[", "file:///etc/passwd", "../" * 99)
    )
    headers = [
        f"Content-Length: {chance.choice((len(body), len(body), len(body), 0, -1, len(body) + 5, 10**15, 'many'))}",
        f"Content-Type: {chance.choice(('image/jpeg', 'text/html', text(chance, long=False)))}",
        *([f"Location: {location}"] if chance.random() < 0.6 else []),
        *([f"Content-Encoding: {chance.choice(('gzip', 'br', 'UTF-8', 'none', 'binary', 'identity', ''))}"] * 1),
        *([f"Retry-After: {chance.choice(('0', '-5', '1e9', 'soon', '9' * 50))}"] if chance.random() < 0.3 else []),
        *([f"X-Robots-Tag: {text(chance, long=False)}"] if chance.random() < 0.3 else []),
        *([f"Set-Cookie: {'a' * chance.choice((10, 9000))}"] if chance.random() < 0.3 else []),
    ]
    chance.shuffle(headers)
    start = f"HTTP/1.{chance.choice('011')} {chance.choice(STATUS)} {text(chance, long=False)[:5]}"
    whole = "\r\n".join([start, *headers, "", ""]).encode("latin-1", "replace") + body
    return damaged(chance, whole, 2) if chance.random() < 0.3 else whole
