"""The decoding processes: image bytes in, pixels or reasons out, beside the process that computes.

Imports little: a spawned process starts by importing this module.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

from components.pool.errors import TemporaryError
from components.pool.images import Geometry, ImageError, Pixels, decode

CHUNK = 16  # images handed over at once: with fewer, handing over costs more than decoding

Chunk = Future[list[Pixels | str]]


class Decoders:
    """So many processes; None is one per core, 0 decodes where `submit` is called."""

    def __init__(self, count: int | None) -> None:
        self.count = (os.cpu_count() or 1) if count is None else count

    def __enter__(self) -> Self:
        self.pool = None
        if self.count:
            # fork is not safe beside torch's threads
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_ignore_signals)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def submit(self, images: list[bytes], geometry: Geometry) -> list[Chunk]:
        """Start decoding; the chunks' values together are in the order of `images`."""
        chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        if self.pool:
            return [self.pool.submit(_decode_all, chunk, geometry) for chunk in chunks]
        return [_finished(_decode_all(chunk, geometry)) for chunk in chunks]


def pixels_of(chunk: Chunk) -> list[Pixels | str]:
    """Pixels of each image, or the reason why there are none.

    Raises:
        TemporaryError: a decoding process died.
    """
    try:
        return chunk.result()
    except BrokenProcessPool as error:
        raise TemporaryError(
            "a decoding process died (out of memory?); run again, with fewer compute.decoders if it happens again"
        ) from error


def _decode_all(images: list[bytes], geometry: Geometry) -> list[Pixels | str]:
    found: list[Pixels | str] = []
    for data in images:
        try:
            found.append(decode(data, geometry))
        except ImageError as error:
            found.append(str(error))
    return found


def _finished(value: list[Pixels | str]) -> Chunk:
    future: Chunk = Future()
    future.set_result(value)
    return future


def _ignore_signals() -> None:
    """A signal to the process group stops the worker, which stops these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
