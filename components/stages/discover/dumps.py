"""Common Crawl's dumps, newest first, and the claims by which each is done at most once per schedule.

The index is `collinfo.json` as index.commoncrawl.org serves it: a list of objects with an `id` such as
CC-MAIN-2026-43 (year and week).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout

from components.base.errors import PermanentError, TemporaryError
from components.base.printable import printable
from components.base.version import version
from components.recipe.sources import INDEX
from components.storage.claims import claimed_by
from components.storage.interface import Storage
from components.storage.opening import open_object

log = logging.getLogger(__name__)

FILE = "collinfo.json"
DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2}")  # the first three, CC-MAIN-2008-2009, 2009-2010 and 2012, are ARC files
ATTEMPTS = 4
PAUSE = 2.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 20.0  # seconds of one attempt
LONGEST = 60.0  # seconds of all attempts
LIMIT = 512 << 10  # bytes; the real index has some 30 kB, and Python's objects take fifty times a file's bytes


def list_dumps(index: str = INDEX) -> list[str]:
    """List the dumps of an index, newest first.

    Args:
        index: Base address (https://…, gs://… or a folder) of collinfo.json, or the file itself.

    Raises:
        PermanentError: there is no such index, or it is none.
        TemporaryError: it can't be reached, after four attempts.
    """
    uri = index if index.endswith(".json") else f"{index.rstrip('/')}/{FILE}"
    data = _fetch(uri) if uri.startswith(("https://", "http://")) else _read(uri)
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


def _fetch(url: str) -> bytes:
    """Get a file of the web. It has LONGEST seconds in all, however slowly its server sends."""
    end = time.monotonic() + LONGEST
    try:
        host, _ = (parts := urlsplit(url)).hostname or "", parts.port
        if not host.encode("idna") or re.search(r"\s", url):
            raise ValueError("no address of a server")
    except ValueError as error:  # of a label that is too long, of a port that is no number
        raise PermanentError(f"dumps {url}: {error}; give the base address of a {FILE}") from error
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return asyncio.run(_get(url, min(TIMEOUT, end - time.monotonic())))
        except TimeoutError:
            reason = f"no end of its answer within {TIMEOUT:.0f} s"
        except (ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
        pause = PAUSE * 2 ** (attempt - 1)
        if attempt == ATTEMPTS or time.monotonic() + pause >= end:
            break
        log.warning("dumps %s: attempt %d of %d: %s; again in %.0f s", url, attempt, ATTEMPTS, reason, pause)
        time.sleep(pause)
    raise TemporaryError(f"dumps {url}: {reason}, after {attempt} attempts")


async def _get(url: str, seconds: float) -> bytes:
    """Make one request. Raises PermanentError for an answer that asking again doesn't mend."""
    headers = {"User-Agent": f"recaption/{version()}", "Accept": "application/json"}
    async with (
        ClientSession(timeout=ClientTimeout(total=seconds), headers=headers, trust_env=True) as session,
        session.get(url) as answer,
    ):
        reason = f"{answer.status} {printable(answer.reason or '', 80)}"
        if answer.status in (408, 429) or answer.status >= 500:
            raise ClientError(reason)
        if answer.status >= 400:
            raise PermanentError(f"dumps {url}: {reason}; give the base address of a {FILE}")
        data = bytearray()
        async for part in answer.content.iter_any():
            data += part
            if len(data) > LIMIT:
                break
        return bytes(data)
