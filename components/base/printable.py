"""Text that others wrote, made fit for a terminal, a log, a page and a message."""

from __future__ import annotations

import re

_SPACES = re.compile("[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]")
_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]")


def printable(text: str, longest: int | None = None) -> str:
    """Return the text in one line, without what a terminal would obey or nobody would see.

    Ends of lines and tabs become spaces. Other control characters, marks that turn the direction of writing, and
    halves of surrogate pairs are left out.

    Args:
        longest: characters kept; a longer text ends in `…`. None: all.
    """
    cut = text if longest is None else text[: 4 * longest]  # nobody needs a megabyte cleaned to see a line of it
    clean = _HIDDEN.sub("", _SPACES.sub(" ", cut))
    if longest is None or (len(clean) <= longest and len(cut) == len(text)):
        return clean
    return clean[: longest - 1] + "…"


def printable_lines(text: str) -> str:
    """Return a text of several lines, each as `printable` gives it."""
    return "\n".join(map(printable, text.split("\n")))
