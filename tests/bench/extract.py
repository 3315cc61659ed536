"""Extracting a WAT file, in core-seconds, against decompressing it and against the straightforward way.

The file is made: 4,000 pages (12,000 records) in the real format, some 9 kB compressed a page, as in Common Crawl's
files of 350 MB; its words are drawn from 3,000, so that it compresses 4 : 1. Floor: Python's gzip over the same bytes.
The straightforward way is cc2dataset's with the standard library's json: FastWARC, json, urljoin and MD5 per image.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

from fastwarc import ArchiveIterator, WarcRecordType

from components.stages.extract.spill import Spiller
from components.stages.extract.task import Extractor
from components.storage.local import LocalStorage
from tests.bench.measure import peak_mb, show
from tests.components.stages.extract.archives import img, warc_page, warcinfo, wat_members, wat_page

PAGES, WORDS = 4_000, 3_000
PARTITIONS = 64


def write_files(folder: Path) -> tuple[Path, Path]:
    """A WAT file, and a WARC file of a tenth of its pages."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]

    def some(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, most)))

    def page(number: int) -> tuple[str, list[dict[str, str]], dict[str, object]]:
        host = f"https://www.{draw.choice(words)}{number}.com"
        links = []
        for _ in range(draw.randint(60, 240)):
            links.append(
                {"path": "A@/href", "url": f"{host}/{draw.choice(words)}/{draw.choice(words)}", "text": some(5)}
            )
        for k in range(draw.randint(0, 50)):
            name = f"/wp-content/uploads/2026/10/{draw.choice(words)}-{draw.choice(words)}-{k}.jpg"
            url = draw.choice([host + name, name, "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALA=="])
            links.append(img(url, draw.choice([some(9), some(9), ""])))
        head = {
            "Metas": [{"name": draw.choice(words), "content": some(12)} for _ in range(20)],
            "Link": [
                {"path": "LINK@/href", "url": f"{host}/wp-includes/css/{draw.choice(words)}.css"} for _ in range(25)
            ],
            "Scripts": [
                {"path": "SCRIPT@/src", "url": f"{host}/wp-includes/js/{draw.choice(words)}.js"} for _ in range(25)
            ],
        }
        return f"{host}/{draw.choice(words)}", links, head

    wat, warc = folder / "wat.gz", folder / "warc.gz"
    with open(wat, "wb") as file, open(warc, "wb") as other:
        file.write(warcinfo())
        other.write(warcinfo())
        for number in range(PAGES):
            url, links, head = page(number)
            file.write(b"".join(wat_members(url, wat_page(url, links, head))))
            if number % 10 == 0:
                tags = [
                    f'<div class="image"><img src="{link["url"]}" alt="{link["alt"]}" width="300" height="200"></div>'
                    if link["path"] == "IMG@/src"
                    else f'<p>{some(60)} <a href="{link["url"]}">{link["text"]}</a></p>'
                    for link in links
                ]
                other.write(warc_page(url, f"<html><body>{''.join(tags)}</body></html>".encode()))
    return wat, warc


def ours(path: Path, folder: Path, kind: str = "wat") -> Extractor:
    """A task without its record: read, decide, sort, spill."""
    tally = Extractor(Spiller(LocalStorage(folder / "storage"), "spill", PARTITIONS))
    with open(path, "rb") as file:
        tally.read(path.name, file, kind)
    tally.spiller.flush()
    return tally


def straightforward(path: Path) -> set[str]:
    found = set()
    with open(path, "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.metadata, parse_http=False):
            wat = json.loads(record.reader.read())["Envelope"]
            html = wat["Payload-Metadata"].get("HTTP-Response-Metadata", {}).get("HTML-Metadata", {})
            page = wat["WARC-Header-Metadata"]["WARC-Target-URI"]
            base = urljoin(page, html.get("Head", {}).get("Base", ""))
            for link in html.get("Links", ()):
                if link.get("path") == "IMG@/src" and link.get("alt"):
                    url = urljoin(base, link["url"])
                    if url.startswith(("http://", "https://")):
                        found.add(hashlib.md5((link["alt"] + url).encode()).hexdigest())
    return found


def decompress(path: Path) -> None:
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def core_seconds(*works: Callable[[], object], runs: int = 3) -> list[float]:
    """Median of each; run in turn. Time of this process, so that a busy machine changes little."""
    took: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for work, times in zip(works, took, strict=True):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
    return [statistics.median(times) for times in took]


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    wat, warc = write_files(folder)
    size, html, tally = wat.stat().st_size / 1e6, warc.stat().st_size / 1e6, ours(wat, folder)
    assert tally.candidates - tally.dropped.total() - tally.spiller.lost.total() == len(straightforward(wat))
    mine, simple, floor = core_seconds(lambda: ours(wat, folder), lambda: straightforward(wat), lambda: decompress(wat))
    pages, least = core_seconds(lambda: ours(warc, folder, "warc"), lambda: decompress(warc))
    show(
        **{
            f"WAT of {size:.0f} MB, {tally.candidates:,} images": f"{size / mine:.1f} MB/s a core",
            "against gzip alone": f"{mine / floor:.2f} × its time ({size / floor:.0f} MB/s)",
            "against json and a loop": f"{simple / mine:.2f} × as fast ({size / simple:.1f} MB/s)",
            "a WAT file of 350 MB": f"{350 / size * mine:.0f} core-seconds",
            f"WARC of {html:.0f} MB, HTML": f"{html / pages:.1f} MB/s a core, {pages / least:.2f} × gzip's time",
            "peak memory": f"{peak_mb():,.0f} MB",
        }
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
