"""Image bytes to pixels, without torch: every strange image becomes RGB or a reason."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 1 << 26  # 8192 × 8192; more is a decompression bomb, not a photo
MIN_SIDE = 2  # a 1 × 1 image is a tracking pixel
MAX_ASPECT = 32  # beyond it, resizing the short side first would make a huge intermediate image
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

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
    image = _fit(open_rgb(data), geometry)
    return np.asarray(image, dtype=np.uint8)


def open_rgb(data: bytes) -> Image.Image:
    """Decode an image in RGB at its own size: first frame, EXIF rotation applied, alpha over white, 16 bits scaled to
    8.

    Raises:
        ImageError: as `decode`.
    """
    with opened(data) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if "exif" in image.info else image)


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image of a size that may be decoded: its header is read, its pixels are not decoded yet.

    Raises:
        ImageError: as `decode`; also in place of what Pillow raises in the body.
    """
    if not data:
        raise ImageError("empty image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about what we refuse or repair below
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size)
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


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError("image of too many pixels")
    if min(size) < MIN_SIDE:
        raise ImageError("image of one pixel's width")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB: alpha over white, 16 bits scaled to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _fit(image: Image.Image, geometry: Geometry) -> Image.Image:
    (height, width), resample = geometry.size, _FILTERS[geometry.interpolation]
    w, h = image.size
    if geometry.mode == "squash":
        return image.resize((width, height), resample)
    if geometry.mode == "inside":
        scale = min(1, width / w, height / h)
        return image.resize((max(1, round(w * scale)), max(1, round(h * scale))), resample) if scale < 1 else image
    if geometry.mode == "longest":
        scale = min(width / w, height / h)
        inner = image.resize((max(1, round(w * scale)), max(1, round(h * scale))), resample)
        canvas = Image.new("RGB", (width, height), (geometry.fill,) * 3)
        canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return canvas
    if max(w, h) > MAX_ASPECT * min(w, h):
        side = min(w, h)
        image = image.crop(((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2))
        w = h = side
    # torchvision's Resize(int) then CenterCrop: the long side is floored, the crop's corner rounded.
    short = max(height, width)
    if w <= h:
        image = image.resize((short, int(short * h / w)), resample)
    else:
        image = image.resize((int(short * w / h), short), resample)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
