"""Images of an HTML page in a WARC file: with what WAT files leave out (lazy loading, srcset, size).

The URL is the largest that the page offers: of `srcset` (also that of the <picture>'s sources), else of the usual
attributes of lazy loading, else `src`. The text is `alt`, as for WAT.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

import webencodings
from selectolax.lexbor import LexborHTMLParser, LexborNode

from components.extract.records import NO_IMAGE, UNREADABLE, Record
from components.extract.rules import Image, Page

# Where lazy loading keeps the URL: lazysizes, WordPress's plugins, jQuery Lazy Load, in order of use
LAZY = ("data-src", "data-lazy-src", "data-original", "data-lazy", "data-original-src", "data-url")
LAZY_SETS = ("data-srcset", "data-lazy-srcset")
PRESCAN = 1024  # bytes in which HTML looks for <meta charset>
_META = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_CHARSET = re.compile(rb"""(?im)^content-type:[^\r\n]*charset\s*=\s*["']?([\w.:-]+)""")
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_URL = re.compile(r"[\s,]*(\S+)")
_SIZE = re.compile(r"\d{1,9}(?:\.\d{1,9})?[wx]")


def images_of(record: Record) -> tuple[Page, list[Image]] | str:
    """A page and its images in document order, or why there are none."""
    head, _, body = record.content.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        return UNREADABLE
    if b"<img" not in body and b"<IMG" not in body and b"<Img" not in body:
        return UNREADABLE if body[:2] == b"\x1f\x8b" else NO_IMAGE  # Common Crawl stores pages decompressed
    tree = LexborHTMLParser(_text(head, body))
    base = tree.css_first("base[href]")
    images = [_image(node) for node in tree.css("img")]
    page = Page(record.url, (base.attributes.get("href") or "") if base else None)
    return (page, images) if images else NO_IMAGE


def _image(node: LexborNode) -> Image:
    attributes = node.attributes
    sizes = [(attributes.get(name) or "").strip().removesuffix("px") for name in ("width", "height")]
    sets = [attributes.get(name) for name in ("srcset", *LAZY_SETS)]
    if node.parent is not None and node.parent.tag == "picture":
        for source in node.parent.css("source"):
            sets += [source.attributes.get(name) for name in ("srcset", *LAZY_SETS)]
    url = largest(", ".join(s for s in sets if s)) or _lazy(attributes) or attributes.get("src")
    return Image(url, attributes.get("alt"), all(size in ("0", "1") for size in sizes))


def _lazy(attributes: dict[str, str | None]) -> str | None:
    return next((value for name in LAZY if (value := attributes.get(name))), None)


def largest(srcset: str) -> str | None:
    """Of a srcset the URL with the most pixels: by width in px (w), else by density (x); the first of equals."""
    found = list(_candidates(srcset))
    wide = [entry for entry in found if entry[2] == "w"]
    return max(wide or found, key=lambda entry: entry[1])[0] if found else None


def _candidates(srcset: str) -> Iterator[tuple[str, float, str]]:
    """URL, number and unit of each; without descriptor 1x. HTML's algorithm "parse a srcset attribute"."""
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
    """Decoded as browsers do: by byte order mark, HTTP header, <meta>; else UTF-8 if it is that, else windows-1252."""
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
