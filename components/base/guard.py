"""Which addresses may be connected to: public ones of others, on the web's ports.

Everything that we get by HTTP from an address in a recipe or on a page goes by this guard: images, Common Crawl's files
and the list of its dumps. The check is made on the very address that a socket is about to connect to, after DNS and on
every redirect, so a name that resolves differently the next time gains nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

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
        if ip in self.cluster or _special(ip) or _own(str(ip)):
            return "private_address"
        return None if port in PORTS else "port"

    def open_socket(self, info: Any) -> socket.socket:
        """Open a socket for an entry of getaddrinfo's: called before each connection. Raises Refused."""
        family, kind, protocol, _, address = info
        reason = self.refusal(address[0], address[1])
        if reason:
            raise Refused(reason, address[0])
        return socket.socket(family, kind, protocol)


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


def _own(address: str) -> bool:
    """Return whether an address is one of this machine's own interfaces: only those can be bound to."""
    return not _anything_is_bound() and _binds(address)


@cache
def _anything_is_bound() -> bool:
    """Return whether the kernel lets a socket be bound to any address (Linux's ip_nonlocal_bind)."""
    return _binds("192.0.2.1")  # which nobody has (RFC 5737)


def _binds(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
