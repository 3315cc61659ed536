"""HTTP for what a recipe names: a requests session that connects to what the guard lets it, on every redirect."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException, RemoteDisconnected
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from components.base.guard import Guard, Refused
from components.base.version import version

NOT_PUBLIC = {
    "private_address": "its host has no public address",
    "port": "its port is neither 80 nor 443",
}
MOST_ADDRESSES = 4  # of a host that are tried, each until the connection's timeout
LEAVE = "on a machine of yours, spec.download.allowNetworks lets it be reached"


def open_session(
    allow_networks: Sequence[str], connections: int, accept: str = "*/*", lifetime: float | None = None
) -> requests.Session:
    """Open a session, for several threads. A proxy of the environment's decides itself whom it connects to.

    Args:
        allow_networks: CIDRs of private networks that may be connected to, on any port.
        connections: Number of connections to one host that are kept open.
        lifetime: Seconds for the head of an answer: a server may send a byte of it now and then.
    """
    session = requests.Session()
    session.headers.update({"User-Agent": f"recaption/{version()}", "Accept": accept, "Accept-Encoding": "identity"})
    given = {"guard": Guard(allow_networks), "lifetime": lifetime}
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(given, pool_maxsize=connections))
    return session


def reason_of(error: BaseException) -> str:
    """Return the reason of an error of requests, whose own text is of its pools; never what a server sent."""
    root = _root_of(error)
    if isinstance(root, HTTPException) and not isinstance(root, RemoteDisconnected):
        return "an answer that is not HTTP"
    return str(root) or type(root).__name__


def mistake_of(error: BaseException) -> str | None:
    """Return in words what is wrong with the address, if an error comes from that."""
    root = _root_of(error)
    if isinstance(root, Refused):
        return f"{NOT_PUBLIC[root.reason]}; {LEAVE}"
    wrong = isinstance(root, ValueError) and not isinstance(root, OSError)  # as a certificate's errors are
    return str(root) if wrong else None


def _root_of(error: BaseException) -> BaseException:
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


class _Guarded(HTTPConnection):
    """Connects to the usable ones of a host's addresses, in their order."""

    guard: Guard
    lifetime: float | None
    _end: threading.Timer | None = None
    _same: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connected = self._connect(self._dns_host, self.port or self.default_port)
        if self.lifetime:
            self._same = socket.socket(fileno=os.dup(connected.fileno()))  # TLS will take the other one over
            self._end = threading.Timer(self.lifetime, _cut, [self._same])
            self._end.daemon = True
            self._end.start()
        return connected

    def close(self) -> None:
        if self._end:
            self._end.cancel()
        if self._same:
            self._same.close()
        super().close()

    def _connect(self, host: str, port: int) -> socket.socket:
        addresses = _addresses(self.guard, host, port)[:MOST_ADDRESSES]
        try:
            for address in addresses[:-1]:
                self.host = address
                try:
                    return super()._new_conn()
                except Exception:  # the next one may answer
                    continue
            self.host = addresses[-1]
            return super()._new_conn()
        finally:
            self.host = host


class _GuardedTls(_Guarded, HTTPSConnection):
    pass


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended
        connection.shutdown(socket.SHUT_RDWR)


def _addresses(guard: Guard, host: str, port: int) -> list[str]:
    """Return a host's addresses that may be connected to. Raises Refused if none may, OSError if it has none."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is too long
        raise socket.gaierror(socket.EAI_NONAME, f"{host}: {error}") from error
    reasons = {str(info[4][0]): guard.refusal(str(info[4][0]), port) for info in found}
    usable = [address for address, reason in reasons.items() if reason is None]
    if not usable:
        raise Refused(next(reason for reason in reasons.values() if reason), host)
    return usable


class _Adapter(HTTPAdapter):  # type: ignore[misc]  # requests has no types
    def __init__(self, given: dict[str, Any], **how: Any) -> None:
        self.given = given
        super().__init__(**how)

    def init_poolmanager(self, *arguments: Any, **how: Any) -> None:
        super().init_poolmanager(*arguments, **how)
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type("Pool", (pool,), {"ConnectionCls": type("Connection", (connection,), self.given)})
            for scheme, pool, connection in (
                ("http", HTTPConnectionPool, _Guarded),
                ("https", HTTPSConnectionPool, _GuardedTls),
            )
        }
