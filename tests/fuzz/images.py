"""Images: damaged pixels end in pixels or a reason; damaged metadata costs no image."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from components.engine.images import Geometry, ImageError, decode
from tests.fuzz.damage import NUMBERS, damaged
from tests.fuzz.limits import check_reason

WHOLE = Geometry((256, 256), "inside")
MODEL = Geometry((64, 64), "crop")
FORMATS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "LA", "L", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L"),
    "TIFF": ("RGB", "L", "I;16", "CMYK", "F"),
}


def damaged_image(chance: Random, _folder: Path) -> None:
    """Damage an image of any format anywhere."""
    data = damaged(chance, _image(chance, chance.choice(list(FORMATS))))
    try:
        for geometry in (WHOLE, MODEL):
            pixels = decode(data, geometry)
            assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
            assert pixels.shape[:2] == MODEL.size if geometry is MODEL else max(pixels.shape[:2]) <= 256
    except ImageError as error:
        check_reason(str(error))


def damaged_metadata(chance: Random, _folder: Path) -> None:
    """Put metadata that nobody can read into a whole image: its pixels stay, turned at most."""
    plain = _image(chance, chance.choice(("JPEG", "PNG")))
    add = _with_segment if plain.startswith(b"\xff\xd8") else _with_chunk
    found, expected = decode(add(chance, plain), WHOLE), decode(plain, WHOLE)
    assert sorted(found.shape) == sorted(expected.shape)
    assert (_sorted(found) == _sorted(expected)).all()


def many_scans(chance: Random, _folder: Path) -> None:
    """Repeat the scans of a progressive JPEG of many pixels: bounded work, or a reason."""
    sink = io.BytesIO()
    side = chance.choice((512, 2048, 8000))
    Image.new("L", (side, side), chance.randrange(256)).save(sink, "JPEG", progressive=True)
    data = sink.getvalue()
    start = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    scan = data[start : data.index(b"\xff\xda", start + 2)]
    data = data[:start] + scan * chance.choice((10, 1000, 20_000)) + data[start:]
    try:
        assert decode(data, MODEL).shape == (64, 64, 3)
    except ImageError as error:
        check_reason(str(error))


def announced_size(chance: Random, _folder: Path) -> None:
    """Announce a size that no image of so few bytes has: no memory for it, a reason."""
    side = chance.choice((1, 4096, 8192, 8191, 30_000, 0x7FFFFFFF))
    other = chance.choice((side, 1, 16, 8192))
    depth, colour = chance.choice(((8, 2), (16, 2), (16, 6), (16, 0), (1, 0), (8, 3)))
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, other, depth, colour, 0, 0, chance.randint(0, 1)))
    body = _chunk(b"IDAT", zlib.compress(bytes(chance.choice((10, 1 << 20)))))
    png = b"\x89PNG\r\n\x1a\n" + head + body + _chunk(b"IEND", b"")
    try:
        decode(png, MODEL)
    except ImageError as error:
        check_reason(str(error))


KINDS = {
    "image": damaged_image,
    "metadata": damaged_metadata,
    "scans": many_scans,
    "size": announced_size,
}


def _image(chance: Random, kind: str) -> bytes:
    width, height = chance.randint(2, 64), chance.randint(2, 64)
    pixels = np.frombuffer(chance.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    image = Image.fromarray(pixels)
    mode = chance.choice(FORMATS[kind])
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    sink = io.BytesIO()
    options = {"progressive": chance.random() < 0.5, "quality": 90} if kind == "JPEG" else {}
    image.save(sink, kind, **options)
    return sink.getvalue()


def _exif(chance: Random) -> bytes:
    """Write tags of any type with any value, a turned image's orientation among them."""
    order = chance.choice("<>")
    tags = [(0x0112, 3, 1, chance.randint(0, 9))]
    tags += [
        (chance.choice((0x011A, 0x8769, 0x9286, 0x02BC, chance.randrange(1 << 16))), chance.randint(0, 14), n, v)
        for n, v in ((chance.choice(NUMBERS), chance.choice(NUMBERS)) for _ in range(chance.randint(0, 5)))
    ]
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    whole = head + entries + struct.pack(order + "I", chance.choice(NUMBERS)) + chance.randbytes(16)
    return damaged(chance, whole, 2) if chance.random() < 0.5 else whole


def _with_segment(chance: Random, jpeg: bytes) -> bytes:
    marker, content = chance.choice(
        (
            (0xE1, b"Exif\0\0" + _exif(chance)),
            (0xE2, b"ICC_PROFILE\0\1\1" + chance.randbytes(40)),
            (0xE2, b"MPF\0" + _exif(chance)),
            (0xED, b"Photoshop 3.0\0" + chance.randbytes(40)),
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + chance.randbytes(40)),
            (0xFE, chance.randbytes(40)),
        )
    )
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def _with_chunk(chance: Random, png: bytes) -> bytes:
    packed = zlib.compress(bytes(chance.choice((10, 3 << 20))))
    kind, content = chance.choice(
        (
            (b"tEXt", b"Comment\0" + chance.randbytes(30)),
            (b"zTXt", b"Comment\0\0" + packed),
            (b"iTXt", b"Comment\0\1\0\0\0" + packed),
            (b"iCCP", b"profile\0\0" + packed),
            (b"eXIf", _exif(chance)),
            (b"gAMA", chance.randbytes(4)),
            (b"tIME", chance.randbytes(7)),
            (b"prIV", chance.randbytes(20)),
        )
    )
    crc = None if chance.random() < 0.7 else chance.randbytes(4)
    at = 33 if chance.random() < 0.7 else len(png) - 12  # behind IHDR, or before IEND
    return png[:at] + _chunk(kind, content, crc) + png[at:]


def _chunk(kind: bytes, content: bytes, crc: bytes | None = None) -> bytes:
    crc = crc or struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def _sorted(pixels: np.ndarray) -> np.ndarray:
    flat = pixels.reshape(-1, 3).astype(np.int64)
    return np.sort(flat @ np.array([1 << 16, 1 << 8, 1]))
