"""Conditions as Kubernetes defines them (metav1.Condition), and the Events that announce their changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from components.base.printable import printable_lines

Object = dict[str, Any]

LONGEST = 2000  # characters of a message: an etcd object has room for 1.5 MB, a reader for less


@dataclass(frozen=True)
class Event:
    """An Event to be posted about an object."""

    reason: str
    message: str
    warning: bool = False


def condition(thing: Mapping[str, Any], kind: str) -> Object:
    """Return the condition of this type of an object or a status; empty when there is none."""
    status = thing.get("status", thing)
    return next((dict(c) for c in status.get("conditions", ()) if c["type"] == kind), {})


def is_true(thing: Mapping[str, Any], kind: str) -> bool:
    """Return whether the condition of this type is True."""
    return condition(thing, kind).get("status") == "True"


def with_condition(
    status: Object, kind: str, true: bool, reason: str, message: str, generation: int, now: datetime
) -> Object:
    """Set a condition in a status; its transition time moves only when True becomes False or the other way."""
    before = condition(status, kind)
    value = "True" if true else "False"
    since = before["lastTransitionTime"] if before.get("status") == value else timestamp(now)
    lines = printable_lines(message[: 4 * LONGEST])
    text = lines if len(lines) <= LONGEST else lines[: LONGEST - 1] + "…"
    made = {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": text,
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }
    listed = list(status.get("conditions", ()))
    kinds = [c["type"] for c in listed]
    if kind in kinds:
        listed[kinds.index(kind)] = made
    else:
        listed.append(made)
    return {**status, "conditions": listed}


def events(before: Mapping[str, Any], after: Mapping[str, Any], warnings: Sequence[tuple[str, str]]) -> list[Event]:
    """Make an Event of each condition whose status or reason changed. Of two with one reason the warning is kept.

    Args:
        warnings: (type, status) of the conditions whose Event is a warning.
    """
    found = []
    for new in after.get("conditions", ()):
        old = condition(before, new["type"])
        if (old.get("status"), old.get("reason")) != (new["status"], new["reason"]):
            found.append(Event(new["reason"], new["message"], (new["type"], new["status"]) in warnings))
    bad = {event.reason for event in found if event.warning}
    return list(dict.fromkeys(event for event in found if event.warning or event.reason not in bad))


def timestamp(moment: datetime) -> str:
    """Format a moment as Kubernetes does: in seconds and UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Parse an RFC 3339 time."""
    return datetime.fromisoformat(text)
