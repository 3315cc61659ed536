"""X-Robots-Tag: whether the owner of an image doesn't want it used.

A header's value is a list of directives; `agent:` before one makes it and those after it that agent's, up to the next
agent (Google's "Robots meta tag, data-nosnippet, and X-Robots-Tag specifications"). Several headers are independent of
each other. A directive may have a value after a colon, too, and that of `unavailable_after` is a date, with commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "none"}  # `none` is noindex and nofollow
VALUED = {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}
_AGENT = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*|\*")  # a product token: no time of day looks like it


def opted_out(headers: Iterable[str], agent: str) -> bool:
    """Return whether an X-Robots-Tag header has a directive against use, for every agent or for this one."""
    return any(directive in OPT_OUT for header in headers for directive in _directives(header, agent.lower()))


def _directives(header: str, agent: str) -> Iterable[str]:
    """Yield the directives of a header that apply to the agent, in lower case."""
    ours = True
    for part in header.split(","):
        text = part.strip()
        while ":" in text:
            name, _, rest = text.partition(":")
            name = name.strip()
            if name.lower() in OPT_OUT:  # `noai:` is no agent of that name
                text = name
                break
            if name.lower() in VALUED or not _AGENT.fullmatch(name):
                break
            ours = name == "*" or name.lower().partition("/")[0] == agent
            text = rest.strip()
        if ours:
            yield text.lower()
