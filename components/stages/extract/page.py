"""Images of an HTML page in a WARC file: with what WAT files leave out (lazy loading, srcset, size).

The URL is the largest that the page offers: of `srcset` (also that of the <picture>'s sources), else of the usual
attributes of lazy loading, else `src`. The text is `alt`, as for WAT.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

import webencodings

from components.stages.extract.records import NO_IMAGE, UNREADABLE, WarcRecord
from components.stages.extract.tags import BASE, IMG, PICTURE, SOURCE, read_tags
from components.stages.extract.text_rules import Image, Page

# Where lazy loading keeps the URL: lazysizes, WordPress's plugins, jQuery Lazy Load, in order of use
LAZY = ("data-src", "data-lazy-src", "data-original", "data-lazy", "data-original-src", "data-url")
SETS = ("srcset", "data-srcset", "data-lazy-srcset")

Offer = tuple[str, float, str]
"""URL, number and unit (w or x) of one entry of a srcset."""

PRESCAN = 1024  # bytes in which HTML looks for <meta charset>
_META = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_CHARSET = re.compile(rb"""(?im)^content-type:[^\r\n]*charset\s*=\s*["']?([\w.:-]+)""")
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_URL = re.compile(r"[\s,]*(\S+)")
_SIZE = re.compile(r"\d{1,9}(?:\.\d{1,9})?[wx]")


def images_of(record: WarcRecord) -> tuple[Page, list[Image]] | str:
    """Return a page and its images in document order, or the reason why it has none."""
    head, _, body = record.content.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        return UNREADABLE
    if b"<img" not in body and b"<IMG" not in body and b"<Img" not in body:
        return UNREADABLE if body[:2] == b"\x1f\x8b" else NO_IMAGE  # Common Crawl stores pages decompressed
    page = Page(record.url)
    images: list[Image] = []
    sources: list[Offer] | None = None  # the best of the open <picture>
    for name, attributes in read_tags(_text(head, body)):
        if name == IMG:
            images.append(_image(attributes, sources or []))
        elif name == BASE:
            page.base = page.base or attributes.get("href")
        elif name != SOURCE:
            sources = [] if name == PICTURE else None
        elif sources is not None:
            best = _largest([*sources, *_offers(attributes)])
            sources = [best] if best else []
    return (page, images) if images else NO_IMAGE


def _image(attributes: dict[str, str], sources: list[Offer]) -> Image:
    sizes = [attributes.get(name, "").strip().removesuffix("px") for name in ("width", "height")]
    best = _largest([*_offers(attributes), *sources])
    url = best[0] if best else _lazy(attributes) or attributes.get("src")
    return Image(url, attributes.get("alt"), all(size in ("0", "1") for size in sizes))


def _offers(attributes: dict[str, str]) -> list[Offer]:
    return [offer for name in SETS if (value := attributes.get(name)) for offer in parse_srcset(value)]


def _largest(offers: list[Offer]) -> Offer | None:
    """Return the offer of most pixels: by width in px (w), else by density (x); the first of equals."""
    wide = [offer for offer in offers if offer[2] == "w"]
    return max(wide or offers, key=lambda offer: offer[1], default=None)


def _lazy(attributes: dict[str, str]) -> str | None:
    return next((value for name in LAZY if (value := attributes.get(name))), None)


def parse_srcset(srcset: str) -> Iterator[Offer]:
    """Yield the offers of a srcset, by HTML's algorithm "parse a srcset attribute".
    Entries that are data: URIs are left out; one without a descriptor is 1x."""
    at = 0
    while found := _URL.match(srcset, at):
        url, at = found[1], found.end()
        descriptor = ""
        if not url.endswith(","):
            end = srcset.find(",", at)
            descriptor, at = (srcset[at:end], end + 1) if end >= 0 else (srcset[at:], len(srcset))
        size = next(filter(_SIZE.fullmatch, descriptor.split()), "1x")
        if (url := url.rstrip(",")) and not url.startswith("data:"):
            yield url, float(size[:-1]), size[-1]


def _text(head: bytes, body: bytes) -> str:
    """Decode as browsers do: by byte order mark, HTTP header, <meta>; else UTF-8 if it is that, else windows-1252."""
    for mark, encoding in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace")
    found = _CHARSET.search(head) or _META.search(body[:PRESCAN])
    named = webencodings.lookup(found[1].decode("ascii", "replace")) if found else None
    if named:
        return str(named.codec_info.decode(body, "replace")[0])
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")
