"""Hosts: how many requests at once and a second, robots.txt, Retry-After, further attempts, dead ones."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego

from components.base.errors import PermanentError
from components.recipe.sources import AGENT, Download
from components.recipe.yaml_io import check
from components.stages.download import fetch, hosts, robots
from components.stages.download.hosts import CLOSING, Hosts
from components.stages.download.reasons import REASONS, Failed
from components.stages.download.retry_after import seconds_of
from components.stages.download.slots import Slot, Slots
from components.stages.download.urls import parse_url
from tests.components.stages.download import web as misbehave
from tests.components.stages.download.conftest import Pool
from tests.components.stages.download.web import Answer, Names, Web
from tests.pools import jpeg


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.02)


def test_so_many_requests_at_once_to_one_host(web: Web, pool: Pool) -> None:
    web.pages["/"] = Answer(jpeg(), when=lambda: web.most_at_once >= 3)
    (record,) = pool.download([web.url()] * 12, per_host_connections=3)
    assert record.samples == 12
    assert web.most_at_once == 3
    assert web.connections <= 3  # they are used again


def test_a_slow_first_image_holds_up_only_itself(web: Web, pool: Pool) -> None:
    web.pages = {"/slow": Answer(jpeg(), when=lambda: len(web.requests) == 9), "/": Answer(jpeg())}
    (record,) = pool.download([web.url("/slow")] + [web.url()] * 8)
    assert record.samples == 9


def test_a_dead_host_is_tried_twice(pool: Pool, tried: list[Any]) -> None:
    with Web() as gone:
        pass
    (record,) = pool.download([gone.url()] * 30, per_host_connections=8)
    assert record.failures == {"connect": 30}
    assert len(tried) == 2


def test_so_many_requests_a_second_to_one_host(web: Web, pool: Pool) -> None:
    (record,) = pool.download([web.url()] * 8, per_host_rate=10.0)  # without images nothing else takes long
    assert record.seconds >= 7 / 10 - 0.01


def test_a_connection_that_nobody_will_use_again_is_closed(web: Web, pool: Pool) -> None:
    web.pages["/"] = Answer(jpeg())
    pool.download([web.url()])
    assert web.requests[0].headers["connection"] == "close"


def test_what_may_pass_is_tried_again(web: Web, pool: Pool) -> None:
    good = Answer(jpeg())
    web.pages = {
        "/reset": misbehave.reset,
        "/passing": [Answer(status=503), Answer(status=500), good],
        "/lasting": Answer(status=502),
        "/gone": Answer(status=404),
        "/busy": [Answer(status=429), good],
    }
    (record,) = pool.download([web.url(path) for path in web.pages], retries=2)
    assert pool.reasons(record) == ["reset", None, "http_5xx", "http_404", None]
    tried = {path: web.paths().count(path) for path in web.pages}
    assert tried["/reset"] >= 3  # aiohttp itself repeats one on a connection that was used before
    assert tried == {"/reset": tried["/reset"], "/passing": 3, "/lasting": 3, "/gone": 1, "/busy": 2}


def test_retry_after_is_waited_for_by_all_of_the_host(web: Web, pool: Pool) -> None:
    web.pages = {"/": [Answer(status=429, headers={"Retry-After": "1"}), Answer(jpeg())]}
    (record,) = pool.download([web.url()] * 3, retries=1, per_host_connections=1)
    assert record.samples == 3
    assert web.requests[1].at - web.requests[0].at >= 1


def test_an_image_has_one_deadline_whatever_is_asked_for_it(pool: Pool) -> None:
    """Redirects, further attempts and robots.txt, none of which is too slow by itself."""
    with Web() as redirects, Web() as attempts, Web() as robots:
        for i in range(5):
            redirects.pages[f"/{i}"] = Answer(status=302, headers={"Location": f"/{i + 1}"}, delay=0.5)
        attempts.pages["/"] = Answer(status=503, delay=0.8)
        robots.pages["/robots.txt"] = Answer(delay=1.2)
        for web, path in ((redirects, "/5"), (robots, "/")):
            web.pages[path] = Answer(jpeg(), delay=1.2)
        urls = [redirects.url("/0"), attempts.url(), robots.url()]
        (record,) = pool.download(urls, timeout=2.0, retries=10, robots=True)
    assert pool.reasons(record) == ["timeout"] * 3


def test_a_host_is_not_blamed_for_time_that_was_spent_elsewhere(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate comes late to a host and has no time left; the next one waits for its place, and is served."""
    monkeypatch.setitem(CLOSING, "timeout", 1)
    with Web() as slow, Web() as host:
        slow.pages["/late"] = Answer(status=302, headers={"Location": host.url("/silent")}, delay=1.0)
        slow.pages["/next"] = Answer(
            status=302, headers={"Location": host.url()}, when=lambda: "/silent" in host.paths()
        )
        host.pages = {"/silent": misbehave.silent, "/": Answer(jpeg())}
        urls = [slow.url("/late"), slow.url("/next")]
        (record,) = pool.download(urls, timeout=3.0, per_host_connections=1)
    assert pool.reasons(record) == ["timeout", None]


def test_who_wants_us_to_stay_away_for_long_is_left_alone(web: Web, pool: Pool) -> None:
    web.pages["/"] = Answer(status=503, headers={"Retry-After": "3600"})
    (record,) = pool.download([web.url()] * 9, retries=2, per_host_connections=1)
    assert record.failures == {"http_5xx": 9}
    assert len(web.requests) == 1


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), (" 120 ", 120), ("-1", 0), ("soon", 0), ("", 0), ("²", 0)])
def test_retry_after_in_seconds(value: str, seconds: float) -> None:
    assert seconds_of(value) == seconds


@given(st.floats(-1e5, 1e5))
def test_retry_after_as_a_date(ahead: float) -> None:
    found = seconds_of(formatdate(time.time() + ahead, usegmt=True))
    assert found == pytest.approx(max(0.0, ahead), abs=2)


@given(st.text(max_size=60))
def test_any_retry_after_is_read(value: str) -> None:
    assert seconds_of(value) >= 0


ROBOTS = (
    b"User-agent: *\nDisallow: /private\nAllow: /private/but$\n\nUser-agent: recaption\nDisallow: /*.png$\nAllow: /\n"
)


def test_robots(web: Web, pool: Pool) -> None:
    web.pages = {"/robots.txt": Answer(ROBOTS), "/private": Answer(jpeg()), "/a.png": Answer(jpeg())}
    web.pages["/to"] = Answer(status=302, headers={"Location": "/a.png"})
    paths = ["/private", "/a.png", "/a.png?x=1", "/to"]
    (record,) = pool.download([web.url(path) for path in paths], robots=True)
    assert pool.reasons(record) == [None, "robots", "http_404", "robots"]
    assert web.paths().count("/robots.txt") == 1
    assert "/a.png" not in web.paths()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=404), None),
        (Answer(status=403), None),
        (Answer(status=503), "robots_failed"),
        (Answer(b"\xff\xfe\0garbage"), None),
        (Answer(ROBOTS + bytes(600 << 10)), "too_large"),
        (misbehave.silent, "timeout"),
    ],
)
def test_robots_that_cannot_be_had(web: Web, pool: Pool, answer: Answer, reason: str | None) -> None:
    web.pages = {"/robots.txt": answer, "/": Answer(jpeg())}
    options = {"read_timeout": 0.5} if reason == "timeout" else {}
    (record,) = pool.download([web.url()] * 3, robots=True, **options)
    assert pool.reasons(record) == [reason] * 3
    assert web.paths().count("/robots.txt") == 1


def robots_of(agents: int, rules: int, end: str = "") -> Answer:
    """A robots.txt with rules that are each for all of these agents."""
    lines = [*(f"User-agent: bot{i}" for i in range(agents)), *(f"Disallow: /{i}" for i in range(rules)), end]
    return Answer("\n".join(lines).encode())


def test_robots_with_many_rules_for_others_and_for_us(web: Web, pool: Pool) -> None:
    """Each rule for each agent would be kept, half a million here, 90 MB; with 80 kB ten million, in half a minute."""
    web.pages = {"/robots.txt": robots_of(1000, 500, "User-agent: *\nDisallow: /private"), "/": Answer(jpeg())}
    tracemalloc.start()
    (record,) = pool.download([web.url(path) for path in ("/private", "/")], robots=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pool.reasons(record) == ["robots", None]
    assert peak < 50_000_000
    web.pages["/robots.txt"] = robots_of(1, 2001, "User-agent: recaption")  # of another's
    (record,) = Pool(pool.folder / "few").download([web.url()], robots=True)
    assert record.samples == 1
    web.pages["/robots.txt"] = Answer(b"User-agent: recaption\n" + robots_of(1, 2001).body)
    (record,) = Pool(pool.folder / "many").download([web.url()], robots=True)
    assert record.failures == {"too_large": 1}


LINES = [
    *("User-agent: *", "User-agent: recaption", "user-agent:Rec*", "User-Agent: other # *", "USERAGENT other2", "x"),
    *("Disallow: /a", "Allow: /a/b", "disallow : /*c$", "Disallow:", "Crawl-delay: 2", "Sitemap: /map", "", "# no"),
]


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_rules_of_others_do_not_matter(lines: list[str]) -> None:
    text = "\n".join(lines)
    ours, plain = robots._parsed(text), Protego.parse(text)
    assert isinstance(ours, Protego)
    for path in ("/a", "/a/b", "/x/c", "/c/x", "/"):
        url = f"http://example.org{path}"
        assert ours.can_fetch(url, AGENT) == plain.can_fetch(url, AGENT)


def test_robots_of_two_hosts_that_point_at_each_other(pool: Pool) -> None:
    with Web() as one, Web() as other:
        one.pages = {"/robots.txt": Answer(status=302, headers={"Location": other.url("/robots.txt")})}
        other.pages = {"/robots.txt": Answer(status=302, headers={"Location": one.url("/robots.txt")})}
        for web in (one, other):
            web.pages["/"] = Answer(jpeg())
        (record,) = pool.download([one.url(), other.url()] * 8, robots=True, per_host_connections=1)
    assert record.samples == 16


def test_robots_are_not_asked_unless_wanted(web: Web, pool: Pool) -> None:
    web.pages["/"] = Answer(jpeg())
    pool.download([web.url()])
    assert web.paths() == ["/"]


def test_a_name_that_is_not_there_is_asked_for_once(pool: Pool) -> None:
    names = Names({})
    (record,) = pool.download([f"http://gone.test/{i}" for i in range(20)], names=lambda: names, per_host_connections=1)
    assert record.failures == {"dns": 20}
    assert names.asked == ["gone.test"]


def test_every_reason_that_closes_a_host_is_one() -> None:
    assert REASONS.keys() >= CLOSING.keys()


def test_a_host_is_closed_by_failures_in_a_row_and_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        with Hosts(Download()).use(parse_url("http://example.org/")) as host:
            host.failed(Failed("connect"))
            host.answered()
            host.failed(Failed("connect"))
            host.check()
            host.failed(Failed("connect"))
            with pytest.raises(Failed, match="connect"):
                host.check()
            now[0] = hosts.CLOSED
            host.check()

    now = [0.0]
    monkeypatch.setattr(hosts, "_now", lambda: now[0])
    asyncio.run(story())


def test_hosts_that_are_not_in_use_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> int:
        known = Hosts(Download())
        with known.use(parse_url("http://kept.org/")) as kept:
            for i in range(50):
                with known.use(parse_url(f"http://{i}.org/")):
                    pass
            with known.use(parse_url("http://kept.org:80/")) as again:
                assert again is kept
        with known.use(parse_url("http://last.org/")):
            pass
        return len(known._hosts)

    monkeypatch.setattr(hosts, "REMEMBERED", 10)
    assert asyncio.run(story()) == 10


@given(
    st.integers(1, 4),
    st.lists(st.sampled_from(["take", "connect", "lend", "release", "large"]), max_size=60),
    st.data(),
)
def test_slots_are_never_lost(count: int, steps: list[str], data: st.DataObject) -> None:
    async def story() -> None:
        slots = Slots(count, max_lent=3)
        users = [Slot(slots) for _ in range(6)]
        for step in steps:
            slot = data.draw(st.sampled_from(users))
            if step == "take" and not slot.held and not slot.lent and slots.free > 0:
                await slot.take()
            elif step == "lend" and slot.held and not slot.connected:
                slot._lend()
            elif step == "connect" and (slot.held or slot.lent):
                slot.connect()
            elif step == "large" and slot.held:
                await slot.enlarge()
            elif step == "release":
                slot.release()
            assert slots.free == count - sum(user.held for user in users)
            assert slots.lent == sum(user.lent for user in users) <= 3
        for user in users:
            user.release()
        assert (slots.free, slots.lent) == (count, 0)

    asyncio.run(story())


def test_a_slot_that_waits_for_a_dead_address_is_lent() -> None:
    async def story() -> None:
        slots = Slots(1)
        with Slot(slots) as dead, Slot(slots) as other:
            await dead.take()
            await asyncio.wait_for(other.take(), 60)
            other.connect()
            dead.connect()  # it was alive after all: over the count
            assert slots.free == -1
        assert slots.free == 1

    asyncio.run(story())


def test_options_that_make_no_sense() -> None:
    for wrong in (
        {"contact": "a b"},
        {"contact": "x\r\nHost: y"},
        {"contact": "(nested)"},
        {"allowNetworks": ["10.0.0.0/33"]},
        {"allowNetworks": ["10.0.0.1/8"]},
        {"perHostRate": 0},
        {"connections": 0},
        {"timeout": -1.0},
    ):
        with pytest.raises(PermanentError, match="download"):
            check(Download, wrong, "download")
    assert check(Download, {"contact": "me@example.org", "allowNetworks": ["10.0.0.0/8"]}, "download").robots is False
