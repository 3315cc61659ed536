"""One address to the bytes it stands for, or a reason: attempts, redirects, limits.

aiohttp is the client: it keeps connections, parses HTTP in C, and lets us choose the address and open the socket of
every connection. Redirects are followed here, so that each one passes all checks anew; bodies come as they
were sent, so that nothing is unpacked without a limit; the environment's proxies and .netrc are ignored.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import AsyncResolver
from yarl import URL

from components.base.guard import Guard, Refused
from components.recipe.sources import AGENT, Download
from components.stages.download.deadline import Deadline
from components.stages.download.encoding import unpacked
from components.stages.download.hosts import LONGEST_PAUSE, Host, Hosts
from components.stages.download.optout import opted_out
from components.stages.download.reasons import REASONS, Failed, of_status
from components.stages.download.resolver import Resolver, Unresolved
from components.stages.download.retry_after import seconds_of
from components.stages.download.robots import check_robots
from components.stages.download.slots import PATIENCE, SMALL, Slot, Slots
from components.stages.download.urls import parse_url

log = logging.getLogger(__name__)

REDIRECTS = 5
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one, evenly drawn from 0 up to it
DRAINED = 16 << 10  # bytes of an answer without an image that are read, so that its connection can be used again
DNS_KEPT = 300  # seconds
LONGEST_HEADER = 32 << 10  # bytes, of 128 headers at most; servers send policies and cookies of more than 8 kB
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # a byte of a header that is no UTF-8, as Python decodes it
HEADERS = {
    "Accept": "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, */*;q=0.1",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True)
class Fetched:
    """The answer of an address with status 200."""

    data: bytes
    status: int


class Fetcher:
    """The client of one event loop."""

    def __init__(self, options: Download, slots: Slots, names: AbstractResolver | None = None) -> None:
        """Make a client. `names` looks names up; None asks the system's name servers."""
        self.options, self.slots = options, slots
        self.hosts = Hosts(options)
        guard = Guard(options.allow_networks)
        trace: aiohttp.TraceConfig = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_connection_reuseconn.append(_connected)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # slots and hosts count
                resolver=Resolver(guard, names or AsyncResolver(timeout=options.connect_timeout / 4, tries=2)),
                socket_factory=guard.open_socket,
                ttl_dns_cache=DNS_KEPT,
                ssl=ssl.create_default_context(),
            ),
            timeout=aiohttp.ClientTimeout(connect=options.connect_timeout, sock_read=options.read_timeout),
            headers=HEADERS | {"User-Agent": options.user_agent},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            trace_configs=[trace],
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, address: str, slot: Slot) -> Fetched:
        """Fetch the bytes of an image; the slot is held when they are returned.

        Raises:
            Failed: after the last attempt, or when the candidate's time is over.
        """
        url, deadline = parse_url(address), Deadline(self.options.timeout)
        for attempt in range(1, self.options.retries + 2):
            try:
                return await self._follow(url, slot, deadline, self.options.max_bytes, self.options.robots)
            except Failed as failure:
                slot.release()
                pause = max(random.uniform(0, PAUSE * 2 ** (attempt - 1)), failure.pause)
                last = attempt > self.options.retries or not REASONS[failure.reason].again
                if last or pause > LONGEST_PAUSE or pause >= deadline.left:
                    raise
                log.debug("%s: attempt %d: %s; again in %.1f s", url, attempt, failure.reason, pause)
            deadline.left -= pause
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, url: URL, slot: Slot, deadline: Deadline, limit: int, robots: bool) -> Fetched:
        for _ in range(REDIRECTS + 1):
            found = await self._hop(url, slot, deadline, limit, robots)
            if isinstance(found, Fetched):
                return found
            slot.release()
            url = found
        raise Failed("redirects")

    async def _hop(self, url: URL, slot: Slot, deadline: Deadline, limit: int, robots: bool) -> Fetched | URL:
        """Make one request; return its answer, or the address that it redirects to."""
        with self.hosts.use(url) as host:
            await asyncio.sleep(0)  # so that all who begin now are counted as its users
            host.check()
            if robots:
                await check_robots(url, host, partial(self._read, deadline))
            async with host.place():
                host.check()
                await host.turn()
                host.check()
                await slot.take(0.0 if host.failures else PATIENCE)
                try:
                    found = await self._request(url, host, slot, deadline, limit)
                except Failed as failure:
                    if not failure.spent:
                        host.failed(failure)
                    raise
                host.answered()
                return found

    async def _read(self, deadline: Deadline, url: URL, limit: int) -> bytes:
        """Fetch a robots.txt."""
        with Slot(self.slots) as slot:
            return (await self._follow(url, slot, deadline, limit, robots=False)).data

    async def _request(self, url: URL, host: Host, slot: Slot, deadline: Deadline, limit: int) -> Fetched | URL:
        headers = {} if host.users > 1 else {"Connection": "close"}  # nobody would use it again
        spent = not deadline.is_whole
        try:
            async with (
                deadline.running() as timer,
                self._session.get(
                    url, headers=headers, allow_redirects=False, trace_request_ctx=(slot, host), proxy=None
                ) as answer,
            ):
                return await self._answer(answer, slot, limit, timer)
        except Failed:
            raise
        except Exception as error:
            if spent and not deadline.left:
                raise Failed("timeout", spent=True) from error
            raise Failed(_reason_of(error, url, slot.connected)) from error

    async def _answer(
        self, answer: aiohttp.ClientResponse, slot: Slot, limit: int, timer: asyncio.Timeout
    ) -> Fetched | URL:
        redirect = answer.status in (301, 302, 303, 307, 308)
        image = answer.status == 200 or redirect  # pages of errors are `noindex` by custom
        if image and opted_out(answer.headers.getall("X-Robots-Tag", ()), AGENT):
            raise Failed("opted_out", answer.status)
        if answer.status == 200:
            data = await self._body(answer, slot, limit, timer)
            encodings = ",".join(answer.headers.getall("Content-Encoding", ()))
            return Fetched(await unpacked(data, encodings, limit), answer.status)
        if answer.content_length is not None and answer.content_length <= DRAINED:
            await answer.read()
        if redirect:
            target = answer.headers.get("Location")
            if not target:
                raise Failed("redirects", answer.status)
            return parse_url(_NO_UTF8.sub(lambda byte: f"%{ord(byte[0]) & 0xFF:02X}", target), answer.url)
        reason = of_status(answer.status)
        pause = seconds_of(answer.headers.get("Retry-After", "")) if REASONS[reason].again else 0.0
        raise Failed(reason, answer.status, pause)

    async def _body(self, answer: aiohttp.ClientResponse, slot: Slot, limit: int, timer: asyncio.Timeout) -> bytes:
        if (answer.content_length or 0) > limit:
            raise Failed("too_large", answer.status)
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise Failed("too_large", answer.status)
            if len(body) > SMALL and not slot.large:
                began, end = asyncio.get_running_loop().time(), timer.when() or 0.0
                timer.reschedule(None)  # the server isn't to blame for the wait
                await slot.enlarge()
                timer.reschedule(end + asyncio.get_running_loop().time() - began)
        return bytes(body)


async def _connected(_session: object, context: SimpleNamespace, _params: object) -> None:
    slot, host = context.trace_request_ctx
    slot.connect()
    host.connected()


def _reason_of(error: Exception, url: URL, connected: bool) -> str:
    """Translate an exception of aiohttp's into one of our reasons."""
    cause = getattr(error, "os_error", None)
    match error:
        case aiohttp.ClientConnectorError() if isinstance(cause, (Refused, Unresolved)):
            return cause.reason
        case TimeoutError():
            return "timeout" if connected else "connect"
        case aiohttp.ClientSSLError():
            return "tls"
        case aiohttp.ClientConnectorError():
            return "connect"
        case aiohttp.ClientPayloadError():
            return "incomplete"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            return "reset"
        case aiohttp.InvalidURL():
            return "bad_url"
        case aiohttp.ClientError() | ValueError():
            return "bad_response"
    log.warning("%s: %s: %s", url, type(error).__name__, error, exc_info=error)
    return "error"
