"""Image files without what surrounds the pixels, so that no decoder stumbles over a picture's metadata.

Each format is a list of parts: JPEG's segments, PNG's and WebP's chunks, GIF's blocks, TIFF's tags, AVIF's items. Only
the parts that decide the first picture's pixels are handed on; EXIF and XMP are handed over as bytes, for the
orientation. No function here raises: from the first byte that it doesn't understand, a file is handed on as it is, and
the decoder says what is wrong with it.

Imports little: a spawned process starts by importing this module.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

PROFILE = 1 << 16  # bytes of a PNG's EXIF that ImageMagick wrote as compressed text


@dataclass(frozen=True)
class Frame:
    """What a JPEG says of its picture."""

    width: int
    height: int
    """In pixels."""
    bands: int
    bits: int
    """Of each band's value."""
    progressive: bool

    @property
    def blocks(self) -> int:
        """Pixels that are decoded at least: JPEG has no smaller part than a block."""
        return -(-self.width // 16) * -(-self.height // 16) * 256


@dataclass(frozen=True)
class Bare:
    """An image file without metadata, and what was read on the way."""

    data: bytes
    exif: bytes = b""
    """A TIFF structure that begins with its byte order; as it was found, broken or not."""
    xmp: bytes = b""
    canvas: tuple[int, int] | None = None
    """Width and height in pixels of a WebP, whose decoder takes memory for them as soon as it is made."""
    frame: Frame | None = None
    """Of a JPEG; None of other formats."""
    scanned: int = 0
    """Pixels that a JPEG's decoder passes over, in all scans together."""


def bare(data: bytes) -> Bare:
    """Take the first picture out of an image file."""
    for start, take in _FORMATS:
        if start.match(data):
            return take(data)
    return Bare(data)


def orientation(found: Bare) -> int:
    """Return EXIF's orientation, 1 to 8, or XMP's where EXIF has none; 1 where neither can be read."""
    for tag, kind, _, value, order in _entries(found.exif):
        if tag == ORIENTATION and kind in INTEGERS:
            turn = int.from_bytes(value[: INTEGERS[kind]], order)
            return turn if 1 <= turn <= 8 else 1
    said = XMP_ORIENTATION.search(found.xmp)
    return int(said[1]) if said else 1


ORIENTATION = 0x112
INTEGERS = {1: 1, 3: 2, 4: 4}  # bytes of TIFF's unsigned integers, by type
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")

# JPEG: segments. A marker is none of the bytes that may follow 0xFF within a scan.
_MARKER = re.compile(rb"\xff+([^\x00\xff\x01\xd0-\xd8])")
_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of a frame
_ONE_PASS = (0xC0, 0xC1)
_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE


def _jpeg(data: bytes) -> Bare:
    kept, exif, xmp, scans, at = [data[:2]], b"", b"", 0, 2
    frame: Frame | None = None
    while found := _MARKER.search(data, at):
        marker, begin = found[1][0], found.end() - 2
        if scans:
            kept.append(data[at:begin])  # the scan
        if marker == _END:
            kept.append(data[begin : begin + 2])
            break
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
        body = data[begin + 4 : at]
        if marker in range(0xE0, 0xF0) or marker == _COMMENT:
            if body.startswith(b"Exif\0\0"):
                exif += body[6:]
            elif body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = body
            if not (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) and not (
                marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
            ):
                continue  # the colours depend on JFIF's and Adobe's segments alone
        elif marker in _SIZES and frame is None and len(body) > 5:
            height, width = (int.from_bytes(body[i : i + 2], "big") for i in (1, 3))
            frame = Frame(width, height, body[5], body[0], marker not in _ONE_PASS)
        scans += marker == _SCAN
        kept.append(data[begin:at])
        if marker == _SCAN and _is_last_scan(frame, body):  # most have one scan: its bytes need not be looked at
            kept.append(data[at:])
            break
    else:
        kept.append(data[at:])
    return Bare(b"".join(kept), exif, xmp, frame=frame, scanned=scans * frame.blocks if frame else 0)


def _is_last_scan(frame: Frame | None, header: bytes) -> bool:
    """Say whether a scan with this header is the last that a decoder reads: all bands in a frame of one pass."""
    return frame is not None and not frame.progressive and header[:1] == bytes([frame.bands])


def _png(data: bytes) -> Bare:
    kept, exif, xmp, at = [data[:8]], b"", b"", 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if not kind.isalpha():
            kept.append(data[at:])
            break
        end = at + 12 + length
        body = data[at + 8 : end - 4]
        if kind == b"eXIf":
            exif = body.removeprefix(b"Exif\0\0")
        elif body.startswith(b"XML:com.adobe.xmp\0"):
            xmp = body
        elif body.startswith(b"Raw profile type exif\0") and not exif:
            exif = _profile(kind, body)
        if kind[0] < 0x60 or (kind == b"tRNS" and data[end - 4 : end] == zlib.crc32(kind + body).to_bytes(4, "big")):
            kept.append(data[at:end])  # a critical chunk, by its name's first letter, or transparency
        if kind == b"IEND":
            break
        at = end
    return Bare(b"".join(kept), exif, xmp)


def _profile(kind: bytes, body: bytes) -> bytes:
    """Return the EXIF that ImageMagick writes into a text chunk, in hexadecimal digits after three lines."""
    text = body.partition(b"\0")[2]
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], PROFILE)
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii")).removeprefix(b"Exif\0\0")
    except (zlib.error, ValueError):
        return b""


def _webp(data: bytes) -> Bare:
    kept: list[bytes] = []
    exif, xmp, canvas, at, frames = b"", b"", None, 12, 0
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        body = data[at + 8 : at + 8 + length]
        if kind == b"VP8X" and length >= 10 and canvas is None:
            canvas = (int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
            kept.append(data[at : at + 8] + bytes([body[0] & ~0x2C]) + data[at + 9 : end])  # no ICC, EXIF, XMP
        elif kind == b"EXIF":
            exif = body.removeprefix(b"Exif\0\0")
        elif kind == b"XMP ":
            xmp = body
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (kind == b"ANMF" and not frames):
            frames += kind == b"ANMF"
            kept.append(data[at:end])
            if kind == b"VP8 " and canvas is None:
                width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
                canvas = (width, height)
            elif kind == b"VP8L" and canvas is None:
                bits = int.from_bytes(body[1:5], "little")
                canvas = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        at = end
    chunks = b"WEBP" + b"".join(kept)
    return Bare(b"RIFF" + len(chunks).to_bytes(4, "little") + chunks, exif, xmp, canvas)


def _gif(data: bytes) -> Bare:
    """Keep the first picture, and the control block before it if it has its four bytes."""
    at = 13 + _colours(data[10:11])
    kept = [data[:at]]
    while (kind := data[at : at + 1]) == b"!":
        end = _blocks_end(data, at + 2)
        if data[at + 1 : at + 3] == b"\xf9\x04":
            kept.append(data[at:end])
        at = end
    if kind == b",":
        end = _blocks_end(data, at + 11 + _colours(data[at + 9 : at + 10]))
        return Bare(b"".join([*kept, data[at:end], b";"]))
    return Bare(b"".join([*kept, data[at:]]))


def _colours(flags: bytes) -> int:
    """Return the bytes of the colour table that follows, which the flags tell."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _blocks_end(data: bytes, at: int) -> int:
    """Return where a chain of blocks ends, each a byte with its length and so many bytes."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return min(at + 1, len(data))


# TIFF: the tags that say where the pixels are and how they are stored.
_STORAGE = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339),
    *(347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}
Order = Literal["little", "big"]
Entry = tuple[int, int, bytes, bytes, Order]


def _entries(data: bytes) -> Iterator[Entry]:
    """Yield the tags of a TIFF structure's first directory: tag, type, the whole entry, its value or where that is, and
    the byte order."""
    order: Order = "little" if data[:2] == b"II" else "big"
    big = int.from_bytes(data[2:4], order) == 43
    if data[:2] not in (b"II", b"MM"):
        return
    pointer, count, width = (8, 8, 20) if big else (4, 2, 12)
    at = int.from_bytes(data[pointer : 2 * pointer], order)
    entries = int.from_bytes(data[at : at + count], order)
    at += count
    for start in range(at, min(at + width * entries, len(data) - width + 1), width):
        entry = data[start : start + width]
        tag, kind = (int.from_bytes(entry[i : i + 2], order) for i in (0, 2))
        yield tag, kind, entry, entry[width - pointer :], order


def _tiff(data: bytes) -> Bare:
    """Append a directory of the tags that pixels need, and let the header point there: the values stay in place."""
    entries = list(_entries(data))
    kept = [entry for tag, _, entry, _, _ in entries if tag in _STORAGE]
    xmp = next(
        (found for tag, _, entry, _, order in entries if tag == 700 and (found := _value(data, entry, order))), b""
    )
    if not kept:
        return Bare(data, data)
    order = entries[0][4]
    pointer, count = (8, 8) if len(kept[0]) == 20 else (4, 2)
    whole = data + b"\0" * (-len(data) % 8)
    header = data[:pointer] + len(whole).to_bytes(pointer, order)
    directory = len(kept).to_bytes(count, order) + b"".join(kept) + b"\0" * pointer
    return Bare(header + whole[2 * pointer :] + directory, data, xmp)


def _value(data: bytes, entry: bytes, order: Order) -> bytes:
    """Return an entry's bytes that lie elsewhere in the file."""
    width = 8 if len(entry) == 20 else 4
    length, at = (int.from_bytes(entry[i : i + width], order) for i in (4, 4 + width))
    return data[at : at + length]


# AVIF: of its list of items, those of EXIF and XMP get a type that no decoder knows.
_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))(Exif|mime)", re.DOTALL)


def _avif(data: bytes) -> Bare:
    return Bare(_ITEM.sub(rb"\1skip", data[: 1 << 20]) + data[1 << 20 :])


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], Bare]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _webp),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb".{4}ftyp(?:avif|avis|mif1)", re.DOTALL), _avif),
)
