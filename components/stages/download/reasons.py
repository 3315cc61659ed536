"""Why a candidate has no image: a fixed vocabulary, the `error_message` of the shard's parquet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """A kind of failure."""

    meaning: str
    transient: bool = False
    """May pass within days: what a re-drive of `transient` tries again."""
    again: bool = False
    """May pass within seconds: tried again at once, as often as the options say."""
    resize: bool = False
    """The bytes arrived: status `failed_to_resize`, else `failed_to_download`."""


REASONS = {
    "bad_url": Reason("no http(s) address with a host, or one with a user or a password"),
    "private_address": Reason("the host is, or its name resolves to, an address that is not public"),
    "port": Reason("another port than 80 and 443"),
    "dns": Reason("no such name, or a name without an address"),
    "dns_failed": Reason("the name servers don't answer", transient=True, again=True),
    "connect": Reason("nobody answers at the address, or refuses", transient=True),
    "tls": Reason("no TLS, or a certificate that is not valid for the host"),
    "timeout": Reason("connected, but too slow, with its redirects and further attempts", transient=True),
    "reset": Reason("the connection broke before the answer", transient=True, again=True),
    "incomplete": Reason("the connection broke within the image", transient=True, again=True),
    "bad_response": Reason("an answer that is not HTTP, or has a header of more than 32 KiB"),
    "redirects": Reason("more than 5 redirects, or one without a target"),
    "robots": Reason("robots.txt disallows it"),
    "robots_failed": Reason("robots.txt can't be had, so everything is disallowed (RFC 9309)", transient=True),
    "opted_out": Reason("X-Robots-Tag: noai, noimageai, noindex, noimageindex or none"),
    "http_403": Reason("HTTP 401, 402, 403, 407 or 451: not for us"),
    "http_404": Reason("HTTP 404 or 410: gone"),
    "http_429": Reason("HTTP 429: too many requests", transient=True, again=True),
    "http_4xx": Reason("another HTTP status from 400 to 499"),
    "http_5xx": Reason("HTTP status of 500 and more", transient=True, again=True),
    "http_other": Reason("an HTTP status that brings no image"),
    "too_large": Reason(
        "more bytes than the options allow, as sent or unpacked; or a robots.txt of more than 500 KiB or 2,000 rules"
    ),
    "encoding": Reason("a Content-Encoding that was not asked for and can't be undone"),
    "error": Reason("an error in recaption; the log has its traceback", transient=True),
    "empty": Reason("an answer of no bytes", resize=True),
    "not_image": Reason("no JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF", resize=True),
    "corrupt": Reason("an image that can't be decoded", resize=True),
    "truncated": Reason("an image that ends too early", resize=True),
    "too_many_pixels": Reason("more than 2²⁶ pixels, or more than decode in 512 MiB", resize=True),
    "too_many_scans": Reason("a JPEG whose scans have more than 2³⁰ pixels together", resize=True),
    "too_small": Reason("an image one pixel wide or high", resize=True),
    "crashes_decoder": Reason("an image that kills the process that decodes it", resize=True),
}

FORBIDDEN, GONE = (401, 402, 403, 407, 451), (404, 410)


class Failed(Exception):
    """A candidate's failure."""

    def __init__(self, reason: str, status: int | None = None, pause: float = 0.0, spent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        """The HTTP status, where one arrived."""
        self.pause = pause
        """Seconds that the server wants us to stay away."""
        self.spent = spent
        """Whether earlier requests had used the candidate's time, so that this failure isn't the server's."""


def of_status(status: int) -> str:
    """Return the reason for an HTTP status other than 200."""
    if status in FORBIDDEN:
        return "http_403"
    if status in GONE:
        return "http_404"
    if status == 429:
        return "http_429"
    if 400 <= status < 500:
        return "http_4xx"
    return "http_5xx" if status >= 500 else "http_other"
