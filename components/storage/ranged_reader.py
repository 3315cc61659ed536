"""A seekable reader of an object in a bucket, with several ranged requests in flight ahead of its position.

Threads are daemons: a process that is told to stop does not wait for the network.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, BinaryIO, cast

CHUNK = 8 << 20  # bytes of one ranged read: 0.1 s of one stream, so that latency is a small part of it
FIRST = 256 << 10  # bytes of the first read after a jump: an image, a parquet footer
DEPTH = 4  # requests in flight per reader
NEAR = CHUNK  # a gap that is skipped going forward; a longer one is a jump

Fetch = Callable[[int, int], bytes]
"""(start, length) → exactly these bytes of an object, always of the same version of it."""


def read_ahead(fetch: Fetch, size: int) -> BinaryIO:
    """Return a seekable reader of an object of `size` bytes.

    Reading forward, with or without skips, has up to DEPTH requests in flight ahead of the reader. It holds at most
    DEPTH + 2 blocks of CHUNK bytes, and DEPTH in flight that a jump has left behind.
    """
    return cast(BinaryIO, io.BufferedReader(_Reader(fetch, size), FIRST))


class _Block:
    """Bytes [start, end) of the object, being fetched by a thread."""

    def __init__(self, fetch: Fetch, start: int, end: int, slots: threading.Semaphore) -> None:
        self.start, self.end = start, end
        self.data: Future[bytes] = Future()
        threading.Thread(target=self._run, args=(fetch, slots), name="ahead", daemon=True).start()

    def _run(self, fetch: Fetch, slots: threading.Semaphore) -> None:
        with slots:
            if not self.data.set_running_or_notify_cancel():
                return
            try:
                self.data.set_result(fetch(self.start, self.end - self.start))
            except BaseException as error:  # raised where the bytes are wanted
                self.data.set_exception(error)


class _Reader(io.RawIOBase):
    """Neighbouring blocks around the position: one behind it for small steps back, up to DEPTH ahead of it.

    Blocks grow from FIRST to CHUNK, and their number from none to DEPTH, while reading goes forward; a jump starts
    anew. So a reader here and there fetches little more than it wants.
    """

    def __init__(self, fetch: Fetch, size: int) -> None:
        self.fetch, self.size, self.at = fetch, size, 0
        self.blocks: deque[_Block] = deque()
        self.slots = threading.Semaphore(DEPTH)
        self.step, self.ahead = FIRST, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        if at < 0:
            raise ValueError(f"seek to {at}: before the beginning")
        self.at = at
        return at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Read at most up to the end of a block; io.BufferedReader asks again for the rest."""
        wanted = min(len(buffer), max(0, self.size - self.at))
        if not wanted:
            return 0
        block = self._block(wanted)
        try:
            data = block.data.result()
        except BaseException:
            self._forget()  # the next read tries again
            raise
        piece = memoryview(data)[self.at - block.start :][:wanted]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        whole = bytearray(max(0, self.size - self.at))
        done = 0
        while done < len(whole):
            done += self.readinto(memoryview(whole)[done:])
        return bytes(whole)

    def close(self) -> None:
        self._forget()
        super().close()

    def _block(self, wanted: int) -> _Block:
        """Return the block at the position, after asking for blocks ahead of it and dropping blocks behind it."""
        here = next((i for i, block in enumerate(self.blocks) if block.start <= self.at < block.end), None)
        if here is None:
            gap = self.at - self.blocks[-1].end if self.blocks else 0
            near = bool(self.blocks) and 0 <= gap <= NEAR
            self._forget()
            if near:
                self._grow()
            else:
                self.step, self.ahead = max(FIRST, min(wanted, CHUNK)), 0
            self._add(self.at)
            here = 0
        elif here > 1 or (here == 1 and not self.ahead):
            self._grow()
        for _ in range(here - 1):
            self.blocks.popleft().data.cancel()
        block = self.blocks[min(here, 1)]
        while len(self.blocks) - 1 - min(here, 1) < self._depth(block, wanted) and self.blocks[-1].end < self.size:
            self._add(self.blocks[-1].end)
        return block

    def _depth(self, block: _Block, wanted: int) -> int:
        """Return how many blocks to ask for after this one: at least those that the caller wants now."""
        missing = self.at + wanted - block.end
        return min(DEPTH, max(self.ahead, -(-missing // self.step)))

    def _grow(self) -> None:
        self.step, self.ahead = min(2 * self.step, CHUNK), min(2 * self.ahead or 1, DEPTH)

    def _add(self, start: int) -> None:
        self.blocks.append(_Block(self.fetch, start, min(start + self.step, self.size), self.slots))

    def _forget(self) -> None:
        while self.blocks:
            self.blocks.popleft().data.cancel()
