"""Six fields, seconds first: what KFP's parser takes, and what is wrong in one line."""

from __future__ import annotations

import pytest

from components.base.errors import PermanentError
from pipelines.kubeflow.cron import check_cron


@pytest.mark.parametrize("text", [
    "0 0 6 * * *", "0 0 9 ? * 2-6", "*/30 * * * * *", "0 0,30 8-18/2 1 JAN,jul mon-fri", "0 0 0 1 1 ?",
    "0 5/15 * * * *",
])  # fmt: skip
def test_taken(text: str) -> None:
    assert check_cron(text) == text


@pytest.mark.parametrize(("text", "message"), [
    ("0 6 * * *", "found 5 fields, expected 6: seconds, minutes"),
    ("@weekly", "found 1 fields, expected 6"),
    ("", "found 0 fields"),
    ("0 60 6 * * *", "minutes: found 60, expected 0 to 59"),
    ("0 0 24 * * *", "hours: found 24"),
    ("0 0 6 0 * *", "day of the month: found 0, expected 1 to 31"),
    ("0 0 6 * 13 *", "month: found 13"),
    ("0 0 6 * * 7", "day of the week: found 7"),
    ("0 0 6 * * fri-mon", "day of the week: found fri-mon"),
    ("0 0/0 6 * * *", "minutes: found 0/0"),
    ("0 0 six * * *", "hours: found six"),
    ("0 0 6, * * *", "hours: found , expected"),
    ("0 0 6;7 * * *", "hours: found 6;7"),
])  # fmt: skip
def test_refused(text: str, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        check_cron(text)
