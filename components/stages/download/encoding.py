"""Content-Encoding: undoing one that was not asked for."""

from __future__ import annotations

import asyncio
import zlib

from components.stages.download.reasons import Failed

# Header or not: 47 takes gzip's and zlib's
WBITS = {"gzip": 47, "x-gzip": 47, "deflate": 15}
OTHERS = {"br", "zstd", "compress", "x-compress", "dcb", "dcz"}  # IANA's registry; unlike these, "none" is no encoding
MOST = 2  # encodings of one answer


async def unpacked(data: bytes, header: str, limit: int) -> bytes:
    """Return the content of an answer, at most `limit` bytes. What is no encoding is ignored, as browsers do.

    Raises:
        Failed: encoding, or too_large.
    """
    names = [name.strip().lower() for name in header.split(",")]
    known = [name for name in names if name in WBITS or name in OTHERS]
    if len(known) > MOST or not OTHERS.isdisjoint(known):
        raise Failed("encoding", 200)
    for name in reversed(known):
        data = await asyncio.to_thread(_unpacked, data, WBITS[name], limit)  # of 32 MB it takes 0.1 s
    return data


def _unpacked(data: bytes, wbits: int, limit: int) -> bytes:
    try:
        found = zlib.decompressobj(wbits=wbits).decompress(data, limit + 1)
    except zlib.error as error:
        raise Failed("encoding", 200) from error
    if len(found) > limit:
        raise Failed("too_large", 200)
    return found
