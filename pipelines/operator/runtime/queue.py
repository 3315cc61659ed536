"""Which object is to be looked at when: each at its time, none twice at once, a failed one later and later."""

from __future__ import annotations

import heapq
import threading
import time
from math import inf

FIRST, LAST = 1.0, 300.0  # seconds until a failed look is repeated; doubled each time

Key = tuple[str, str, str]
"""Resource, namespace, name."""


class DueQueue:
    """Keys by the moment they are due; from several threads."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._busy: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def add(self, key: Key, seconds: float = 0.0) -> None:
        """Due in so many seconds, or earlier where it was so before."""
        with self._changed:
            self._put(key, seconds)

    def take(self) -> Key | None:
        """The next due key, waited for; None when the queue is closed. `done` or `failed` must follow."""
        with self._changed:
            while not self._closed:
                key = self._next()
                if key:
                    self._busy[key] = time.monotonic()
                    return key
                self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
        return None

    def done(self, key: Key, seconds: float) -> None:
        """It was looked at; again in so many seconds, if not earlier."""
        with self._changed:
            self._busy.pop(key, None)
            self._failures.pop(key, None)
            self._put(key, seconds)

    def failed(self, key: Key) -> float:
        """It could not be looked at; in how many seconds it is tried again."""
        with self._changed:
            self._busy.pop(key, None)
            count = self._failures[key] = self._failures.get(key, 0) + 1
            pause = min(FIRST * 2.0 ** (count - 1), LAST)
            self._put(key, pause)
        return pause

    def forget(self, key: Key) -> None:
        """The object is gone."""
        with self._changed:
            self._due.pop(key, None)
            self._failures.pop(key, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def overdue(self) -> float:
        """Seconds that the key which waits longest is late; 0 where none is."""
        with self._changed:
            waiting = [at for key, at in self._due.items() if key not in self._busy]
            return max((0.0, *(time.monotonic() - at for at in waiting)))

    @property
    def busy(self) -> int:
        """How many looks are under way."""
        with self._changed:
            return len(self._busy)

    @property
    def longest(self) -> float:
        """Seconds since the oldest look under way began; 0 where none is."""
        with self._changed:
            return max((time.monotonic() - began for began in self._busy.values()), default=0.0)

    def _put(self, key: Key, seconds: float) -> None:
        at = min(time.monotonic() + seconds, self._due.get(key, inf))
        if at == inf:
            return
        self._due[key] = at
        if key not in self._busy:  # else when it is done
            heapq.heappush(self._heap, (at, key))
            self._changed.notify()

    def _next(self) -> Key | None:
        """A key whose time has come; entries that no longer hold are dropped on the way."""
        while self._heap and self._heap[0][0] <= time.monotonic():
            at, key = heapq.heappop(self._heap)
            if self._due.get(key) == at and key not in self._busy:
                del self._due[key]
                return key
        return None
