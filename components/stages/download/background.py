"""A coroutine in an event loop of a thread of its own, and what it emits in the caller's thread.

A signal is raised in the main thread; there it would end whichever callback of a loop happens to run, as that one's
failure. Here it interrupts the caller's waiting or work, and the loop is cancelled in order.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 60.0  # seconds for the loop to end once it is cancelled


def emitted(main: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Generator[T, None, None]:
    """Run `main` in a loop of its own thread and yield what it emits; closing the generator early cancels `main`.

    `main` is called with the function by which it emits. Raises what `main` raises; of a group, the first exception.
    """
    found: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(main(lambda value: found.put((value,))))

    def run() -> None:
        try:
            loop.run_until_complete(task)
            found.put(None)
        except BaseException as error:  # raised below
            found.put(_first(error))
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())

    thread = threading.Thread(target=run, name="event loop", daemon=True)
    thread.start()
    try:
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(PATIENCE)
        if not thread.is_alive():
            loop.close()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
