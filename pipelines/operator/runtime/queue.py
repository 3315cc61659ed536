"""The queue of objects to reconcile: each at its time, none twice at once, a failed one after growing pauses.

A namespace whose objects take long has a share of the workers only: the others' objects don't wait for it.
"""

from __future__ import annotations

import heapq
import threading
import time
from math import inf

FIRST, LAST = 1.0, 300.0  # seconds until a failed reconciliation is repeated: doubled each time, up to the second

Key = tuple[str, str, str]
"""Resource, namespace, name."""


class DueQueue:
    """Keys by the moment they are due, for several threads."""

    def __init__(self, share: float = inf) -> None:
        """Make an empty queue.

        Args:
            share: how many keys of one namespace may be under way at once.
        """
        self.share = share
        self._parked: dict[str, list[tuple[float, Key]]] = {}
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._busy: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def add(self, key: Key, seconds: float = 0.0) -> None:
        """Make a key due in so many seconds, unless it is due earlier."""
        with self._changed:
            self._put(key, seconds)

    def take(self) -> Key | None:
        """Wait for the next due key and return it; None when the queue is closed. `done` or `failed` must follow."""
        with self._changed:
            while not self._closed:
                key = self._next()
                if key:
                    self._busy[key] = time.monotonic()
                    return key
                self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
        return None

    def done(self, key: Key, seconds: float) -> None:
        """Record a reconciliation; the key is due again in so many seconds, if not earlier."""
        with self._changed:
            self._free(key)
            self._failures.pop(key, None)
            self._put(key, seconds)

    def failed(self, key: Key) -> float:
        """Record a failed reconciliation, and return the seconds until it is tried again."""
        with self._changed:
            self._free(key)
            count = self._failures[key] = self._failures.get(key, 0) + 1
            pause = min(FIRST * 2.0 ** (count - 1), LAST)
            self._put(key, pause)
        return pause

    def forget(self, key: Key) -> None:
        """Drop the key of an object that is gone."""
        with self._changed:
            self._due.pop(key, None)
            self._failures.pop(key, None)

    def close(self) -> None:
        """Let every `take` return None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def overdue(self) -> float:
        """Return how many seconds late the most overdue key is of those that only a worker lacks; 0 where none is."""
        with self._changed:
            waiting = [at for key, at in self._due.items() if key not in self._busy and not self._is_full(key[1])]
            return max((0.0, *(time.monotonic() - at for at in waiting)))

    @property
    def busy(self) -> int:
        """Return how many reconciliations are under way."""
        with self._changed:
            return len(self._busy)

    @property
    def longest(self) -> float:
        """Return the seconds since the oldest reconciliation under way began; 0 where none is."""
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

    def _is_full(self, namespace: str) -> bool:
        return sum(busy[1] == namespace for busy in self._busy) >= self.share

    def _free(self, key: Key) -> None:
        """Take a key as no longer under way; keys of its namespace that waited for that may be taken."""
        self._busy.pop(key, None)
        for entry in self._parked.pop(key[1], ()):
            heapq.heappush(self._heap, entry)
            self._changed.notify()

    def _next(self) -> Key | None:
        """Return a key that may be taken, and drop outdated entries on the way; None where there is none.

        A due key of a namespace that has its share of the workers is parked until one of them is free.
        """
        while self._heap and self._heap[0][0] <= time.monotonic():
            at, key = heapq.heappop(self._heap)
            if self._due.get(key) != at or key in self._busy:
                continue
            if self._is_full(key[1]):
                self._parked.setdefault(key[1], []).append((at, key))
            else:
                del self._due[key]
                return key
        return None
