"""Decoding takes bounded time and memory, by what the header says."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.engine.images import ImageError, open_rgb
from components.stages.download.picture import Picture, make_picture
from tests.pools import encode

SIDE = 2048
GREY = Image.linear_gradient("L").resize((SIDE, SIDE))
COLOURS = Image.merge("RGB", (GREY, GREY.transpose(Image.Transpose.ROTATE_90), GREY))
TURN = Image.Exif()
TURN[0x112] = 6

# How each is made, in the modes and formats whose decoders take most.
LARGE = {
    "jpeg": lambda: encode(COLOURS, "JPEG", exif=TURN),
    "progressive": lambda: encode(COLOURS, "JPEG", progressive=True, subsampling=0),
    "16-bit png": lambda: encode(Image.new("I;16", (SIDE, SIDE), 999), "PNG", compress_level=1),
    "rgba png": lambda: encode(COLOURS.convert("RGBA"), "PNG", compress_level=1, exif=TURN),
    "webp": lambda: encode(COLOURS.convert("RGBA"), "WEBP", lossless=True, quality=0, method=0),
    "32-bit tiff": lambda: encode(Image.new("I", (SIDE, SIDE), 999), "TIFF", compression="tiff_lzw"),
    "tiff in one strip": lambda: encode(COLOURS, "TIFF", compression="tiff_lzw", strip_size=SIDE * SIDE * 3),
    "avif": lambda: encode(COLOURS, "AVIF", speed=10, subsampling="4:4:4"),
}
MEASURE = """
import json, os, sys
from components.engine.images import Geometry, decode, decoding_bytes, open_rgb, opened

def memory(what):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(what))

for path in sys.argv[1:]:
    data = open(path, "rb").read()
    if os.fork() == 0:  # what an image before it has left is none of its own
        with opened(data) as image:
            expected = decoding_bytes(image)
        before = memory("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
        open_rgb(data)
        decode(data, Geometry((224, 224), "crop"))
        print(json.dumps([path, expected, memory("VmHWM") - before]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_no_image_takes_more_memory_than_its_header_says(tmp_path: Path) -> None:
    for name, make in LARGE.items():
        (tmp_path / name).write_bytes(make())
    script = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in LARGE)]
    lines = subprocess.run(script, check=True, stdout=subprocess.PIPE, timeout=120).stdout.splitlines()
    assert len(lines) == len(LARGE)
    for path, expected, peak in map(json.loads, lines):
        assert SIDE * SIDE * 3 < peak < expected + (9 << 20), path  # 9 MiB for what doesn't grow with the image


def webp(side: int) -> bytes:
    """34 bytes that claim a canvas."""
    canvas = struct.pack("<I", side - 1)[:3] * 2
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0x10) + canvas + b"\0\0\0\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(mode: str, side: int) -> bytes:
    """A TIFF without pixels that claims more of them."""
    whole = encode(Image.new(mode, (1, 1)), "TIFF")
    for tag in (256, 257):
        assert struct.pack("<HHII", tag, 4, 1, 1) in whole
        whole = whole.replace(struct.pack("<HHII", tag, 4, 1, 1), struct.pack("<HHII", tag, 4, 1, side))
    return whole


@pytest.mark.parametrize("data", [webp(8192), tiff("I", 8000), tiff("F", 8000)], ids=["webp", "tiff I", "tiff F"])
def test_what_takes_too_much_memory_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^image of too many pixels$"):
        open_rgb(data)
    assert make_picture(data) == "too_many_pixels"


def scans(side: int, count: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan comes again and again, with something between."""
    whole = encode(Image.new("RGB", (side, side), (200, 30, 30)), "JPEG", progressive=True)
    last, end = whole.rindex(b"\xff\xda"), whole.rindex(b"\xff\xd9")
    return whole[:end] + (between + whole[last:end]) * count + whole[end:]


COMMENT = b"\xff\xfe\x00\x04\xff\xd9"  # holds the marker of a picture's end


@pytest.mark.parametrize("between", [b"", COMMENT])
def test_the_scans_of_a_jpeg_are_bounded(between: bytes) -> None:
    data = scans(1600, 420, between)
    with pytest.raises(ImageError, match=r"^JPEG whose scans have more than 1,073,741,824 pixels together$"):
        open_rgb(data)
    assert make_picture(data) == "too_many_scans"


def test_a_small_jpeg_may_have_many_scans() -> None:
    image = open_rgb(scans(64, 500, COMMENT))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 30)).max() < 5


def test_what_follows_a_picture_is_no_scan() -> None:
    """A phone's photo may have a film behind it."""
    data = scans(1600, 0) + b"\xff\xda\x00\x04ab" * 500
    assert isinstance(make_picture(data), Picture)
