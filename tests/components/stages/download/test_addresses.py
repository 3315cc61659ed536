"""Only public addresses, on the web's ports: the check is on the address connected to, on every hop."""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.base import guard
from components.base.guard import CLUSTER, REFUSED_4, Guard, Refused, numeric_host
from components.stages.download.reasons import Failed
from components.stages.download.resolver import Resolver
from components.stages.download.urls import parse_url
from tests.components.stages.download.conftest import Pool
from tests.components.stages.download.web import Answer, Names, Web
from tests.pools import jpeg

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.192"),
    *("198.18.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16", "34.118.224.1"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "::127.0.0.1"),
    *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8"),
    *("2002:7f00:1::", "2002:808:808::1", "2001::1", "2001:db8::1", "3fff::1", "100::1", "5f00::1", "4000::1"),
    *("not an address", "", "127.1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::8"]
URLS = [
    *("http://127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://[::ffff:10.0.0.1]/"),
    *("http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://017700000001/"),
    *("http://127.1/", "http://0/", "http://127.0.0.1./", "http://①②⑦.⓪.⓪.①/", "http://[::ffff:7f00:1]/"),
    *("http://[64:ff9b::169.254.169.254]/", "http://[2002:a00:1::]/", "http://[fd00:ec2::254]/", "http://3232235777/"),
    *(
        "http://100.100.100.200/",
        "http://10.96.0.1/",
        "https://10.96.0.1/",
        "http://private.test/",
        "http://both6.test/",
    ),
    *("http://internal/", "http://kubernetes.default.svc.cluster.local/", "http://LOCALHOST/"),
]
NAMES = {
    **{"private.test": ["10.0.0.1"], "both6.test": ["::1", "fe80::1"], "internal": ["192.168.0.1"]},
    **{"kubernetes.default.svc.cluster.local": ["10.96.0.1"], "localhost": ["127.0.0.1", "::1"]},
}
BAD_URLS = [
    *("", "   ", "no address", "//example.org/a.jpg", "/a.jpg", "ftp://example.org/a", "file:///etc/passwd", "data:,a"),
    *("javascript:alert(1)", "gopher://127.0.0.1/", "http://", "http:///a", "http://user@example.org/"),
    *("http://user:password@example.org/", "http://example.org@127.0.0.1/", "http://:p@example.org/", "http://a b/"),
    *("http://exa\nmple.org/", "http://example.org/\0", "http://example.org:99999/", "http://example.org:x/"),
    *("http://1.2.3.4\\@example.org/", "http://%31%32%37.0.0.1/", "http://[::1", "http://a..b/", "http://.a/"),
    *("http://999.1.1.1/", "http://1.2.3.4.5/", "http://08.1.1.1/", "http://0xz.1/", "http://1.2.3.0x100/"),
    *("http://" + "a" * 64 + ".org/", "http://example.org/" + "a" * 9000, "http://[fe80::1%25lo]:80:80/", None),
    *("http://a[]@", "http://a[].@"),  # in which yarl stumbles
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public(address: str) -> None:
    assert Guard().refusal(address, 80) == "private_address"


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_on_the_webs_ports(address: str) -> None:
    assert [Guard().refusal(address, port) for port in (80, 443, 22, 8080)] == [None, None, "port", "port"]


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_ipv4_however_embedded_is_what_it_is(ip: IPv4Address) -> None:
    found = Guard().refusal(str(ip), 80)
    assert (found is None) == (not any(ip in network for network in REFUSED_4))
    assert not (found is None and (ip.is_private or ip.is_multicast or ip.is_reserved or ip.is_link_local))
    for embedded in (IPv6Address(0xFFFF << 32 | int(ip)), IPv6Address(0x64FF9B << 96 | int(ip))):
        assert Guard().refusal(str(embedded), 80) == found


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_ipv6_that_python_knows_as_special_is_refused(ip: IPv6Address) -> None:
    if not ip.is_global or ip.is_multicast or ip.sixtofour or ip.teredo:
        assert Guard().refusal(str(ip), 80) == "private_address"


@given(st.integers(0, 2**32 - 1).map(IPv4Address), st.data())
def test_every_spelling_of_an_address(ip: IPv4Address, data: st.DataObject) -> None:
    """One to four parts, of which the last has the rest; each decimal, octal or hexadecimal."""
    count = data.draw(st.integers(1, 4))
    octets = list(ip.packed)
    parts = [*octets[: count - 1], int.from_bytes(bytes(octets[count - 1 :]), "big")]
    written = ".".join(data.draw(st.sampled_from(["%d", "0%o", "0x%x", "0X%X"])) % part for part in parts)
    assert numeric_host(written) == str(ip)
    assert parse_url(f"http://{written}/x").raw_host == str(ip)


def test_networks_that_are_allowed_are_so_on_any_port() -> None:
    guard = Guard(["10.1.0.0/16", "fd00::/8"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        assert guard.refusal(address, 8080) is None
    assert guard.refusal("10.2.0.1", 80) == "private_address"
    assert guard.refusal("8.8.8.8", 8080) == "port"


def test_the_clusters_own_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLUSTER, "34.1.2.3")
    assert Guard().refusal("34.1.2.3", 443) == "private_address"
    monkeypatch.setenv(CLUSTER, "a-name")
    assert Guard().refusal("34.1.2.3", 443) is None


def test_the_machines_own_addresses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were they public, too: here every address of loopback stands for one."""
    for family in ("REFUSED_4", "REFUSED_6"):
        monkeypatch.setattr(guard, family, [])
    assert [Guard().refusal(ip, 80) for ip in ("127.0.0.1", "::ffff:127.0.0.1", "8.8.8.8", "2a00:1450::8")] == [
        *["private_address"] * 2, None, None,
    ]  # fmt: skip
    monkeypatch.setattr(guard, "_anything_is_bound", lambda: True)  # a kernel where a bind tells nothing
    assert Guard().refusal("127.0.0.1", 80) is None


def test_a_socket_is_opened_for_what_is_allowed_only() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))
    with pytest.raises(Refused, match="private_address"):
        Guard().open_socket(info)
    with Guard(["10.0.0.0/8"]).open_socket(info) as opened:
        assert opened.family == socket.AF_INET


@pytest.mark.parametrize("url", BAD_URLS)
def test_what_is_no_address_of_the_web(url: str | None) -> None:
    with pytest.raises(Failed, match="bad_url"):
        parse_url(url or "")


@given(
    st.text(max_size=60), st.sampled_from(["", "http://", "http://example.org/", "https://a.b:80", "http://[", "//"])
)
def test_any_text_is_an_address_or_a_reason(text: str, start: str) -> None:
    with suppress(Failed):
        url = parse_url(start + text)
        assert url.scheme in ("http", "https")
        assert url.raw_host
        assert (url.raw_user, url.raw_password) == (None, None)


def test_private_addresses_are_refused_and_nobody_is_asked(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
    known = {**NAMES, "both.test": ["10.0.0.1", "127.0.0.1"]}
    urls = [*URLS, "http://both.test/", *(url.replace("http://", "https://") for url in URLS)]
    (record,) = pool.download([*urls, *BAD_URLS], allow_networks=[], names=lambda: Names(known))
    assert dict(zip(urls, pool.reasons(record), strict=False)) == dict.fromkeys(urls, "private_address")
    assert pool.reasons(record)[len(urls) :] == ["bad_url"] * len(BAD_URLS)
    assert not connected


def test_redirects_are_checked_like_any_address(pool: Pool) -> None:
    targets = [*URLS, "http://127.0.0.2/", "//10.0.0.1/", "https://10.0.0.1/"]
    with Web("127.9.9.9") as web:
        web.pages = {f"/{i}": Answer(status=302, headers={"Location": target}) for i, target in enumerate(targets)}
        web.pages["/twice"] = Answer(status=302, headers={"Location": "/1"})
        urls = [web.url(path) for path in web.pages]
        (record,) = pool.download(urls, allow_networks=["127.9.9.9/32"], names=lambda: Names(NAMES))
        assert pool.reasons(record) == ["private_address"] * len(urls)
        assert len(web.requests) == len(urls) + 1


def test_the_socket_is_guarded_even_where_the_resolver_is_not(
    web: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves differently the next time: whatever address comes, it is checked before connecting."""

    async def unguarded(self: Resolver, host: str, port: int = 0, family: int = 0) -> object:
        return await self.names.resolve(host, port)

    monkeypatch.setattr(Resolver, "resolve", unguarded)
    names = Names({"rebinding.test": ["127.0.0.1"], "two.test": ["127.0.0.1", "::1"]})
    urls = [web.url(host=host) for host in ("rebinding.test", "two.test", "127.0.0.1")]
    (record,) = pool.download(urls, allow_networks=["10.0.0.0/8"], names=lambda: names)
    assert set(pool.reasons(record)) <= {"private_address", "connect"}
    assert pool.reasons(record)[0] == "private_address"
    assert web.connections == 0


def test_of_several_addresses_the_usable_ones_are_used(web: Web, pool: Pool) -> None:
    web.pages["/"] = Answer(jpeg())
    names = Names({"mixed.test": ["10.0.0.1", "127.0.0.1"], "gone.test": OSError(socket.EAI_AGAIN, "later")})
    urls = [web.url(host=host) for host in ("mixed.test", "gone.test", "nosuch.test")]
    (record,) = pool.download(urls, names=lambda: names)
    assert pool.reasons(record) == [None, "dns_failed", "dns"]


def test_names_are_absolute_unless_a_network_is_allowed(pool: Pool) -> None:
    names = Names({})
    pool.download(["http://service/"], allow_networks=[], names=lambda: names)
    assert names.asked == ["service."]
