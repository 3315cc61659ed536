"""Files that a run might have been meant to read and doesn't: gathered while it is planned, to be in its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

EXAMPLES = 3  # files that are named

_gathered: ContextVar[dict[tuple[str, str], Unread] | None] = ContextVar("_gathered", default=None)


@dataclass(frozen=True)
class Unread:
    """Files of one place that are not read for one reason."""

    place: str
    """Address of the folder or bucket that was listed."""
    reason: str
    count: int
    examples: tuple[str, ...]
    """Paths of the first few, below the place."""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "examples": [*self.examples]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Unread:
        return cls(**{**value, "examples": tuple(value["examples"])})


@contextmanager
def gathering() -> Iterator[dict[tuple[str, str], Unread]]:
    """Gather within it what is left unread, by place and reason: a place may be listed twice, and counts once."""
    found: dict[tuple[str, str], Unread] = {}
    token = _gathered.set(found)
    try:
        yield found
    finally:
        _gathered.reset(token)


def leave_unread(place: str, reason: str, paths: Sequence[str]) -> None:
    """Count files that are not read, if somebody gathers them; who lists them logs them."""
    found = _gathered.get()
    if found is not None and paths:
        found[place, reason] = Unread(place, reason, len(paths), tuple(paths[:EXAMPLES]))
