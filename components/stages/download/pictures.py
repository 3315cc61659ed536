"""The processes that make pictures, beside the one that fetches.

Processes and not threads: an image that makes a decoder crash then costs itself, not the worker.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Self

from components.base.cores import cores
from components.base.errors import TemporaryError
from components.base.processes import UndisturbedContext
from components.stages.download.picture import Picture, make_picture

DEADLY = 8  # images that may kill a process each; where more do, the images aren't the cause


class Pictures:
    """A pool of `count` processes; None is one per core."""

    def __init__(self, count: int | None = None) -> None:
        self._count = cores() if count is None else count
        self._pool = _processes(self._count)
        self._alone = asyncio.Lock()
        self._deadly = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def make(self, data: bytes) -> Picture | str:
        """Make a picture in one of the processes, or return the reason why there is none.

        Raises:
            TemporaryError: the processes die, whatever the image.
        """
        pool = self._pool
        try:
            return await asyncio.wrap_future(pool.submit(make_picture, data))
        except BrokenProcessPool:
            if pool is self._pool:
                self._pool = _processes(self._count)
            async with self._alone:
                return await self._make_alone(data)

    async def _make_alone(self, data: bytes) -> Picture | str:
        """Try again in a process of its own, to tell the image that killed a process from those beside it."""
        pool = _processes(1)
        try:
            return await asyncio.wrap_future(pool.submit(make_picture, data))
        except BrokenProcessPool as error:
            self._deadly += 1
            if self._deadly > DEADLY:
                raise TemporaryError("decoding processes die (out of memory?); run again, with more memory") from error
            return "crashes_decoder"
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=UndisturbedContext(), initializer=_begin)


def _begin() -> None:
    """End this process when the worker is killed."""
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
