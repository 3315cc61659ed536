"""Work in a few threads, ahead of whoever uses its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
THREADS = 4  # readers ahead: reading and checksums release the interpreter's lock


def map_ahead(work: Callable[[In], Out], items: Iterable[In], threads: int = THREADS) -> Iterator[Out]:
    """Yield what `work` makes of each item, in order; a few threads compute a few results ahead of their reader."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
