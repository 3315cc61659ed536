"""Common Crawl's dumps, newest first, and the claims by which each is done at most once per schedule.

The index is `collinfo.json` as index.commoncrawl.org serves it: a list of objects with an `id` such as
CC-MAIN-2026-43 (year and week).
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence

import requests
from urllib3.exceptions import HTTPError

from components.base.addresses import without_login
from components.base.errors import PermanentError, TemporaryError
from components.recipe.sources import INDEX
from components.storage.claims import claimed_by
from components.storage.http import mistake_of, open_session, reason_of
from components.storage.interface import Storage
from components.storage.opening import open_object

log = logging.getLogger(__name__)

FILE = "collinfo.json"
DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2}")  # the first three, CC-MAIN-2008-2009, 2009-2010 and 2012, are ARC files
ATTEMPTS = 4
PAUSE = 2.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 10.0, 30.0  # seconds for a connection and for each read
DEADLINE = 30.0  # seconds for one answer
LIMIT = 512 << 10  # bytes; the real index has some 30 kB, and Python's objects take fifty times a file's bytes


def list_dumps(index: str = INDEX, allow_networks: Sequence[str] = ()) -> list[str]:
    """List the dumps of an index, newest first.

    Args:
        index: Base address (https://…, gs://… or a folder) of collinfo.json, or the file itself.
        allow_networks: CIDRs of private networks in which an https:// address may lie.

    Raises:
        PermanentError: there is no such index, or it is none.
        TemporaryError: it can't be reached, after four attempts.
    """
    uri = index if index.endswith(".json") else f"{index.rstrip('/')}/{FILE}"
    data = _fetch(uri, allow_networks) if uri.startswith(("https://", "http://")) else _read(uri)
    if len(data) > LIMIT:
        raise PermanentError(f"dumps {uri}: found more than {LIMIT:,} bytes; expected a {FILE}, some 30 kB")
    try:
        found = {entry["id"] for entry in json.loads(data)}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PermanentError(f"dumps {uri}: expected a JSON list of objects with `id`, as {INDEX} has it") from error
    return sorted((i for i in found if isinstance(i, str) and DUMP.fullmatch(i)), reverse=True)


def unclaimed(storage: Storage, schedule: str, dumps: list[str], by: str, oldest: str = "") -> Iterator[str]:
    """Yield the dumps a schedule may do now: first one that `by` claimed already, then those nobody has claimed.

    Args:
        storage: Where the schedule's claims lie.
        schedule: Name of the schedule.
        dumps: Newest first.
        by: The claimant; asked again after a crash, it is given its own dump first.
        oldest: As for `wanted`.
    """
    claims = claimed(storage, schedule)
    yield from (dump for dump in dumps if dump in claims and claimed_by(storage, claim_path(schedule, dump)) == by)
    yield from (dump for dump in wanted(dumps, oldest) if dump not in claims)


def wanted(dumps: list[str], oldest: str = "") -> list[str]:
    """Return the dumps that a schedule is to do; both lists are newest first.

    Args:
        oldest: Dumps before this one are never done. Empty: only the newest one of the list counts, so that a new
            schedule doesn't begin with years of history.
    """
    return [dump for dump in dumps if dump >= oldest] if oldest else dumps[:1]


def claimed(storage: Storage, schedule: str) -> set[str]:
    """List the dumps that are claimed."""
    paths = (entry.path for entry in storage.list(f"schedules/{schedule}/"))
    return {path.rpartition("/")[2].removesuffix(".json") for path in paths}


def claim_path(schedule: str, dump: str) -> str:
    """Return the path of the claim of a dump by a schedule; the claim outlives every run."""
    return f"schedules/{schedule}/{dump}.json"


def _read(uri: str) -> bytes:
    storage, path = open_object(uri)
    return storage.read(path, 0, LIMIT + 1)


def _fetch(url: str, allow_networks: Sequence[str]) -> bytes:
    advice = f"give the base address of a {FILE}"
    with open_session(allow_networks, 1, "application/json", DEADLINE) as session:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _got(session, url)
            except requests.HTTPError as error:
                reason = f"{error.response.status_code} {error.response.reason}"
                if error.response.status_code not in (408, 429) and error.response.status_code < 500:
                    raise PermanentError(f"dumps {url}: {reason}; {advice}") from error
            except (OSError, HTTPError, ValueError) as error:  # requests' errors are OSErrors
                reason = reason_of(error)
                mistake = mistake_of(error) or (reason if isinstance(error, requests.TooManyRedirects) else None)
                if mistake:
                    raise PermanentError(f"dumps {url}: {mistake}; {advice}") from None
            if attempt < ATTEMPTS:
                pause = PAUSE * 2 ** (attempt - 1)
                said = f"dumps {without_login(url)}: attempt {attempt} of {ATTEMPTS}: {reason}"
                log.warning("%s; again in %.0f s", said, pause)
                time.sleep(pause)
    raise TemporaryError(f"dumps {url}: {reason}, after {ATTEMPTS} attempts")


def _got(session: requests.Session, url: str) -> bytes:
    """Return an answer, or LIMIT bytes of it and more. Raises TimeoutError if it takes longer than DEADLINE."""
    end, data = time.monotonic() + DEADLINE, bytearray()
    with session.get(url, stream=True, timeout=TIMEOUT) as answer:
        answer.raise_for_status()
        while len(data) <= LIMIT:
            some = answer.raw.read1(LIMIT + 1 - len(data))
            if time.monotonic() >= end:  # perhaps it was cut
                raise TimeoutError(f"no end of its answer within {DEADLINE:.0f} s")
            if not some:
                break
            data += some
    return bytes(data)
