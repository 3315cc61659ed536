"""A small web on loopback: a mirror with a dump of Common Crawl, and the server whose images its pages show."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.components.stages.download.web import Answer, Web
from tests.components.stages.extract.archives import img, warc_page, warcinfo, wat_file
from tests.components.storage.web_server import Mirror, mirror
from tests.pools import jpeg

DUMP, OLDER = "CC-MAIN-2026-43", "CC-MAIN-2026-38"
IMAGES = 60
"""Of which some are broken, gone, too much asked for, shown twice, or not to be reached."""


@dataclass
class Crawl:
    """What a test may look at and change."""

    mirror: Mirror
    web: Web

    def source(self, **more: Any) -> dict[str, Any]:
        """Of a recipe's pool."""
        return {"commonCrawl": {"dump": "latest", "base": self.mirror.url, "index": self.mirror.url, **more}}


def answer(number: int) -> Answer:
    """What the server says to an image."""
    if number % 10 == 3:
        return Answer(b"gone", 404)
    if number % 10 == 4:
        return Answer(b"busy", 503)
    if number % 10 == 5:
        return Answer(b"<html>", 200, {"Content-Type": "text/html"})
    return Answer(jpeg(number, (640, 400) if number % 7 == 0 else (64, 48)))


def pages(web: Web) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Twelve of ten links each: five images, an image of another page once more, and what is no candidate."""
    found: list[tuple[str, list[Mapping[str, Any]]]] = []
    for page in range(IMAGES // 5):
        url = f"{web.url()}page/{page}.html"
        links: list[Mapping[str, Any]] = [
            img(f"/{number}.jpg", f"photo number {number}") for number in range(page * 5, page * 5 + 5)
        ]
        links += [img("/0.jpg", "photo number 0"), img("data:image/gif;base64,R0", "x"), img("/a.jpg", "  ")]
        links += [img("ftp://example.com/x.jpg", "a file"), img("http://169.254.169.254/latest/meta-data", f"m{page}")]
        found.append((url, links))
    return found


def html(links: Sequence[Mapping[str, Any]]) -> bytes:
    """A page that has these images; those without an address in a lazily loading page's attribute."""
    return "".join(f"<img data-src='{link['url']}' alt='{link['alt']}'>" for link in links).encode()


@contextmanager
def crawl() -> Iterator[Crawl]:
    with Web() as web:
        web.pages.update({f"/{number}.jpg": answer(number) for number in range(IMAGES)})
        listed = pages(web)
        files = {
            f"crawl-data/{DUMP}/segments/1/wat/{i}.warc.wat.gz": wat_file(listed[i::3])  # three files of four pages
            for i in range(3)
        }
        files |= {
            f"crawl-data/{DUMP}/segments/1/warc/{i}.warc.gz": warcinfo()
            + b"".join(warc_page(url, html(links)) for url, links in listed[i::3])
            for i in range(3)
        }
        paths = {
            f"crawl-data/{DUMP}/{kind}.paths.gz": gzip.compress(
                "".join(f"{path}\n" for path in files if f"/{kind}/" in path).encode()
            )
            for kind in ("wat", "warc")
        }
        ids: Sequence[str] = (OLDER, DUMP)
        served = {
            **files,
            **paths,
            "collinfo.json": json.dumps([{"id": name} for name in ids]).encode(),
        }
        with mirror(served) as found:
            yield Crawl(found, web)
