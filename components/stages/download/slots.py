"""Slots: how many images may be on their way at once.

A slot is taken before connecting and given back when the image is resized, so bytes in memory are bounded and a slow
processor slows the network down. Connecting to a dead address takes seconds and holds no bytes: after PATIENCE (at once
where the host has failed before) its slot is lent to another candidate, and taken back, over the count, when the
connection is made after all. So a dead host costs the others a tenth of a second, not its timeouts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

PATIENCE = 0.1  # seconds; on one continent most connections are made within
MAX_LENT = 4096  # each is a file descriptor and some kB
SMALL = 1 << 20  # bytes; a longer image needs one of the few LARGE places besides
LARGE = 16


class Slots:
    """A counting semaphore that may be overdrawn."""

    def __init__(self, count: int, max_lent: int = MAX_LENT) -> None:
        self.free = count
        self.lent = 0
        self.max_lent = max_lent
        self.large = asyncio.Semaphore(LARGE)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a slot, first come first served."""
        if self.free > 0 and not self._waiting:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already
                self.give()
            raise

    def give(self) -> None:
        self.free += 1
        while self.free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self.free -= 1
                turn.set_result(None)


class Slot:
    """One candidate's use of the slots, through all its attempts and redirects."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.held = self.lent = self.large = self.connected = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    async def take(self, patience: float = PATIENCE) -> None:
        """Take a slot before connecting; after `patience` seconds without a connection the slot is lent."""
        await self.slots.take()
        self.held, self.connected = True, False
        self._timer = asyncio.get_running_loop().call_later(patience, self._lend)

    def connect(self) -> None:
        """Note that the connection is there, and take a lent slot back."""
        self.connected = True
        self._stop()
        if self.lent:
            self._end_loan()
            self.slots.free -= 1
            self.held = True

    async def enlarge(self) -> None:
        """Take one of the few LARGE places, before more than SMALL bytes are kept."""
        if not self.large:
            await self.slots.large.acquire()
            self.large = True

    def release(self) -> None:
        """Give back whatever is held."""
        self._stop()
        if self.lent:
            self._end_loan()
        if self.large:
            self.large = False
            self.slots.large.release()
        if self.held:
            self.held = False
            self.slots.give()

    def _lend(self) -> None:
        if self.slots.lent < self.slots.max_lent:
            self.held, self.lent = False, True
            self.slots.lent += 1
            self.slots.give()

    def _end_loan(self) -> None:
        self.lent = False
        self.slots.lent -= 1

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
