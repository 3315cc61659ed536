"""X-Robots-Tag: directives with and without an agent, among directives with values and dates with commas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.stages.download.optout import OPT_OUT, opted_out

AGAINST = sorted(OPT_OUT)
HARMLESS = [
    *(
        "all",
        "nofollow",
        "noarchive",
        "nosnippet",
        "notranslate",
        "indexifembedded",
        "max-snippet:-1",
        "max-snippet: 50",
    ),
    *("max-image-preview: large", "max-video-preview:-1", "noaix", "index", "", "  "),
    "unavailable_after: 25 Jun 2010 15:00:00 PST",
    "unavailable_after: Wednesday, 25-Jun-25 15:00:00 UTC",
    "unavailable_after: Wed, 25 Jun 2025 15:00:00 GMT",
    "unavailable_after: 2025-06-25T15:00:00+00:00",
]
OTHERS = ["otherbot", "googlebot-image", "recaptionbot", "my.bot", "Other_Bot/1.0"]

harmless = st.lists(st.sampled_from(HARMLESS), max_size=4)
against = st.sampled_from(AGAINST).flatmap(lambda d: st.sampled_from([d, d.upper(), d.title(), f" {d} "]))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["noai"], True),
        (["noai, max-snippet:-1"], True),
        (["max-snippet:-1, noai"], True),
        (["NoImageAI,noarchive"], True),
        (["none"], True),
        (["all", "noindex"], True),
        (["recaption: noai"], True),
        (["Recaption/2.0: noai"], True),
        (["*: noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noindex, nofollow, noai"], False),
        (["otherbot: noindex, recaption: noai"], True),
        (["otherbot: noindex", "noimageindex"], True),
        (["recaption: nofollow, otherbot: noai"], False),
        (["unavailable_after: Wednesday, 25-Jun-25 15:00:00 UTC, noai"], True),
        (["unavailable_after: Wed, 25 Jun 2025 15:00:00 GMT"], False),
        (["otherbot: unavailable_after: Wed, 25 Jun 2025 15:00:00 GMT, noai"], False),
        (["noai:"], True),
        (["noindex: yes"], True),
        (["notnoai"], False),
        (["no ai"], False),
        ([""], False),
        ([], False),
        ([":::, ,:"], False),
    ],
)
def test_headers(headers: list[str], expected: bool) -> None:
    assert opted_out(headers, "recaption") is expected


@given(harmless, against, harmless, st.sampled_from(["", "recaption: ", "RECAPTION:", "*: "]))
def test_an_opt_out_is_found_whatever_is_around_it(before: list[str], no: str, after: list[str], agent: str) -> None:
    assert opted_out([", ".join([agent + before[0] if before else agent + no, *before[1:], no, *after])], "recaption")
    assert opted_out([*before, agent + no, *after], "recaption")


@given(harmless, against, harmless, st.sampled_from(OTHERS))
def test_what_is_said_to_others_is_not_said_to_us(before: list[str], no: str, after: list[str], agent: str) -> None:
    assert not opted_out([", ".join([*before, f"{agent}: {no}", *after])], "recaption")
    assert not opted_out([*before, f"{agent}: {no}", *after], "recaption")


@given(st.lists(st.lists(st.sampled_from(HARMLESS), max_size=5).map(",".join), max_size=3))
def test_harmless_directives_are_consent(headers: list[str]) -> None:
    assert not opted_out(headers, "recaption")


@given(st.lists(st.text(max_size=80), max_size=3))
def test_any_text_is_read(headers: list[str]) -> None:
    found = opted_out(headers, "recaption")
    if not any(word in header.lower() for header in headers for word in ("no",)):
        assert not found
