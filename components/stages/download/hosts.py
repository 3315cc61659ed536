"""The state of each host: its places, its pace, and whether it is worth a try.

Candidates wait for their host before they take a slot, so a host with many of them holds up nobody else. One that
fails again and again is closed for a while: its other candidates get the same reason without a try. One that has not
been reached yet is tried by one candidate at a time, so that a dead one costs two connections, not one per candidate.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from components.recipe.sources import Download
from components.stages.download.reasons import Failed

CLOSING = {"dns": 1, "private_address": 1, "port": 1, "tls": 1, "dns_failed": 2, "connect": 2, "timeout": 4}
"""Reason → number of consecutive failures after which a host is closed."""
CLOSED = 300.0  # seconds
LONGEST_PAUSE = 30.0  # seconds; a server that wants us to stay away longer is closed, and left to a re-drive
REMEMBERED = 20_000  # hosts; a shard of 10,000 candidates has some 6,000


@dataclass
class Host:
    """One scheme, name and port."""

    places: asyncio.Semaphore
    pause: float
    """Seconds between two requests."""
    users: int = 0
    """Candidates that are at this host or wait for it."""
    reached: bool = False
    failures: int = 0
    """Consecutive failures by reason."""
    closed_for: str = ""
    closed_until: float = 0.0
    next_at: float = 0.0
    """When the next request may start, by the loop's clock."""
    robots: Any = None
    """The host's rules, once they have been read (robots.py)."""
    robots_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    first: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the host's places; until the host has been reached there is only one."""
        async with self.places:
            if not self.reached:
                await self.first.acquire()
                if self.reached:
                    self.first.release()
            try:
                yield
            finally:
                if not self.reached:
                    self.first.release()

    def connected(self) -> None:
        """Note that the host was reached; called by the first candidate, before it gives its place back."""
        if not self.reached:
            self.reached = True
            self.first.release()

    def check(self) -> None:
        """Raise Failed if the host is closed."""
        if _now() < self.closed_until:
            raise Failed(self.closed_for)

    async def turn(self) -> None:
        """Wait until the host may be asked again."""
        at = max(_now(), self.next_at)
        self.next_at = at + self.pause
        if at > _now():
            await asyncio.sleep(at - _now())

    def answered(self) -> None:
        self.failures = 0

    def failed(self, failure: Failed) -> None:
        """Note a failure; whatever came over HTTP is an answer."""
        if failure.pause > LONGEST_PAUSE:
            self._close(failure.reason)
            return
        self.next_at = max(self.next_at, _now() + failure.pause)
        limit = CLOSING.get(failure.reason)
        if limit is None:
            self.answered()
            return
        self.failures += 1
        if self.failures >= limit:
            self._close(failure.reason)

    def _close(self, reason: str) -> None:
        self.closed_for, self.closed_until, self.failures = reason, _now() + CLOSED, 0


class Hosts:
    """The hosts in use and the REMEMBERED ones used last."""

    def __init__(self, options: Download) -> None:
        self.options = options
        self._hosts: OrderedDict[tuple[str, str | None, int | None], Host] = OrderedDict()

    @contextmanager
    def use(self, url: URL) -> Iterator[Host]:
        """Yield the host of an address, which is not forgotten while it is in use."""
        key = (url.scheme, url.raw_host, url.port)
        host = self._hosts.pop(key, None) or self._make()
        self._hosts[key] = host
        host.users += 1
        try:
            yield host
        finally:
            host.users -= 1
            self._forget()

    def _make(self) -> Host:
        return Host(asyncio.Semaphore(self.options.per_host_connections), 1 / self.options.per_host_rate)

    def _forget(self) -> None:
        while len(self._hosts) > REMEMBERED:
            key, host = next(iter(self._hosts.items()))
            if host.users:
                return  # more are in use than are to be remembered
            del self._hosts[key]


def _now() -> float:
    return asyncio.get_running_loop().time()
