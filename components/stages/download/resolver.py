"""Looks names up for aiohttp, without the addresses that the guard refuses.

So the reason is known before a connection is tried, and a usable address beside refused ones is used; the guard itself
checks the address of every socket.
"""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from components.base.guard import Guard, Refused


class Unresolved(OSError):
    """The name has no address, or no name server could say."""

    def __init__(self, reason: str, host: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.reason = reason


class Resolver(AbstractResolver):
    """Looks names up, without the addresses that are refused."""

    def __init__(self, guard: Guard, names: AbstractResolver) -> None:
        self.guard, self.names = guard, names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        # A final dot keeps a pod's search domains from making a cluster's service of it; a local mirror may be one.
        name = host if self.guard.allowed or host.endswith(".") else f"{host}."
        try:
            found = await self.names.resolve(name, port, family)
        except OSError as error:
            raise Unresolved("dns" if _no_such_name(error) else "dns_failed", host) from error
        if not found:
            raise Unresolved("dns", host)
        reasons = [self.guard.refusal(entry["host"], port) for entry in found]
        usable = [entry for entry, reason in zip(found, reasons, strict=True) if reason is None]
        if not usable:
            raise Refused(next(reason for reason in reasons if reason), host)
        return usable

    async def close(self) -> None:
        await self.names.close()


def _no_such_name(error: OSError) -> bool:
    """Return whether the name has no address: c-ares' ENODATA and ENOTFOUND, getaddrinfo's EAI_NONAME."""
    cause = error.__cause__
    code = cause.args[0] if cause is not None and cause.args else error.errno
    return code in (1, 4) if cause is not None else code == socket.EAI_NONAME
