"""How to download: what a recipe may set."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field

from components.pool import version
from components.pool.fields import Count, Model, Whole

Seconds = Annotated[float, Field(gt=0, le=600)]


def _network(value: str) -> str:
    ip_network(value)  # its ValueError says what is wrong
    return value


def _contact(value: str) -> str:
    if not re.fullmatch(r"[!-'*-~]+", value):  # printable ASCII without spaces and parentheses
        raise ValueError("expected an address of a page or a mailbox, without spaces and parentheses")
    return value


class Options(Model):
    """What a recipe may set about downloading."""

    contact: Annotated[str, Field(max_length=200), AfterValidator(_contact)] | None = None
    """A page or mailbox where whoever runs a web server reaches you; it is part of the user agent."""
    connections: Count = 512
    """Images on their way at once, over all hosts."""
    per_host_connections: Count = 4
    per_host_rate: Annotated[float, Field(gt=0, le=10_000)] = 10.0
    """Requests per second to one host."""
    connect_timeout: Seconds = 5.0
    """Seconds to look a name up, connect and agree on TLS."""
    read_timeout: Seconds = 10.0
    """Seconds between two packets."""
    timeout: Seconds = 30.0
    """Seconds for one attempt."""
    retries: Annotated[int, Field(ge=0, le=10), Whole] = 2
    """Further attempts after a failure that may pass at once (see reasons.py)."""
    max_bytes: Annotated[int, Field(ge=1024, le=1 << 30), Whole] = 32 << 20
    """Bytes of one image, as sent and unpacked."""
    robots: bool = False
    """Ask each host's robots.txt."""
    allow_networks: list[Annotated[str, AfterValidator(_network)]] = Field(default_factory=list)
    """CIDRs of private networks that may be connected to, on any port: a local mirror's."""

    @property
    def user_agent(self) -> str:
        return f"{AGENT}/{version()}" + (f" (+{self.contact})" if self.contact else "")


AGENT = "recaption"
"""The product token: what robots.txt and X-Robots-Tag call us."""
