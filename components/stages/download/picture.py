"""The bytes of an image to the JPEG that goes into the shard, as DataComp makes it: longest side 512, never enlarged.

DataComp (img2dataset: keep_ratio_largest, only_if_bigger) resizes with OpenCV's area averaging. Of Pillow's filters
Hamming is nearest to it (47–53 dB to exact averaging, Lanczos 45–50, Box 39–53), and a JPEG is decoded at the smallest
of its own scales that is large enough, which averages as well and takes a half to a third of the time; what a JPEG of
quality 95 loses is more than either. Unlike there, EXIF's orientation is applied, and alpha goes over white by
premultiplied resizing. Of EXIF the main directory is kept as text: no GPS, no serial numbers, no thumbnails.

Imports little: a spawned process starts by importing this module.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image
from PIL.ExifTags import TAGS

from components.engine.images import TOO_MANY_SCANS, ImageError, opened, to_rgb, upright

SIDE = 512  # pixels; DataComp's image_size
QUALITY = 95  # img2dataset's encode_quality
LONGEST_EXIF = 200  # characters of one tag
TURNED = (5, 6, 7, 8)  # orientations that swap the sides
RESIZABLE = ("RGB", "L", "RGBA", "LA", "CMYK")

REASONS = {
    "empty image": "empty",
    "not an image": "not_image",
    "corrupt image": "corrupt",
    "truncated image": "truncated",
    "image of too many pixels": "too_many_pixels",
    "image of one pixel's width": "too_small",
    TOO_MANY_SCANS: "too_many_scans",
}


@dataclass(frozen=True)
class Picture:
    """A JPEG and what is known of the image that it was made from."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    """Width and height of the original in pixels, after EXIF's orientation."""
    original_height: int
    exif: str | None
    """A JSON object, name of the tag → text."""
    sha256: str
    """SHA-256 of the original bytes."""


def make_picture(data: bytes) -> Picture | str:
    """Shrink an image to a JPEG for the shard; return the reason where that can't be done."""
    try:
        with opened(data) as image:
            turn, exif = image.info["orientation"], image.info["tiff"]
            width, height = original = image.size
            if turn in TURNED:
                original = (height, width)
            rgb = upright(to_rgb(_shrunk(image)), turn)
    except ImageError as error:
        return REASONS.get(str(error), "corrupt")
    sink = io.BytesIO()
    rgb.info = {}  # no EXIF, no profile, no comment
    rgb.save(sink, "JPEG", quality=QUALITY, subsampling="4:2:0", optimize=False, progressive=False)
    return Picture(sink.getvalue(), *rgb.size, *original, _text_of(exif), hashlib.sha256(data).hexdigest())


def _shrunk(image: Image.Image) -> Image.Image:
    """Shrink an image to its final size, in the mode and orientation in which it came."""
    longest = max(image.size)
    if longest <= SIDE:
        image.load()
        return image
    width, height = (max(1, round(side * SIDE / longest)) for side in image.size)
    image.draft(None, (width, height))  # where it is a JPEG
    image.load()
    if image.mode not in RESIZABLE or "transparency" in image.info:
        image = to_rgb(image)
    return image.resize((width, height), Image.Resampling.HAMMING)


def _text_of(exif: bytes) -> str | None:
    """Return the main directory's tags as text, those that can be read."""
    tags, found = Image.Exif(), {}
    with suppress(Exception), warnings.catch_warnings():  # whatever Pillow stumbles over: the picture is good
        warnings.simplefilter("ignore")
        tags.load(exif)
    for tag in sorted(TAGS.keys() & tags.keys()):
        with suppress(Exception):
            found[TAGS[tag]] = str(tags[tag])[:LONGEST_EXIF]
    for pointer in ("ExifOffset", "GPSInfo", "Interop"):  # where another directory begins
        found.pop(pointer, None)
    return json.dumps(found) if found else None
