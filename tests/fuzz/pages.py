"""Pages of a crawl: HTML, WAT records, archives' members and robots.txt; whatever they hold, work stays bounded."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import suppress
from pathlib import Path
from random import Random

from yarl import URL

from components.recipe.sources import Download
from components.stages.download.hosts import Hosts
from components.stages.download.reasons import Failed
from components.stages.download.robots import LIMIT, check_robots
from components.stages.extract import page, wat
from components.stages.extract.members import Damage, read_members
from components.stages.extract.records import WarcRecord, parse
from components.stages.extract.text_rules import candidate
from tests.components.stages.extract.archives import img, member, record, wat_page
from tests.fuzz.damage import damaged, text, value

ADDRESS = "https://site.example/blog/"
ATTRIBUTES = ("src", "alt", "srcset", "data-src", "data-srcset", "width", "height", "href", "sizes")
TAGS = ("img", "IMG", "base", "picture", "source", "/picture", "p", "script", "!--", "svg", "template", "noscript")


def html(chance: Random, _folder: Path) -> None:
    """Read the images of a page of any tags, some of them repeated up to a page's limit of 5 MiB."""
    body = f"<base href='{_base(chance)}'>" if chance.random() < 0.5 else ""
    body += "".join(_tag(chance) for _ in range(chance.randint(0, 60)))
    if chance.random() < 0.15:
        piece = chance.choice((_tag(chance), "<", "<img ", "<img src=a alt=b>", "&#", '"', "<!--", "<picture>", "]]>"))
        body += piece * ((chance.choice((1 << 16, 5 << 20)) // len(piece.encode() or b" ")) + 1)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={chance.choice(('utf-8', 'x', 'utf-16', ''))}\r\n\r\n"
    data = head.encode() + body.encode()[: 5 << 20]
    _take(page.images_of(WarcRecord(ADDRESS, damaged(chance, data) if chance.random() < 0.3 else data)))


def wat_record(chance: Random, _folder: Path) -> None:
    """Read the images of a WAT record of any JSON."""
    links = [img(text(chance), text(chance)) for _ in range(chance.randint(0, 20))]
    links += [{"path": "IMG@/src", text(chance, long=False): value(chance)} for _ in range(chance.randint(0, 3))]
    content = wat_page(ADDRESS, links, {"Base": _base(chance)})
    if chance.random() < 0.1:
        content = content.replace(b'"Links":', b'"Links":' + b"[" * 200_000)
    if chance.random() < 0.1:
        content = json.dumps({"Envelope": value(chance), "x": '"IMG@/src"'}).encode("utf-8", "surrogatepass")
    _take(wat.images_of(WarcRecord(ADDRESS, damaged(chance, content) if chance.random() < 0.5 else content)))


def archive(chance: Random, _folder: Path) -> None:
    """Read the members of a damaged archive: every byte is a member's or is told as damage."""
    whole = [member(record("metadata", text(chance).encode(), ADDRESS)) for _ in range(chance.randint(0, 6))]
    data = damaged(chance, b"".join(whole))
    for found in read_members(io.BytesIO(data)):
        if isinstance(found, Damage):
            assert 0 <= found.offset < found.offset + found.bytes <= len(data)
        else:
            parse(found, b"metadata")


def robots(chance: Random, _folder: Path) -> None:
    """Ask a robots.txt of any rules, up to the size that is read."""
    lines = [_rule(chance) for _ in range(chance.randint(0, 30))]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    if chance.random() < 0.3 and data:
        agents, rules = (chance.choice((1, 100, 4000)) for _ in range(2))
        lines = [f"User-agent: agent{n}" for n in range(agents)] + [f"Disallow: /{n}*a" for n in range(rules)]
        data = "\n".join(lines).encode()

    async def read(_url: URL, _limit: int) -> bytes:
        return data[:LIMIT]

    async def ask() -> None:
        url = URL(ADDRESS) / text(chance, long=False).replace("/", "") / ("a" * chance.choice((1, 2000)))
        hosts = Hosts(Download())
        with hosts.use(url) as host:
            for _ in range(5):
                with suppress(Failed):  # which has a reason of the list, or can't be made
                    await check_robots(url, host, read)

    asyncio.run(ask())


KINDS = {"html": html, "wat": wat_record, "archive": archive, "robots": robots}


def _take(found: object) -> None:
    """Make the candidates of a page's images."""
    if isinstance(found, str):
        return
    where, images = found  # type: ignore[misc]
    for image in images:
        made = candidate(where, image)
        if isinstance(made, str):
            assert made.isprintable()


def _tag(chance: Random) -> str:
    attributes = [f"{chance.choice(ATTRIBUTES)}={_quoted(chance)}" for _ in range(chance.randint(0, 4))]
    return f"<{chance.choice(TAGS)} {' '.join(attributes)}>" + text(chance, long=False)


def _quoted(chance: Random) -> str:
    inside = chance.choice((text(chance), "a.jpg", _base(chance), ", ".join(f"{n}.jpg {n}w" for n in range(50)), "1"))
    mark = chance.choice(('"', "'", ""))
    return mark + (inside.replace(mark, "") if mark else inside) + mark


def _base(chance: Random) -> str:
    return chance.choice(("/root/", "//other.example", "http://[", "../" * 1000, "a/" * 30_000, text(chance)))


def _rule(
    chance: Random, names: tuple[str, ...] = ("User-agent", "Disallow", "Allow", "Crawl-delay", "Sitemap")
) -> str:
    values = ("*", "/", "recaption", "/" + "*a" * chance.choice((1, 500)) + "$", text(chance, long=False), "999999999")
    return f"{chance.choice(names)}: {chance.choice(values)}"
