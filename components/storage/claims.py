"""Claims: a run or a dump is worked on by one process only, the first one that claimed it.

<storage>/runs/<run>/claim.json          who executes the run
<storage>/schedules/<name>/<dump>.json   who does the dump; never given up
<storage>/claims/<claimant>.json         which run this claimant planned last, and why it could not plan one
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from components.base.errors import PermanentError
from components.base.printable import printable
from components.storage.interface import Storage
from components.storage.small_files import read_small_json

MOST = 64 << 10  # bytes of a claim's file
LONGEST = 8000  # characters of a failure's message, of which each may take six bytes


def claim(storage: Storage, path: str, by: str) -> str:
    """Claim the work that `path` stands for and return who holds the claim: `by`, or the claimant that came first.

    A claimant may claim the same work again and is told that it holds the claim. If two claim at once, one wins.
    """
    while not storage.create(path, json.dumps({"by": by}).encode()):
        holder = claimed_by(storage, path)  # us, when the answer to our creation was lost and it was tried again
        if holder is not None:  # else it was given up just now
            return holder
    return by


def claimed_by(storage: Storage, path: str) -> str | None:
    """Return who holds a claim; None if nobody does."""
    found = _read(storage, path, "by")
    return str(found["by"]) if found else None


def point(storage: Storage, by: str, run: str) -> None:
    """Record which run this claimant has planned, so that it is found again."""
    storage.write(f"claims/{by}.json", json.dumps({"run": run}).encode())


def planned_by(storage: Storage, by: str) -> str | None:
    """Return the name of the run that this claimant planned last; None if it has not planned one."""
    found = _read(storage, f"claims/{by}.json", "run")
    return str(found["run"]) or None if found else None


def keep_failure(storage: Storage, by: str, failure: Mapping[str, str]) -> None:
    """Record why this claimant could not plan a run, as `failure_of` says it; keep the run it planned before."""
    said = {key: printable(value, LONGEST) for key, value in failure.items()}
    record = {"run": planned_by(storage, by) or "", "failure": said}
    storage.write(f"claims/{by}.json", json.dumps(record).encode())


def failure_to_plan(storage: Storage, by: str) -> dict[str, str]:
    """Return why this claimant's last attempt to plan a run failed; empty if it did not fail."""
    failure = (_read(storage, f"claims/{by}.json", "run") or {}).get("failure")
    return failure if isinstance(failure, dict) else {}


def _read(storage: Storage, path: str, key: str) -> dict[str, Any] | None:
    """Read a claim's file; None if there is none.

    Raises:
        PermanentError: the file lacks this key or is too large, so recaption has not written it.
    """
    try:
        found = read_small_json(storage, path, MOST)
        return None if found is None else {**found, key: found[key]}
    except (ValueError, TypeError, KeyError) as error:
        expected = json.dumps({key: "…"}, ensure_ascii=False)
        raise PermanentError(
            f"{storage.uri}/{path}: expected {expected}; recaption did not write this file: delete it"
        ) from error
