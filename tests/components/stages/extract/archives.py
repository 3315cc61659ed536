"""WAT and WARC files in the real format, made for tests and benchmarks.

Layout as Common Crawl publishes it: WARC 1.0 (ISO 28500), a gzip member per record, first a warcinfo; of every page a
request, a response and a metadata record. A WAT file has a metadata record for each of those, whose JSON has
Container, Envelope, Payload-Metadata and, of an HTML response, HTTP-Response-Metadata with HTML-Metadata (Internet
Archive's "Web Archive Transformation (WAT) Specification", and what ia-web-commons writes).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from typing import Any

Link = Mapping[str, Any]
DATE = "2026-10-12T01:17:49Z"


def record(kind: str, content: bytes, url: str = "", mime: str = "application/json") -> bytes:
    """One WARC record, not compressed."""
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\n"
    if url:
        head += f"WARC-Target-URI: {url}\r\n"
    head += f"WARC-Date: {DATE}\r\nWARC-Record-ID: <urn:uuid:3d3f4785-c69a-4f8c-968c-d23302c55ef4>\r\n"
    head += f"Content-Type: {mime}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content + b"\r\n\r\n"


def member(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


def warcinfo() -> bytes:
    fields = b"Software-Info: ia-web-commons.1.1.10\r\nformat: WARC File Format 1.0\r\n"
    return member(record("warcinfo", fields, mime="application/warc-fields"))


def envelope(url: str, payload: Mapping[str, Any], kind: str = "response") -> bytes:
    """The JSON of one WAT record."""
    header = {"WARC-Type": kind, "WARC-Date": DATE, "WARC-Target-URI": url, "Content-Length": "24707"}
    value = {
        "Container": {
            "Filename": "CC-MAIN-20261012001507-20261012031507-00000.warc.gz",
            "Compressed": True,
            "Offset": "949",
            "Gzip-Metadata": {"Inflated-Length": "25358", "Footer-Length": "8", "Deflate-Length": "5952"},
        },
        "Envelope": {
            "Format": "WARC",
            "WARC-Header-Length": "647",
            "WARC-Header-Metadata": header,
            "Payload-Metadata": {"Actual-Content-Type": f"application/http; msgtype={kind}", **payload},
        },
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def wat_page(url: str, links: Iterable[Link], head: Mapping[str, Any] | None = None) -> bytes:
    """The JSON of an HTML page's response."""
    html: dict[str, Any] = {"Head": {"Title": "A page", **(head or {})}, "Links": list(links)}
    response = {
        "Headers": {"Content-Type": "text/html; charset=utf-8", "Server": "nginx"},
        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
        "HTML-Metadata": html,
    }
    return envelope(url, {"HTTP-Response-Metadata": response})


def wat_members(url: str, content: bytes, level: int = 6) -> list[bytes]:
    """The three members of one page: request, response, crawl metadata."""
    agent = {"Headers": {"User-Agent": "CCBot/2.0", "Accept": "text/html"}, "Headers-Length": "263"}
    request = envelope(url, {"HTTP-Request-Metadata": agent}, "request")
    crawl = envelope(url, {"WARC-Metadata-Metadata": {"Metadata-Records": [{"Name": "fetchTimeMs"}]}}, "metadata")
    return [member(record("metadata", part, url), level) for part in (request, content, crawl)]


def img(url: str | None = None, alt: str | None = None, **more: str) -> dict[str, str]:
    """A link as ia-web-commons notes an <img>."""
    link = {"path": "IMG@/src", **more}
    if url is not None:
        link["url"] = url
    if alt is not None:
        link["alt"] = alt
    return link


def wat_file(pages: Iterable[tuple[str, list[Link]]]) -> bytes:
    return warcinfo() + b"".join(m for url, links in pages for m in wat_members(url, wat_page(url, links)))


def warc_page(url: str, body: bytes, mime: str = "text/html") -> bytes:
    """The members of one page: request, response."""
    answer = f"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: {mime}\r\nX-Crawler-Content-Encoding: gzip\r\n\r\n"
    asked = record("request", b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", url, "application/http; msgtype=request")
    answered = record("response", answer.encode() + body, url, "application/http; msgtype=response")
    return member(asked) + member(answered)
