"""The decoding processes: image bytes in, pixels or reasons out, beside the process that computes.

Imports little: a spawned process starts by importing this module.
"""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from components.base.cores import cores
from components.base.errors import TemporaryError
from components.base.processes import UndisturbedContext
from components.engine.images import Geometry, ImageError, Pixels, decode

CHUNK = 16  # images handed over at once: with fewer, handing over costs more than decoding
DEADLY = 1  # images of one chunk that may kill a decoder each; where more do, the images aren't the cause

Decoded = list[Pixels | str]


@dataclass(frozen=True)
class Chunk:
    """Images on their way through a decoding process."""

    images: list[bytes]
    geometry: Geometry
    pixels: Future[Decoded]


class Decoders:
    """A pool of `count` decoding processes; None is one per core, 0 decodes in the caller of `submit`."""

    def __init__(self, count: int | None) -> None:
        self.count = cores() if count is None else count

    def __enter__(self) -> Self:
        self.pool = _processes(self.count) if self.count else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def submit(self, images: list[bytes], geometry: Geometry) -> list[Chunk]:
        """Start decoding images; the results of the returned chunks, joined, are in the order of `images`."""
        pieces = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        chunks = [Chunk(piece, geometry, self._start(piece, geometry)) for piece in pieces]
        for chunk in chunks:  # not by a method of the chunk: a future in a cycle keeps its pixels until gc comes
            chunk.pixels.add_done_callback(partial(_forget, chunk.images))
        return chunks

    def _start(self, images: list[bytes], geometry: Geometry) -> Future[Decoded]:
        if not self.pool:
            finished: Future[Decoded] = Future()
            finished.set_result(_decode_all(images, geometry))
            return finished
        try:
            return self.pool.submit(_decode_all, images, geometry)
        except BrokenProcessPool:  # a process died; pixels_of decodes what it left undone
            self.pool = _processes(self.count)
            return self.pool.submit(_decode_all, images, geometry)


def pixels_of(chunk: Chunk) -> Decoded:
    """Wait for a chunk and return each image's pixels or the reason for having none, a crash of the decoder included.

    Raises:
        TemporaryError: decoding processes die, whatever the image.
    """
    try:
        return chunk.pixels.result()
    except BrokenProcessPool:
        return _one_by_one(chunk)


def _one_by_one(chunk: Chunk) -> Decoded:
    """Decode a chunk again, one image at a time, to tell the image that killed its process from the others."""
    found: Decoded = []
    pool, deadly = _processes(1), 0
    try:
        for image in chunk.images:
            try:
                found += pool.submit(_decode_all, [image], chunk.geometry).result()
            except BrokenProcessPool as error:
                deadly += 1
                if deadly > DEADLY:
                    raise TemporaryError(
                        "decoding processes die (out of memory?); run again, with fewer compute.decoders if it "
                        "happens again"
                    ) from error
                found.append("image that crashes the decoder")
                pool.shutdown()
                pool = _processes(1)
    finally:
        pool.shutdown()
    return found


def _forget(images: list[bytes], done: Future[Decoded]) -> None:
    """Drop the encoded images as soon as they are decoded: they are most of a worker's memory."""
    if not done.cancelled() and done.exception() is None:
        images.clear()


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=UndisturbedContext())


def _decode_all(images: list[bytes], geometry: Geometry) -> Decoded:
    found: Decoded = []
    for data in images:
        try:
            found.append(decode(data, geometry))
        except ImageError as error:
            found.append(str(error))
    return found
