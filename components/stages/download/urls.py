"""The address of a candidate, as it will be asked for."""

from __future__ import annotations

import re

from yarl import URL

from components.base.guard import numeric_host
from components.stages.download.reasons import Failed

LONGEST = 8192  # characters; servers refuse more
_CONTROL = re.compile(r"[\0-\x1f\x7f]")
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


def parse_url(text: str, base: URL | None = None) -> URL:
    """Parse an address and put its host in canonical form.

    Args:
        base: What a relative one (of a redirect) is relative to.

    Raises:
        Failed: bad_url.
    """
    text = text.strip()
    try:
        if len(text) > LONGEST or _CONTROL.search(text):
            raise ValueError(text)
        url = URL(text)
        url = base.join(url) if base else url
        if url.scheme not in ("http", "https") or "@" in url.raw_authority or not url.raw_host or not url.port:
            raise ValueError(text)
        return _canonical(url.with_fragment(None))
    except (ValueError, IndexError) as error:  # the latter is yarl's, of http://a[]@
        raise Failed("bad_url") from error


def _canonical(url: URL) -> URL:
    host = url.raw_host or ""
    if ":" in host:
        return url  # an IPv6 address: yarl has parsed it
    address = numeric_host(host)
    if address is None and not _NAME.fullmatch(host.lower()):
        raise ValueError(host)
    return url if address is None else url.with_host(address)
