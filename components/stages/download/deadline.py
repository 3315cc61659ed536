"""The seconds that one candidate may take, over all its requests and the pauses between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Deadline:
    """Counts the time in which a candidate is served, and none in which it waits for others."""

    def __init__(self, seconds: float) -> None:
        self.seconds = self.left = seconds

    @property
    def is_whole(self) -> bool:
        """Whether no time was used yet."""
        return self.left == self.seconds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Timeout]:
        """Count the time within; yield the timer, which may be put off.

        Raises:
            TimeoutError: no time is left.
        """
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(self.left) as timer:
            try:
                yield timer
            finally:
                self.left = max(0.0, (timer.when() or 0.0) - clock())
