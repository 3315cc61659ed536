"""Images of a WAT record: what Common Crawl's extractor (ia-web-commons) noted of a page's links.

Of an <img> it notes `src` (as path IMG@/src) with `alt` and `title`, and nothing else: no width and height, no srcset,
no data-src or other attribute of lazy loading, whose `src` is mostly a data: URI. Who wants those reads the WARC files.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from components.stages.extract.records import NO_IMAGE, UNREADABLE, WarcRecord
from components.stages.extract.text_rules import Image, Page

PATH = "IMG@/src"
MOST_MENDED = 8 << 20  # bytes; Python's objects take up to twenty times as much. The largest page's are some 15 MB
_TRACE = b'"IMG@'  # in the JSON of every page with an image; two thirds of the records are requests and crawl metadata


class _Link(msgspec.Struct, gc=False):
    path: str = ""
    url: str | None = None
    alt: str | None = None


class _Head(msgspec.Struct):
    base: str | None = msgspec.field(default=None, name="Base")


class _Html(msgspec.Struct):
    head: _Head | None = msgspec.field(default=None, name="Head")
    links: list[_Link] = msgspec.field(default_factory=list, name="Links")


class _Response(msgspec.Struct):
    html: _Html | None = msgspec.field(default=None, name="HTML-Metadata")


class _Payload(msgspec.Struct):
    response: _Response | None = msgspec.field(default=None, name="HTTP-Response-Metadata")


class _Envelope(msgspec.Struct):
    payload: _Payload | None = msgspec.field(default=None, name="Payload-Metadata")


class _Wat(msgspec.Struct):
    envelope: _Envelope = msgspec.field(name="Envelope")


_decoder = msgspec.json.Decoder(_Wat)  # fields that are not asked for are skipped, not built


def images_of(record: WarcRecord) -> tuple[Page, list[Image]] | str:
    """Return a page and its images in document order, or the reason why it has none."""
    if _TRACE not in record.content:
        return NO_IMAGE
    try:
        wat = _decode(record.content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return UNREADABLE
    payload = wat.envelope.payload
    html = payload.response.html if payload and payload.response else None
    images = [Image(link.url, link.alt) for link in html.links if link.path == PATH] if html else []
    if html is None or not images:
        return NO_IMAGE
    return Page(record.url, html.head.base if html.head else None), images


def _decode(content: bytes) -> _Wat:
    """Decode a record's JSON; broken UTF-8, lone surrogates and raw control characters don't cost the page."""
    try:
        return _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        if len(content) > MOST_MENDED:
            raise
        value = json.loads(content.decode("utf-8", "replace"), strict=False)
        return msgspec.convert(_without_surrogates(value), _Wat)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {key: _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list) else value
