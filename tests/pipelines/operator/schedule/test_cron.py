"""When a schedule's time comes, at changes of the clocks too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from components.base.errors import PermanentError
from pipelines.operator.schedule.cron import CronTimes

CRONS = [
    "0 6 * * *",
    "30 2 * * *",
    "0,30 2 * * *",
    "15 * * * *",
    "*/20 * * * *",
    "0 2,3 * * 1-5",
    "45 1 1 * *",
    "0 0 L * *",
]
ZONES = ["Etc/UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@pytest.mark.parametrize(("cron", "zone", "now", "newest", "following"), [
    ("0 6 * * *", "Etc/UTC", "2026-08-03T05:59:59Z", "2026-08-02T06:00Z", "2026-08-03T06:00Z"),
    ("0 6 * * *", "Etc/UTC", "2026-08-03T06:00:00Z", "2026-08-03T06:00Z", "2026-08-04T06:00Z"),
    ("0 6 * * *", "Europe/Berlin", "2026-08-03T05:00Z", "2026-08-03T04:00Z", "2026-08-04T04:00Z"),
    ("0 6 * * *", "Europe/Berlin", "2026-12-03T05:00Z", "2026-12-03T05:00Z", "2026-12-04T05:00Z"),
    ("0 0 29 2 *", "Etc/UTC", "2026-08-03T00:00Z", "2024-02-29T00:00Z", "2028-02-29T00:00Z"),
    # Berlin, 29 March 2026: from 02:00 it is 03:00. What was to come at 02:30 comes then, once.
    ("30 2 * * *", "Europe/Berlin", "2026-03-29T00:59Z", "2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00"),
    ("30 2 * * *", "Europe/Berlin", "2026-03-29T01:00Z", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"),
    ("30 3 * * *", "Europe/Berlin", "2026-03-29T01:00Z", "2026-03-28T03:30+01:00", "2026-03-29T03:30+02:00"),
    # Berlin, 25 October 2026: after 03:00 it is 02:00 once more. 02:30 comes the first time only.
    ("30 2 * * *", "Europe/Berlin", "2026-10-25T02:15+02:00", "2026-10-24T02:30+02:00", "2026-10-25T02:30+02:00"),
    ("30 2 * * *", "Europe/Berlin", "2026-10-25T02:15+01:00", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
    ("30 2 * * *", "Europe/Berlin", "2026-10-25T02:45+01:00", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
    # What comes every hour comes every hour.
    ("30 * * * *", "Europe/Berlin", "2026-10-25T02:45+02:00", "2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00"),
    ("30 * * * *", "Europe/Berlin", "2026-03-29T01:45+01:00", "2026-03-29T01:30+01:00", "2026-03-29T03:30+02:00"),
    ("30 1 * * *", "America/New_York", "2026-11-01T01:15-05:00", "2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"),
])  # fmt: skip
def test_before_and_after_a_moment(cron: str, zone: str, now: str, newest: str, following: str) -> None:
    ticks = CronTimes.parse(cron, zone)
    assert ticks.newest(at(now)) == at(newest)
    assert ticks.following(at(now)) == at(following)


@given(st.sampled_from(CRONS), st.sampled_from(ZONES), st.integers(0, 366 * 1440), st.integers(1, 3 * 1440))
@example("30 2 * * *", "Europe/Berlin", 297 * 1440 + 70, 60)
def test_newest_and_following_are_neighbours(cron: str, zone: str, minute: int, later: int) -> None:
    """Nothing is left out and nothing comes twice, from wherever one looks."""
    ticks, now = CronTimes.parse(cron, zone), datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    newest, following = ticks.newest(now), ticks.following(now)
    assert newest is not None
    assert following is not None
    assert newest <= now < following
    assert ticks.following(newest) == following
    assert ticks.newest(following - timedelta(seconds=1)) == newest
    moment = now + timedelta(minutes=later)
    assert ticks.newest(moment) == (newest if moment < following else ticks.newest(moment))
    assert (ticks.newest(moment) == newest) == (moment < following)


@pytest.mark.parametrize(("cron", "zone", "message"), [
    ("0 6 * *", "Etc/UTC", r"spec\.schedule: found '0 6 \* \*' with 4 fields; expected minute, hour, day of the month"),
    ("0 0 6 * * *", "Etc/UTC", "with 6 fields"),
    ("@daily", "Etc/UTC", "with 1 fields"),
    ("60 6 * * *", "Etc/UTC", r"found '60 6 \* \* \*': Bad minute; expected .* e\.g\. 0 6 \* \* \*"),
    ("0 6 31 2 *", "Etc/UTC", "Bad day-of-month"),
    ("0 6 * * *", "Mars/Olympus", r"spec\.timeZone: found 'Mars/Olympus'; expected an IANA name such as"),
    ("0 6 * * *", "../etc/passwd", "IANA name"),
    ("0 6 * * *", "America", "IANA name"),
    ("0 6 * * *", "", "IANA name"),
    ("0 6 * * mo", "CET1", r"(?s)spec\.schedule: .*\nspec\.timeZone: "),
])  # fmt: skip
def test_mistakes(cron: str, zone: str, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        CronTimes.parse(cron, zone)


def test_a_schedule_that_never_comes() -> None:
    ticks = CronTimes.parse("0 0 */31 2 1#5", "Etc/UTC")  # the first of February, its fifth Monday
    assert ticks.newest(at("2026-08-03T00:00Z")) is None
    assert ticks.following(at("2026-08-03T00:00Z")) is None


FIELD = st.text("0123456789*/,-#LWSUN", min_size=1, max_size=5) | st.sampled_from(["*", "*/2", "1-5", "L"])


@given(st.lists(FIELD, min_size=5, max_size=5).map(" ".join))
def test_whatever_is_written_is_a_schedule_or_a_mistake(cron: str) -> None:
    try:
        ticks = CronTimes.parse(cron, "Europe/Berlin")
    except PermanentError:
        return
    ticks.newest(datetime(2026, 8, 3, tzinfo=UTC))
    ticks.following(datetime(2026, 8, 3, tzinfo=UTC))
