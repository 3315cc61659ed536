"""Which (URL, text) pairs become candidates, and the reason of each that doesn't.

As little is decided as for DataComp's CommonPool, whose extractor (cc2dataset) keeps every http(s) image with a
non-empty alt text: what is left out beyond that can't be fetched or is no text.
"""

from __future__ import annotations

import hashlib
import html
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from urllib.parse import urljoin

MOST_URL = 2083  # characters; what browsers' and CDNs' limits have in common
MOST_TEXT = 4096  # characters; CLIP reads some 300 of them. Cutting would make another text, so it is dropped

# Why a candidate is dropped
NO_URL = "no url"
DATA_URI = "data uri"
BAD_URL = "bad url"
OTHER_SCHEME = "other scheme"
LONG_URL = "long url"
PIXEL = "tracking pixel"
NO_TEXT = "no text"
LONG_TEXT = "long text"

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DOT_SEGMENT = re.compile(r"/\.{1,2}(?:/|$)")
_HOST = re.compile(r"https?://[^/?#\s\\]+", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class Image(NamedTuple):
    """An image as a page names it."""

    url: str | None
    text: str | None
    pixel: bool = False
    """Whether the page says that it is 1 × 1."""


@dataclass
class Page:
    """A page's address, from which its relative URLs start."""

    url: str
    base: str | None = None
    """The href of its <base>, itself relative to `url`."""
    last: tuple[str, str] = ("", NO_URL)
    """The URL that was resolved last, and its answer: all images of a <picture> share its longest URL."""

    @cached_property
    def start(self) -> str:
        """Base of the relative URLs. A <base> that is no URL is ignored, as browsers do."""
        if not self.base:
            return self.url
        try:
            joined = urljoin(self.url, self.base.strip())
        except ValueError:
            return self.url
        return joined if _HOST.match(joined) else self.url

    @cached_property
    def folder(self) -> str:
        """`start` up to its path's last slash: a relative URL has nothing of what comes after it."""
        found = _HOST.match(self.start)
        if not found:
            return self.start
        path = re.split("[?#]", self.start, maxsplit=1)[0]
        return path[: path.rfind("/", found.end()) + 1] or path

    @cached_property
    def origin(self) -> str:
        """Return `https://host:port` of `start`; empty where it has none."""
        found = _HOST.match(self.start)
        return found[0] if found else ""


def candidate(page: Page, image: Image) -> tuple[str, str] | str:
    """Return the absolute URL and the text of an image, or the reason why it is no candidate."""
    url = resolve(page, image.url or "")
    if not url.startswith("http"):  # a reason
        return url
    if image.pixel:
        return PIXEL
    text = clean_text(image.text or "")
    if not text:
        return NO_TEXT
    return (url, text) if len(text) <= MOST_TEXT else LONG_TEXT


def resolve(page: Page, url: str) -> str:
    """Return the absolute http(s) URL, without its fragment, or the reason why there is none.

    An absolute URL stays as it is, as in cc2dataset; a relative one is joined as RFC 3986 and urllib.parse.urljoin
    do, a backslash in its path counting as a slash, as browsers take it.
    """
    if url is not page.last[0]:
        page.last = url, _resolve(page, url)
    return page.last[1]


def _resolve(page: Page, url: str) -> str:
    if not url.isprintable() or url[:1] == " " or url[-1:] == " ":
        url = _CONTROL.sub("", url).strip()  # browsers ignore line breaks and tabs in a URL
    url = unescape(url).partition("#")[0]
    if not url:
        return NO_URL
    if not url.startswith(("http://", "https://")):
        if url[:5].lower() == "data:":
            return DATA_URI
        if url[:5].lower() not in ("http:", "https") and _SCHEME.match(url):
            return OTHER_SCHEME
        url = _join(page, url)
    if len(url) > MOST_URL or url is LONG_URL:
        return LONG_URL
    if not _HOST.match(url) or "\ufffd" in url:  # a character of the page's that nobody could decode
        return BAD_URL
    return url


def _join(page: Page, url: str) -> str:
    """Join as urljoin does, but quickly where the result is the same (urljoin drops a ? or ; with nothing after it)."""
    if "\\" in url:
        path, mark, query = url.partition("?")
        url = path.replace("\\", "/") + mark + query
    if _HOST.match(url):
        scheme, _, rest = url.partition(":")
        return f"{scheme.lower()}:{rest}"
    rooted = url[0] == "/" and url[1:2] != "/" and bool(page.origin)
    start = page.origin if rooted else page.start if url[0] in "/?;" else page.folder
    if url[:2] == "//" and len(start) > MOST_URL:
        start = page.origin  # for its scheme
    if len(start) > MOST_URL:
        return LONG_URL
    if rooted and not _DOT_SEGMENT.search(url.partition("?")[0]):
        return start + url
    try:
        return urljoin(start, url)
    except ValueError:  # brackets that are no IPv6 address
        return BAD_URL


def clean_text(text: str) -> str:
    """Decode entities, and turn runs of white space and control characters into one space.

    Letters that were decoded with the wrong charset stay as they are, and so does U+FFFD.
    """
    text = unescape(text)
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    return " ".join(text.split())


def unescape(text: str) -> str:
    """Decode complete entities (`&copy=1` in a URL is none). Common Crawl's WAT files have them decoded since July
    2019; what is left there was escaped twice."""
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def uid_of(url: str, text: str) -> bytes:
    """Return the 16 bytes of the MD5 of text and URL, in hexadecimal the uid of cc2dataset and so of CommonPool."""
    return hashlib.md5((text + url).encode("utf-8", "replace"), usedforsecurity=False).digest()
