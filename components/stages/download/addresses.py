"""Which addresses may be connected to: public ones, on the web's ports.

The check is made on the very address that a socket is about to connect to (`Guard.open_socket`), after DNS and on every
redirect, so a name that resolves differently the next time gains nothing. The resolver only drops refused addresses
earlier, so that the reason is known and a usable one beside them is used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

PORTS = (80, 443)

REFUSED_4 = [
    ip_network(network)
    for network in (  # IANA's special-purpose registry; with it multicast, class E and broadcast
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; 100.100.100.200 is Alibaba's metadata
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # 192.0.0.192 is Oracle's metadata
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        # public by number, private in practice
        "168.63.129.16/32",  # Azure's host agent, from inside a virtual machine
        "34.118.224.0/20",  # GKE's default range for a cluster's services
    )
]
GLOBAL_6 = ip_network("2000::/3")  # IANA gives out nothing else as global unicast
REFUSED_6 = [
    ip_network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them, which embeds IPv4 addresses
        "2001:db8::/32",
        "2002::/16",  # 6to4 embeds IPv4 addresses, too; its relays are gone (RFC 7526)
        "3fff::/20",
    )
]
NAT64 = ip_network("64:ff9b::/96")
CLUSTER = "KUBERNETES_SERVICE_HOST"  # set in every pod: its API server


class Refused(OSError):
    """This address is not to be connected to; `reason` is one of reasons.py."""

    def __init__(self, reason: str, address: str) -> None:
        super().__init__(f"{address}: {reason}")
        self.reason = reason


class Unresolved(OSError):
    """The name has no address, or no name server could say."""

    def __init__(self, reason: str, host: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.reason = reason


class Guard:
    """Decides which addresses may be connected to."""

    def __init__(self, allow_networks: Sequence[str] = ()) -> None:
        self.allowed = [ip_network(network) for network in allow_networks]
        self.cluster = set()
        with suppress(ValueError):  # not in a pod, or a name
            self.cluster.add(ip_address(os.environ.get(CLUSTER, "")))

    def refusal(self, address: str, port: int) -> str | None:
        """Return why an address is not to be connected to; None if it may be. What is no address is refused, too."""
        try:
            ip = _plain(ip_address(address))
        except ValueError:
            return "private_address"
        if any(ip in network for network in self.allowed):
            return None
        if ip in self.cluster or _special(ip):
            return "private_address"
        return None if port in PORTS else "port"

    def open_socket(self, info: Any) -> socket.socket:
        """Open a socket for an entry of getaddrinfo's: called before each connection. Raises Refused."""
        family, kind, protocol, _, address = info
        reason = self.refusal(address[0], address[1])
        if reason:
            raise Refused(reason, address[0])
        return socket.socket(family, kind, protocol)


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


def numeric_host(host: str) -> str | None:
    """Return the address that a host of digits stands for, whatever its spelling; None for a name.

    Browsers read 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1, as inet_aton does: a host whose last label is a number
    is an address (WHATWG's URL standard, "ends in a number"). Raises ValueError where it is none.
    """
    last = host.removesuffix(".").rpartition(".")[2].lower()
    if not (last.isascii() and (last.isdigit() or last.startswith("0x"))):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
    except OSError as error:
        raise ValueError(f"{host}: ends in a number, but is no IPv4 address") from error


def _plain(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address embeds, if it is mapped or translated; else the address itself."""
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped:
            return ip.ipv4_mapped
        if ip in NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def _special(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv4Address):
        return any(ip in network for network in REFUSED_4)
    return ip not in GLOBAL_6 or any(ip in network for network in REFUSED_6)


def _no_such_name(error: OSError) -> bool:
    """Return whether the name has no address: c-ares' ENODATA and ENOTFOUND, getaddrinfo's EAI_NONAME."""
    cause = error.__cause__
    code = cause.args[0] if cause is not None and cause.args else error.errno
    return code in (1, 4) if cause is not None else code == socket.EAI_NONAME
