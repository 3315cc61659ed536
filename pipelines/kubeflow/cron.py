"""The cron expressions of KFP: six fields, seconds first, as robfig/cron reads them."""

from __future__ import annotations

import re

from components.base.errors import PermanentError

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("seconds", 0, 59, ()),
    ("minutes", 0, 59, ()),
    ("hours", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 6, DAYS),
)
"""Name, lowest, highest, and the names of the values."""
PART = re.compile(r"(?:[*?]|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?")


def check_cron(text: str) -> str:
    """Check a six-field cron expression and return it unchanged.

    Raises:
        PermanentError: it is no cron expression that KFP takes; the message names the field.
    """
    fields = text.split()
    if len(fields) != len(FIELDS):
        expected = ", ".join(name for name, *_ in FIELDS)
        raise PermanentError(f"cron {text!r}: found {len(fields)} fields, expected 6: {expected}; e.g. 0 0 6 * * *")
    for field, (what, low, high, names) in zip(fields, FIELDS, strict=True):
        for part in field.split(","):
            match = PART.fullmatch(part)
            if not match or not _fits(match, low, high, names):
                raise PermanentError(f"cron {text!r}: {what}: found {part}, expected {low} to {high}, *, a-b or */n")
    return text


def _fits(match: re.Match[str], low: int, high: int, names: tuple[str, ...]) -> bool:
    """Return whether a part's numbers are in their range and in order."""
    first, last = (_number(match[group], low, names) for group in ("first", "last"))
    given = [value for value in (first, last) if value is not None]
    ordered = first is None or last is None or first <= last
    return ordered and all(low <= value <= high for value in given) and match["step"] != "0"


def _number(text: str | None, low: int, names: tuple[str, ...]) -> int | None:
    """Return the value of a number or of a name such as `mon`; -1 for what is neither."""
    if text is None:
        return None
    if text.lower() in names:
        return names.index(text.lower()) + low
    return int(text) if text.isdecimal() else -1
