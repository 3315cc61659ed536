"""A picture is not lost for its metadata, and its orientation is kept where it can be read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.engine.images import open_rgb
from components.stages.download.picture import Picture, make_picture
from tests.pools import encode

RED, BLUE = (250, 10, 10), (10, 10, 250)
SIDEWAYS = (80, 48)
UPRIGHT = (48, 80)


def scene() -> Image.Image:
    """Red at the left, blue at the right: turned by orientation 6, red is at the top."""
    image = Image.new("RGB", SIDEWAYS, BLUE)
    image.paste(RED, (0, 0, 40, 48))
    return image


def tiff(*entries: bytes, count: int | None = None) -> bytes:
    """EXIF's TIFF structure of these directory entries."""
    return (
        b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries) if count is None else count) + b"".join(entries) + bytes(4)
    )


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack(">HHII", tag, kind, count, value)


TURN = struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
MINUS_ONE = tiff(TURN, entry(0x11A, 10, 1, 38)) + struct.pack(">ii", -1, 0)  # XResolution, a rational of −1/0
ENDLESS = tiff(TURN, entry(0x10F, 2, 0xFFFFFFF0, 8), entry(0x8769, 4, 1, 8))  # too long a text; a directory in itself
CUT = tiff(TURN, count=900)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
GARBAGE = b"\x93NUMPY of nobody's" * 3


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, **options: Any) -> bytes:
    whole = encode(scene(), "JPEG", quality=95, **options)
    return whole[:2] + b"".join(segments) + whole[2:]


def exif_jpeg(exif: bytes) -> bytes:
    return jpeg(segment(0xE1, b"Exif\0\0" + exif))


def chunk(kind: bytes, body: bytes, crc: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ crc)


def png(*chunks: bytes, behind: bytes = b"") -> bytes:
    whole = encode(scene(), "PNG")
    end = whole.index(b"IEND") - 4
    return whole[:33] + b"".join(chunks) + whole[33:end] + behind + whole[end:]


def webp(*chunks: bytes, **options: Any) -> bytes:
    """An extended WebP with these chunks behind its picture."""
    whole = encode(scene(), "WEBP", exif=b"Exif\0\0" + tiff(), quality=95, **options)
    start = whole.index(b"EXIF")
    body = whole[8:start] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def gif(*blocks: bytes) -> bytes:
    whole = encode(scene(), "GIF")
    start = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    return whole[:start] + b"".join(blocks) + whole[start:]


def tagged(*extra: tuple[int, int, int, bytes], turn: int = 1) -> bytes:
    """A TIFF with more tags in its directory."""
    whole = encode(scene(), "TIFF")
    [at] = struct.unpack("<I", whole[4:8])
    [count] = struct.unpack("<H", whole[at : at + 2])
    old = [whole[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    new = [struct.pack("<HHI", tag, kind, number) + value for tag, kind, number, value in extra]
    new.append(struct.pack("<HHIHH", 0x112, 3, 1, turn, 0))
    directory = sorted([*old, *new], key=lambda e: struct.unpack("<H", e[:2]))
    return (
        whole[:4]
        + struct.pack("<I", len(whole))
        + whole[8:]
        + struct.pack("<H", len(directory))
        + b"".join(directory)
        + struct.pack("<I", 8)  # the next directory is no directory
    )


MPO = encode(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", SIDEWAYS)], quality=95)
STILL: dict[str, Callable[[], bytes]] = {
    "JPEG, garbage as EXIF": lambda: exif_jpeg(GARBAGE),
    "JPEG, EXIF of no bytes": lambda: exif_jpeg(b""),
    "JPEG, ICC in pieces that are missing": lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0\x05\x09" + b"x" * 99)),
    "JPEG, ICC without numbers": lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0")),
    "JPEG, MPF of garbage": lambda: jpeg(segment(0xE2, b"MPF\0" + GARBAGE)),
    "JPEG, a broken Photoshop block": lambda: jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04")),
    "JPEG, a short JFIF": lambda: jpeg(segment(0xE0, b"JFIF")),
    "JPEG, a short Adobe": lambda: jpeg(segment(0xEE, b"Adobe")),
    "MPO": lambda: MPO,
    "MPO, cut in its second picture": lambda: MPO[:-200],
    "PNG, garbage as EXIF": lambda: png(chunk(b"eXIf", GARBAGE)),
    "PNG, zTXt of 3 MB": lambda: png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20)))),
    "PNG, iTXt of 3 MB": lambda: png(chunk(b"iTXt", b"k\0\x01\0\0\0" + zlib.compress(bytes(3 << 20)))),
    "PNG, iCCP of 3 MB": lambda: png(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(3 << 20)))),
    "PNG, iCCP of an unknown method": lambda: png(chunk(b"iCCP", b"k\0\x07" + GARBAGE)),
    "PNG, 80 MB of text": lambda: png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 80),
    "PNG, CRC of tEXt": lambda: png(chunk(b"tEXt", b"k\0v", crc=1)),
    "PNG, CRC of tIME at its end": lambda: png(behind=chunk(b"tIME", bytes(7), crc=1)),
    "PNG, CRC of tRNS": lambda: png(chunk(b"tRNS", bytes(6), crc=1)),
    "PNG, short pHYs": lambda: png(chunk(b"pHYs", b"\0")),
    "PNG, short gAMA, cHRM and sRGB": lambda: png(*(chunk(kind, b"") for kind in (b"gAMA", b"cHRM", b"sRGB"))),
    "PNG, an animation's control of no bytes": lambda: png(chunk(b"acTL", b""), chunk(b"fcTL", b"")),
    "WebP, garbage as EXIF": lambda: webp(riff(b"EXIF", GARBAGE)),
    "WebP, cut in its XMP": lambda: webp(riff(b"XMP ", XMP))[:-20],
    "WebP, an ICC chunk of no bytes": lambda: webp(riff(b"ICCP", b"")),
    "GIF, a broken application block": lambda: gif(b"!\xff\x0bNETSCAPE2.0\0", b"!\xff\x03abc\x01\0\0"),
    "GIF, a short control block": lambda: gif(b"!\xf9\x01\x01\0"),
    "GIF, a comment of 64 KB": lambda: gif(b"!\xfe" + (b"\xff" + b"c" * 255) * 256 + b"\0"),
    "TIFF, a resolution of 0/0": lambda: tagged((282, 5, 1, bytes(4)), (283, 10, 1, b"\xff\xff\xff\x7f")),
    "TIFF, a text that ends nowhere": lambda: tagged((270, 2, 1 << 31, b"\xff" * 4)),
    "TIFF, ICC, XMP, IPTC and EXIF nowhere": lambda: tagged(
        *((t, 7, 99, b"\xff" * 4) for t in (34675, 700, 33723, 34665))
    ),
    "TIFF, tags of no type": lambda: tagged((305, 99, 7, b"abcd"), (37724, 0, 0, b"\0" * 4)),
    "AVIF": lambda: encode(scene(), "AVIF", quality=95),
    "AVIF, garbage as EXIF": lambda: encode(
        scene(), "AVIF", quality=95, exif=b"Exif\0\0" + tiff(TURN[:2] + TURN[4:] + b"\0\0")
    ).replace(b"MM\0*", b"XX\0*"),
}
TURNED: dict[str, Callable[[], bytes]] = {
    "JPEG, −1/0": lambda: exif_jpeg(MINUS_ONE),
    "JPEG, a text without end": lambda: exif_jpeg(ENDLESS),
    "JPEG, a directory that is cut": lambda: exif_jpeg(CUT),
    "JPEG, XMP alone": lambda: jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "PNG, −1/0": lambda: png(chunk(b"eXIf", MINUS_ONE)),
    "PNG, EXIF behind the picture": lambda: png(behind=chunk(b"eXIf", CUT)),
    "PNG, EXIF with JPEG's start": lambda: png(chunk(b"eXIf", b"Exif\0\0" + ENDLESS)),
    "PNG, EXIF as ImageMagick writes it": lambda: png(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n 38\n{MINUS_ONE.hex()}\n".encode()))
    ),
    "WebP, −1/0": lambda: webp(riff(b"EXIF", b"Exif\0\0" + MINUS_ONE)),
    "WebP, a directory that is cut": lambda: webp(riff(b"EXIF", CUT)),
    "WebP, cut in its EXIF": lambda: webp(riff(b"EXIF", MINUS_ONE + bytes(40)))[:-30],
    "TIFF, EXIF nowhere": lambda: tagged((34665, 4, 1, b"\xff" * 4), turn=6),
    "AVIF": lambda: encode(scene(), "AVIF", quality=95, exif=b"Exif\0\0" + tiff(TURN)),
}


def red_and_blue(image: Image.Image) -> bool:
    """Whether the first pixel is red and the last blue."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return bool(abs(pixels[4, 4] - RED).max() < 30 and abs(pixels[-5, -5] - BLUE).max() < 30)


@pytest.mark.parametrize("case", [*STILL, *(f"{name}; turned" for name in TURNED)])
def test_a_picture_is_not_lost_for_its_metadata(case: str) -> None:
    name, _, turned = case.partition("; ")
    data = (TURNED if turned else STILL)[name]()
    size = UPRIGHT if turned else SIDEWAYS
    image, picture = open_rgb(data), make_picture(data)
    assert isinstance(picture, Picture), picture
    assert image.size == size == (picture.width, picture.height) == (picture.original_width, picture.original_height)
    assert red_and_blue(image)
    assert red_and_blue(Image.open(io.BytesIO(picture.jpeg)))


def test_a_big_tiff_is_turned() -> None:
    data = encode(scene(), "TIFF", big_tiff=True, exif=tiff(TURN))
    assert data[2] == 43
    assert open_rgb(data).size == UPRIGHT


def test_exif_that_can_be_read_is_kept_beside_what_cannot() -> None:
    found = make_picture(
        exif_jpeg(tiff(TURN, struct.pack(">HHI4s", 0x10F, 2, 4, b"ACM\0"), entry(0x8298, 2, 1 << 30, 8)))
    )
    assert isinstance(found, Picture)
    assert found.exif == '{"Make": "ACM", "Orientation": "6"}'


def test_pixels_are_those_of_the_file_without_metadata() -> None:
    """Colours come from JFIF's and Adobe's segments, transparency from tRNS and from GIF's control block."""
    for image, format, options in [
        (scene(), "JPEG", {"quality": 95, "progressive": True}),
        (scene().convert("CMYK"), "JPEG", {}),
        (scene().convert("L"), "JPEG", {}),
        (scene().quantize(4), "PNG", {"transparency": 0}),
        (scene().convert("RGB"), "PNG", {"transparency": RED}),
        (scene().convert("RGBA"), "WEBP", {"lossless": True}),
        (scene().quantize(4), "GIF", {"transparency": 1}),
        (scene(), "TIFF", {"compression": "tiff_lzw"}),
        (scene(), "TIFF", {"compression": "jpeg"}),
        (scene().convert("YCbCr"), "TIFF", {}),
        (scene().convert("1"), "TIFF", {"compression": "group4"}),
    ]:
        data = encode(image, format, **options)
        expected = Image.open(io.BytesIO(data))
        if expected.mode in ("P", "RGBA") or "transparency" in expected.info:
            expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), expected.convert("RGBA"))
        np.testing.assert_array_equal(
            np.asarray(open_rgb(data)), np.asarray(expected.convert("RGB")), f"{format} {options}"
        )
