"""The gzip members of a WAT or WARC file, one record each, past whatever is damaged.

WARC 1.0 (ISO 28500, annex on compression) puts every record into a gzip member of its own, so a damaged one costs
only itself: reading goes on at the next one that is whole. (FastWARC's own iterator ends at the first damage, and
takes a truncated last record for a whole one.)
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from isal import isal_zlib

from components.base.errors import TemporaryError

BLOCK = 1 << 20  # bytes of one read
PIECE = 32 << 10  # compressed bytes given to the decompressor at once: about one member
LARGEST = 32 << 20  # bytes of one record; Common Crawl cuts pages at 5 MiB (1 MiB before 2025). Of 5-byte <img>s 500 MB
MOST_GUESSED = 1 << 30  # bytes read and unpacked to find the member after a damage; a guess costs BLOCK and more
MAGIC = b"\x1f\x8b\x08"  # RFC 1952: a member begins so
GZIP = 16 + zlib.MAX_WBITS
NOT_GZIP: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub has an instance for the class


@dataclass(frozen=True)
class Damage:
    """Bytes of a file that could not be read."""

    offset: int
    bytes: int
    reason: str


class _Broken(Exception):
    def __init__(self, offset: int, reason: str, unpacked: int) -> None:
        super().__init__(reason)
        self.offset, self.reason, self.unpacked = offset, reason, unpacked


def read_members(file: BinaryIO) -> Iterator[bytes | Damage]:
    """Yield every whole member's content, and the damage between them, in the file's order.

    Args:
        file: seekable; goes back only after damage.

    Raises:
        TemporaryError: the file can't be read (as opposed to: what was read is damaged).
    """
    at: int | None = 0
    guessed = 0
    damaged: _Broken | None = None  # since when nothing whole was found
    while at is not None:
        try:
            for start, content in _whole_members(file, at):
                if damaged:
                    yield Damage(damaged.offset, start - damaged.offset, damaged.reason)
                    damaged, guessed = None, 0
                yield content
            return
        except _Broken as broken:
            damaged = damaged or broken
            guessed += BLOCK + broken.unpacked
            at = _next_start(file, broken.offset + 1) if guessed < MOST_GUESSED else None
    if damaged:
        yield Damage(damaged.offset, file.seek(0, io.SEEK_END) - damaged.offset, damaged.reason)


def _whole_members(file: BinaryIO, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of each member from `at` on. Raises _Broken at the first that isn't whole."""
    file.seek(at)
    start, parts, size = at, [], 0
    decompressor = isal_zlib.decompressobj(GZIP)
    while block := memoryview(_read(file)):
        taken = 0
        while taken < len(block):
            piece = block[taken : taken + PIECE]
            try:
                parts.append(decompressor.decompress(piece))
            except NOT_GZIP as error:
                raise _Broken(start, str(error), size) from error
            taken += len(piece)
            size += len(parts[-1])
            if size > LARGEST:
                raise _Broken(start, f"a record of more than {LARGEST >> 20} MiB", size)
            if decompressor.eof:
                taken -= len(decompressor.unused_data)
                yield start, parts[0] if len(parts) == 1 else b"".join(parts)
                start, parts, size = at + taken, [], 0
                decompressor = isal_zlib.decompressobj(GZIP)
        at += len(block)
    if at > start:
        raise _Broken(start, "the file ends inside a record", size)


def _next_start(file: BinaryIO, at: int) -> int | None:
    """Return where the next member may begin. A wrong guess fails and is followed by the next."""
    file.seek(at)
    tail = b""
    while block := _read(file):
        window = tail + block
        found = window.find(MAGIC)
        if found >= 0:
            return at - len(tail) + found
        at += len(block)
        tail = window[-(len(MAGIC) - 1) :]
    return None


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(BLOCK)
    except OSError as error:  # a buckets' readers raise TemporaryError themselves
        raise TemporaryError(f"{getattr(file, 'name', 'file')}: {error.strerror or error}; run again") from error
