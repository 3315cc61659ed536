"""Claims: what is to be done once is done by whoever claimed it first.

<storage>/runs/<run>/claim.json          who executes the run
<storage>/schedules/<name>/<dump>.json   who does the dump; never given up
<storage>/claims/<claimant>.json         which run this claimant planned last, and why it could plan none
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from components.base.errors import PermanentError
from components.storage.interface import Storage


def claim(storage: Storage, path: str, by: str) -> str:
    """Claim what `path` stands for, once; who holds it now: `by`, or whoever came first.

    The same claimant may claim again: it is told that it holds it. Of two that race, one wins.
    """
    while not storage.create(path, json.dumps({"by": by}).encode()):
        holder = claimed_by(storage, path)  # us, when the answer to our creation was lost and it was tried again
        if holder is not None:  # else it was given up just now
            return holder
    return by


def claimed_by(storage: Storage, path: str) -> str | None:
    """Who holds a claim; None where nobody does."""
    found = _read(storage, path, "by")
    return str(found["by"]) if found else None


def point(storage: Storage, by: str, run: str) -> None:
    """Keep which run this claimant has planned: how it is found again."""
    storage.write(f"claims/{by}.json", json.dumps({"run": run}).encode())


def planned_by(storage: Storage, by: str) -> str | None:
    """The name of the run that this claimant has planned last; None where it never got so far."""
    found = _read(storage, f"claims/{by}.json", "run")
    return str(found["run"]) or None if found else None


def keep_failure(storage: Storage, by: str, failure: Mapping[str, str]) -> None:
    """Keep why this claimant could plan no run, as `failure_of` says it; what it planned before stays known."""
    record = {"run": planned_by(storage, by) or "", "failure": dict(failure)}
    storage.write(f"claims/{by}.json", json.dumps(record).encode())


def failure_to_plan(storage: Storage, by: str) -> dict[str, str]:
    """Return why this claimant's last attempt to plan a run failed; empty where it didn't fail."""
    failure = (_read(storage, f"claims/{by}.json", "run") or {}).get("failure")
    return failure if isinstance(failure, dict) else {}


def _read(storage: Storage, path: str, key: str) -> dict[str, Any] | None:
    """None where there is no such file. Raises PermanentError: it is none of ours, for it has no such key."""
    if storage.size(path) is None:
        return None
    try:
        found = json.loads(storage.read(path))
        return {**found, key: found[key]}
    except (ValueError, TypeError, KeyError) as error:
        expected = json.dumps({key: "…"}, ensure_ascii=False)
        raise PermanentError(
            f"{storage.uri}/{path}: expected {expected}; it is none of recaption's: delete it"
        ) from error
