"""The decoding processes: image bytes in, pixels or reasons out, beside the process that computes.

A thread for each process hands it some images, waits, and copies their pixels out of the memory that both share.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Self

import numpy as np

from components.base.cores import cores
from components.base.errors import TemporaryError
from components.engine.decoder import Answer, decode_into, rows
from components.engine.images import Geometry, Pixels

CHUNK = 16  # images handed over at once: with fewer, handing over costs more than decoding
DEADLY = 1  # images of one chunk that may kill a decoder each; where more do, the images aren't the cause

Decoded = Sequence[Pixels | str]
_SETTINGS = {  # of a process: no threads that it doesn't use, and memory that is used again for the next image
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
_DIED = (EOFError, OSError)  # what a pipe to a process that is gone raises


@dataclass(frozen=True)
class Chunk:
    """Images on their way through a decoding process."""

    pixels: Future[Decoded]


class Decoders:
    """A pool of `count` decoding processes; None is one per core, 0 decodes in the caller of `submit`."""

    def __init__(self, count: int | None) -> None:
        self.count = cores() if count is None else count

    def __enter__(self) -> Self:
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        for _ in range(self.count):
            self._idle.put(_Decoder())
        self._threads = ThreadPoolExecutor(self.count, "decoder") if self.count else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def submit(self, images: list[bytes], geometry: Geometry) -> list[Chunk]:
        """Start decoding images; the results of the returned chunks, joined, are in the order of `images`.

        Those that have pixels are rows of one array, (N, H, W, 3), where the geometry gives all of them one shape.
        """
        room = np.empty((len(images), math.prod(geometry.size) * 3), np.uint8)
        pieces = [(images[i : i + CHUNK], room[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return [Chunk(self._start(piece, geometry, part)) for piece, part in pieces]

    def _start(self, images: list[bytes], geometry: Geometry, room: Pixels) -> Future[Decoded]:
        if self._threads:
            return self._threads.submit(self._decode, images, geometry, room)
        finished: Future[Decoded] = Future()
        finished.set_result(_shaped(room, decode_into(room, images, geometry)))
        return finished

    def _decode(self, images: list[bytes], geometry: Geometry, room: Pixels) -> Decoded:
        decoder = self._idle.get()
        try:
            return _shaped(room, decoder.decode(images, geometry, room))
        except _DIED:
            return _shaped(room, decoder.one_by_one(images, geometry, room))
        finally:
            self._idle.put(decoder)


def pixels_of(chunk: Chunk) -> Decoded:
    """Wait for a chunk and return each image's pixels or the reason for having none, a crash of the decoder included.

    Raises:
        TemporaryError: decoding processes die, whatever the image.
    """
    return chunk.pixels.result()


def joined(pictures: Sequence[Pixels]) -> Pixels:
    """Return pictures of one shape as (N, H, W, 3), without a copy where they are all that `submit` was given."""
    whole = pictures[0].base
    if whole is not None and whole.size == pictures[0].size * len(pictures) and all(p.base is whole for p in pictures):
        return whole.reshape(len(pictures), *pictures[0].shape)
    return np.stack(pictures)


def _shaped(room: Pixels, answers: Sequence[Answer]) -> Decoded:
    return [
        answer if isinstance(answer, str) else row[: math.prod(answer)].reshape(answer)
        for row, answer in zip(room, answers, strict=True)
    ]


class _Decoder:
    """One decoding process, started when it is needed, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._room = 0

    def decode(self, images: list[bytes], geometry: Geometry, room: Pixels) -> list[Answer]:
        """Decode images into the rows of `room`.

        Raises:
            EOFError, OSError: the process has died.
        """
        if self._process is None or self._room < room.size:
            self.close()
            self._begin(max(room.size, CHUNK * room.shape[1]))
        try:
            self._pipe.send((images, geometry))
            answers: list[Answer] = json.loads(self._pipe.recv_bytes())  # and no pickle, which can be code
        except _DIED:
            self.close()
            raise
        for into, pixels, answer in zip(room, rows(self._shared, len(images)), answers, strict=True):
            if not isinstance(answer, str):
                into[: math.prod(answer)] = pixels[: math.prod(answer)]
        return answers

    def one_by_one(self, images: list[bytes], geometry: Geometry, room: Pixels) -> list[Answer]:
        """Decode images again, each alone, to tell the image that killed the process from the others.

        Raises:
            TemporaryError: more than one kills it.
        """
        found: list[Answer] = []
        deadly = 0
        for row, image in enumerate(images):
            try:
                found += self.decode([image], geometry, room[row : row + 1])
            except _DIED as error:
                deadly += 1
                if deadly > DEADLY:
                    raise TemporaryError(
                        "decoding processes die (out of memory?); run again, with fewer compute.decoders if it "
                        "happens again"
                    ) from error
                found.append("image that crashes the decoder")
        return found

    def _begin(self, room: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs, _memory() as memory:
            os.ftruncate(memory.fileno(), room)
            self._shared = np.frombuffer(mmap.mmap(memory.fileno(), room), np.uint8)
            numbers = (theirs.fileno(), memory.fileno())
            command = [sys.executable, "-m", "components.engine.decoder", *map(str, numbers)]
            environment = {**os.environ, **_SETTINGS, "PYTHONPATH": os.pathsep.join(sys.path)}
            # a process group of its own: what stops the worker stops this process too, but not in mid-sentence
            self._process = subprocess.Popen(command, pass_fds=numbers, env=environment, process_group=0)
        self._pipe, self._room = Connection(ours.detach()), room

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def _memory() -> IO[bytes]:
    """Open a file that is memory: not in /dev/shm, of which a container may have too little."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("pixels"), "r+b")
    return tempfile.TemporaryFile()  # macOS
