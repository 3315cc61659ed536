"""Image bytes to pixels, without torch: every strange image becomes RGB or a reason."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from components.engine.containers import Bare, bare, orientation

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a decoding process has one core

MAX_PIXELS = 1 << 26  # 8192 × 8192; more is a decompression bomb, not a photo
MAX_BYTES = 1 << 29  # of memory that decoding may take: a pod has room for so much per decoder
MAX_SCANNED = 1 << 30  # pixels of a JPEG's scans together: 16 scans of the largest image; a photo has about ten
TOO_MANY_SCANS = f"JPEG whose scans have more than {MAX_SCANNED:,} pixels together"
MIN_SIDE = 2  # a 1 × 1 image is a tracking pixel
MAX_ASPECT = 32  # beyond it, resizing the short side first would make a huge intermediate image
BAND = 1 << 18  # pixels that are converted or resized at once, so that a copy of them takes no memory to speak of
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_RESIZER = Resizer()
_FILTERS = {  # by Pillow's names
    "bicubic": ResizeAlg.convolution(FilterType.catmull_rom),
    "bilinear": ResizeAlg.convolution(FilterType.bilinear),
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RGB = 4  # bytes of a pixel in Pillow's memory, as of every mode that is not listed here
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_CODECS = {"WEBP": 16, "AVIF": 16, "TIFF": 8, "GIF": 4, "BMP": 4}  # bytes of a pixel that a format's decoder takes
_COEFFICIENTS = 2  # bytes; of a JPEG in scans all are kept

Pixels = NDArray[np.uint8]


class ImageError(Exception):
    """This image can't be used; the message is the reason that is counted."""


@dataclass(frozen=True)
class Geometry:
    """How an image is brought to a model's input size, as open_clip and transformers do it with PIL."""

    size: tuple[int, int]
    """Height, width in pixels."""
    mode: Literal["crop", "squash", "longest", "inside"]
    """crop: short side to size, then centre crop; squash: ignore the aspect; longest: fit inside and pad; inside: fit
    inside, never enlarge, so that every image has a shape of its own."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0
    """Grey level of the padding of `longest`."""


def decode(data: bytes, geometry: Geometry) -> Pixels:
    """Decode an image to (H, W, 3) uint8 pixels of the geometry's size; of mode `inside`, at most of that size.

    Raises:
        ImageError: with a short reason, the same for every image of its kind.
    """
    found = _clean_jpeg(data)
    return _fit(open_rgb(data) if found is None else found, geometry)


def _clean_jpeg(data: bytes) -> Pixels | None:
    """Decode a JPEG without fault, in half of Pillow's time and to the same pixels; None for anything else."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    found = bare(data)
    _check_early(found)
    frame = found.frame
    if frame is None or frame.bits != 8 or frame.bands not in (1, 3) or min(frame.width, frame.height) < MIN_SIDE:
        return None
    each = _RGB + (_COEFFICIENTS * frame.bands if frame.progressive else 0)
    if frame.blocks > MAX_PIXELS or each * frame.blocks > MAX_BYTES:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(found.data, "RGB")
    except ValueError:  # of a warning, too
        return None
    return _turned_pixels(pixels, orientation(found))


def _turned_pixels(pixels: Pixels, turn: int) -> Pixels:
    """Turn (H, W, 3) pixels as EXIF's orientation says, without a copy."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    across, down = turn in (2, 3, 6, 7), turn in (3, 4, 7, 8)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def open_rgb(data: bytes) -> Image.Image:
    """Decode an image in RGB at its own size: first frame, EXIF rotation applied, alpha over white, 16 bits scaled to
    8.

    Raises:
        ImageError: as `decode`.
    """
    with opened(data) as image:
        image.load()
        return upright(to_rgb(image), image.info["orientation"])


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image of a size that may be decoded: its header is read, its pixels are not decoded yet.

    Its metadata never reach Pillow. Instead of them, `info` has `orientation`, EXIF's number from 1 to 8, and `tiff`,
    the bytes of the EXIF as they were found.

    Raises:
        ImageError: as `decode`; also in place of what Pillow raises in the body.
    """
    if not data:
        raise ImageError("empty image")
    found = bare(data)
    _check_early(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about what we refuse or repair below
        try:
            with Image.open(io.BytesIO(found.data), formats=FORMATS) as image:
                turn = image.getexif().get(0x112, 1) if image.format == "AVIF" else orientation(found)
                image.info = {**image.info, "orientation": turn, "tiff": found.exif}
                _check_size(image.size)
                if decoding_bytes(image) > MAX_BYTES:
                    raise ImageError("image of too many pixels")
                yield image
        except ImageError:
            raise
        except Image.DecompressionBombError:
            raise ImageError("image of too many pixels") from None
        except UnidentifiedImageError:
            raise ImageError("not an image") from None
        except Exception as error:  # Pillow's plugins raise whatever they stumble over
            kind = "truncated" if "truncated" in str(error).lower() else "corrupt"
            raise ImageError(f"{kind} image") from None


def _check_early(found: Bare) -> None:
    """Refuse what takes long, or what takes much memory before Pillow says its size."""
    if found.scanned > MAX_SCANNED:
        raise ImageError(TOO_MANY_SCANS)
    if found.canvas and found.canvas[0] * found.canvas[1] * (_RGB + _CODECS["WEBP"]) > MAX_BYTES:
        raise ImageError("image of too many pixels")


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError("image of too many pixels")
    if min(size) < MIN_SIDE:
        raise ImageError("image of one pixel's width")


def decoding_bytes(image: Image.Image) -> int:
    """Return the memory in bytes that decoding to RGB takes at most, by the header of an image that `opened` gave."""
    each = _BYTES.get(image.mode, _RGB) + _CODECS.get(image.format or "", 0)
    each += 0 if is_rgb(image) else _RGB  # converted
    each += _RGB if image.info["orientation"] != 1 else 0  # turned
    if "progressive" in image.info:
        each += _COEFFICIENTS * len(image.getbands())
    return each * image.width * image.height


def is_rgb(image: Image.Image) -> bool:
    """Say whether the pixels are RGB without a transparent colour."""
    return image.mode == "RGB" and "transparency" not in image.info


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Turn an image as EXIF's orientation says."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, band by band: alpha over white, 16 bits scaled to 8."""
    if is_rgb(image):
        return image
    found = Image.new("RGB", image.size)
    rows = max(1, BAND // 2 // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        found.paste(_rgb(band), (0, top))
    return found


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


Source = Image.Image | Pixels
"""An image in RGB, as Pillow's or as (H, W, 3) uint8."""


def _fit(source: Source, geometry: Geometry) -> Pixels:
    (height, width), kind = geometry.size, geometry.interpolation
    w, h = _size(source)
    whole = (0.0, 0.0, float(w), float(h))
    if geometry.mode == "squash":
        return resized(source, (width, height), kind, whole)
    if geometry.mode in ("inside", "longest"):
        scale = min(width / w, height / h)
        if geometry.mode == "inside" and scale >= 1:
            return np.asarray(source)
        inner = resized(source, (max(1, round(w * scale)), max(1, round(h * scale))), kind, whole)
        if geometry.mode == "inside":
            return inner
        canvas = np.full((height, width, 3), geometry.fill, np.uint8)
        top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
        canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return canvas
    return resized(source, (width, height), kind, _cropped((w, h), (width, height)))


def _size(source: Source) -> tuple[int, int]:
    return source.size if isinstance(source, Image.Image) else (source.shape[1], source.shape[0])


def _cropped(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part of an image that is left of it when its short side is resized and its centre cut out."""
    (w, h), (width, height) = size, wanted
    if max(w, h) > MAX_ASPECT * min(w, h):
        side = min(w, h)
        return (left := (w - side) // 2), (top := (h - side) // 2), left + side, top + side
    # torchvision's Resize(int) then CenterCrop: the long side is floored, the crop's corner rounded.
    short = max(height, width)
    across, down = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    left, top = round((across - width) / 2), round((down - height) / 2)
    return left * w / across, top * h / down, (left + width) * w / across, (top + height) * h / down


def resized(source: Source, size: tuple[int, int], kind: str, box: tuple[float, float, float, float]) -> Pixels:
    """Resize a part of an image to (width, height), with SIMD.

    The pixels are those of Pillow's `resize(size, box=box)` to one level of 255, seldom two.

    Rows first, then columns, as torchvision does: the other way round a fifth of the pixels differ by a level. It goes
    band by band, since the resizer wants a copy of the pixels.

    Args:
        source: the image.
        size: width and height in pixels of what is returned.
        kind: one of `Geometry.interpolation`.
        box: left, top, right, bottom of the part in pixels of the image.
    """
    (width, height), (w, h), (left, top, right, bottom) = size, _size(source), box
    reach = 2 + math.ceil(2 * max(1.0, (bottom - top) / height))  # rows that the filter sees beyond the part
    first, last = max(0, math.floor(top) - reach), min(h, math.ceil(bottom) + reach)
    rows = max(1, BAND // w)
    bands = []
    for start in range(first, last, rows):
        stop = min(start + rows, last)
        band = np.asarray(source.crop((0, start, w, stop))) if isinstance(source, Image.Image) else source[start:stop]
        whole = ImageData(w, stop - start, PixelType.U8x3, band.tobytes())
        bands.append(_convolved(whole, (width, stop - start), kind, (left, 0.0, right, float(stop - start))))
    narrow = bands[0]
    if len(bands) > 1:
        narrow = ImageData(width, last - first, PixelType.U8x3, b"".join(band.get_buffer() for band in bands))
    found = _convolved(narrow, (width, height), kind, (0.0, top - first, float(width), bottom - first))
    return np.frombuffer(found.get_buffer(), np.uint8).reshape(height, width, 3)


def _convolved(
    pixels: ImageData, size: tuple[int, int], kind: str, box: tuple[float, float, float, float]
) -> ImageData:
    left, top = max(0.0, box[0]), max(0.0, box[1])
    crop = CropBox(left, top, min(box[2], pixels.width) - left, min(box[3], pixels.height) - top)
    found = ImageData(*size, PixelType.U8x3)
    _RESIZER.resize(pixels, found, ResizeOptions(resize_alg=_FILTERS[kind], crop_box=crop))
    return found
