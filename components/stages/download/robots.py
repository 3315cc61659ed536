"""robots.txt (RFC 9309), read once per host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from protego import Protego
from yarl import URL

from components.recipe.sources import AGENT
from components.stages.download.hosts import Host
from components.stages.download.reasons import Failed

LIMIT = 500 << 10  # bytes; RFC 9309 asks for this much at least

Read = Callable[[URL, int], Awaitable[bytes]]
"""Called with an address and the most bytes to read; returns its content, or raises Failed."""


async def check_robots(url: URL, host: Host, read: Read) -> None:
    """Raise Failed if the host's rules disallow an address, or can't be read.

    Protego reads the rules as RFC 9309 says (the longest match wins; `*` and `$`); the standard library's parser knows
    no wildcards and takes the first match.
    """
    async with host.robots_lock:
        if host.robots is None:
            found = await _rules(url, read)
            if isinstance(found, Failed) and found.spent:
                raise found  # the next candidate has more time to read them
            host.robots = found
    if isinstance(host.robots, Failed):
        raise Failed(host.robots.reason)
    if not host.robots.can_fetch(str(url), AGENT):
        raise Failed("robots")


async def _rules(url: URL, read: Read) -> Protego | Failed:
    """Read a host's rules (RFC 9309, 2.3.1): without a file (any 4xx) all is allowed; if the server fails, nothing."""
    try:
        text = (await read(url.origin() / "robots.txt", LIMIT)).decode("utf-8", "replace")
    except Failed as failure:
        if failure.reason in ("http_5xx", "http_429"):
            return Failed("robots_failed")
        if failure.reason in ("http_403", "http_404", "http_4xx", "http_other", "redirects"):
            text = ""
        else:
            return failure  # the image would fail by the same reason
    return Protego.parse(text)
