"""Retries of one request to a bucket, bounded in time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, cast

from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry

from components.base.addresses import without_login
from components.base.errors import TemporaryError

log = logging.getLogger(__name__)

T = TypeVar("T")
DEADLINE = 120.0  # seconds over all attempts of one request
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
PASSING_STATUS = (408, 429)  # and every 5xx


def attempted(attempt: Callable[[], T], what: str, passing: Callable[[BaseException], bool]) -> T:
    """Call until it succeeds, fails for good, or the deadline passes.

    Retry draws each pause evenly from 0 up to a bound that doubles (full jitter), so that a thousand workers that
    failed together don't come back together.

    Args:
        what: verb and address, for messages: "read gs://bucket/x".
        passing: says if another attempt is worth it after this error. Any other error is raised as it is.

    Raises:
        TemporaryError: it still failed at the deadline.
    """
    retry = Retry(
        predicate=passing,
        initial=0.5,
        maximum=20.0,
        multiplier=2.0,
        timeout=DEADLINE,
        on_error=lambda error: log.warning("%s: %s; trying again", without_login(what), short(error)),
    )
    try:
        return cast(T, retry(attempt)())
    except RetryError as error:
        raise TemporaryError(f"cannot {what}: gave up after {DEADLINE:.0f} s: {short(error.cause)}") from error


def short(error: object) -> str:
    """Return an error's text as one line of at most 200 characters, without passwords of addresses."""
    return without_login(" ".join(str(error).split()))[:200] or type(error).__name__
