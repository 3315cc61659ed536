"""Blurring faces as img2dataset does for DataComp (img2dataset/blurrer.py), after ImageNet's face obfuscation.

Every box grows by a tenth of its longer side; inside, the image fades into its Gaussian blur, whose sigma is a tenth of
the longest side of all boxes. One thing differs: boxes end at the image's border, where img2dataset's negative indices
select nothing, so that a face at the upper or left border stays as it is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.engine.images import Pixels, open_rgb

cv2.setNumThreads(1)  # a tar has one core

GROWTH = SIGMA = 0.1  # of the longer side
QUALITY = 95  # of the JPEG: img2dataset's


def blurred(image: bytes, boxes: Sequence[Sequence[float]]) -> bytes:
    """Return a JPEG of the upright image with these boxes blurred: [x0, y0, x1, y1] in [0, 1] of its width and height.

    Raises:
        ImageError: it can't be read.
    """
    pixels = np.asarray(open_rgb(image), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(blur(pixels, boxes)).save(sink, "JPEG", quality=QUALITY)
    return sink.getvalue()


def blur(pixels: Pixels, boxes: Sequence[Sequence[float]]) -> Pixels:
    """Blur the boxes of (H, W, 3) uint8 pixels."""
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.float32)
    longest = 0
    for box in boxes:
        x0, y0, x1, y1 = (int(at * side) for at, side in zip(box, (width, height, width, height), strict=True))
        longer = max(x1 - x0, y1 - y0, 1)
        longest = max(longest, longer)
        more = GROWTH * longer
        mask[max(0, int(y0 - more)) : int(y1 + more) + 1, max(0, int(x0 - more)) : int(x1 + more) + 1] = 1
    sigma = SIGMA * longest
    radius = math.ceil(4 * sigma)
    kernel = (2 * radius + 1, 2 * radius + 1)
    part = _reached(mask, 2 * radius)  # the mask fades within a radius, and what is seen there comes from another one
    image = pixels[part].astype(np.float32)
    soft = cv2.GaussianBlur(mask[part], kernel, sigma)[:, :, None]
    mixed = image * (1 - soft) + cv2.GaussianBlur(image, kernel, sigma) * soft
    found = pixels.copy()
    found[part] = mixed.round().clip(0, 255)
    return found


def _reached(mask: NDArray[np.float32], reach: int) -> tuple[slice, slice]:
    """Return rows and columns of the mask, and `reach` more around them: a small face in a large image costs little."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(0, at[0] - reach), at[-1] + reach + 1) for at in (rows, columns))  # type: ignore[return-value]
