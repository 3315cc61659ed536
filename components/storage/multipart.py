"""Uploads in parts, several at once.

Threads are daemons: a process that is told to stop does not wait for the network.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

T = TypeVar("T")
DEPTH = 4  # requests in flight per upload
PART = 16 << 20  # bytes of one part of an upload
LARGE = 2 * PART  # files from this size on are uploaded in parts
MOST_PARTS = 9_000  # S3 and GCS take 10,000


def parts_of(size: int) -> list[tuple[int, int]]:
    """Return (start, length) of each part of an upload of `size` bytes; the last part may be shorter."""
    length = max(PART, -(-size // MOST_PARTS))
    return [(start, min(length, size - start)) for start in range(0, size, length)]


def read_part(source: Path, start: int, length: int) -> bytes:
    with open(source, "rb") as file:
        file.seek(start)
        return file.read(length)


def in_parallel(works: Sequence[Callable[[], T]]) -> list[T]:
    """Call the functions, at most DEPTH at once, and return their values in order.

    After the first error, which is raised, no further function is called.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((number, works[number](), None))
            except BaseException as error:  # raised below
                finished.put((number, None, error))

    for number in range(len(works)):
        waiting.put(number)
    for _ in range(min(DEPTH, len(works))):
        threading.Thread(target=run, name="part", daemon=True).start()
    values: dict[int, T] = {}
    try:
        while len(values) < len(works):
            number, value, error = finished.get()
            if error is not None:
                raise error
            values[number] = cast(T, value)
    finally:
        over.set()
    return [values[number] for number in range(len(works))]
