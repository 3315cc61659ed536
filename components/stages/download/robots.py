"""robots.txt (RFC 9309), read once per host."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from protego import Protego
from yarl import URL

from components.recipe.sources import AGENT
from components.stages.download.hosts import Host
from components.stages.download.reasons import Failed

LIMIT = 500 << 10  # bytes; RFC 9309 asks for this much at least
MOST_RULES = 2000  # for us; a match takes up to 50 µs of the event loop's time for each
_AGENT = re.compile(r"\s*user(?:-|\s*)agent\s*(?::|\s|$)([^#]*)", re.IGNORECASE)  # in any form that Protego takes
_RULE = re.compile(r"\s*(?:dis)?allow\s*:", re.IGNORECASE)
NOBODY = "User-agent: -"

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
    return await asyncio.to_thread(_parsed, text)


def _parsed(text: str) -> Protego | Failed:
    """Parse the rules for us. Protego keeps a copy of each rule for each agent, so it sees no others' rules."""
    kept: list[str] = []
    rules, ours, closed = 0, False, False
    for line in text.splitlines():
        agent = _AGENT.match(line)
        if agent and closed:
            ours = closed = False
        if agent and _is_ours(agent[1]):
            ours = True
        elif agent:
            line = NOBODY
        else:
            closed = closed or bool(_RULE.match(line))
            rules += ours and bool(line.strip())
        if (agent or ours) and kept[-1:] != [line]:
            kept.append(line)
        if rules > MOST_RULES:
            return Failed("too_large")
    return Protego.parse("\n".join(kept))


def _is_ours(name: str) -> bool:
    """Return whether an agent's name is for us, as Protego reads it: all agents, or our name's beginning."""
    name = name.strip().lower()
    return name == "*" or any(some and AGENT.startswith(some) for some in (name, name.replace("*", "")))
