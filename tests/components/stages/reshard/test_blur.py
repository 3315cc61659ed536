"""Blurring: img2dataset's formula by another implementation, everything else left as it is."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from components.engine.images import ImageError, open_rgb
from components.stages.reshard.blur import blur, blurred
from tests.pools import encode

Box = tuple[float, float, float, float]


def noise(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def by_scipy(pixels: NDArray[np.uint8], boxes: list[Box]) -> NDArray[np.float64]:
    """img2dataset/blurrer.py, with boxes that end at the border."""
    height, width = pixels.shape[:2]
    mask, longest = np.zeros((height, width)), 0
    rows, columns = np.mgrid[:height, :width]
    for box in boxes:
        x0, y0, x1, y1 = int(box[0] * width), int(box[1] * height), int(box[2] * width), int(box[3] * height)
        longer = max(x1 - x0, y1 - y0, 1)
        longest = max(longest, longer)
        more = 0.1 * longer
        mask[(columns >= int(x0 - more)) & (columns <= x1 + more) & (rows >= int(y0 - more)) & (rows <= y1 + more)] = 1
    sigma = 0.1 * longest
    radius = math.ceil(4 * sigma)
    soft = gaussian_filter(mask, sigma, mode="mirror", radius=radius)[:, :, None]
    image = pixels.astype(float)
    return (
        image * (1 - soft) + gaussian_filter(image, (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0)) * soft
    )


@pytest.mark.parametrize(
    "boxes",
    [
        [(0.3, 0.3, 0.6, 0.7)],
        [(0.1, 0.1, 0.2, 0.25), (0.5, 0.4, 0.9, 0.8)],
        [(0.0, 0.0, 0.3, 0.3)],  # img2dataset leaves this one as it is
        [(0.7, 0.6, 1.0, 1.0)],
    ],
)
def test_it_is_img2datasets_formula(boxes: list[Box]) -> None:
    pixels = noise(160, 120)
    np.testing.assert_allclose(blur(pixels, boxes), by_scipy(pixels, boxes), atol=1.01)


@given(st.tuples(*[st.floats(0, 1)] * 4), st.integers(2, 90), st.integers(2, 90))
@settings(deadline=None)
def test_inside_it_is_smooth_and_far_away_nothing_changes(corners: Box, width: int, height: int) -> None:
    x0, x1 = sorted(corners[::2])
    y0, y1 = sorted(corners[1::2])
    pixels = noise(width, height)
    found = blur(pixels, [(x0, y0, x1, y1)])
    assert found.shape == pixels.shape
    longer = max(int(x1 * width) - int(x0 * width), int(y1 * height) - int(y0 * height), 1)
    reach = 0.1 * longer + math.ceil(0.4 * longer) + 1
    rows, columns = np.mgrid[:height, :width]
    far = (columns < x0 * width - reach) | (columns > x1 * width + reach)
    far |= (rows < y0 * height - reach) | (rows > y1 * height + reach)
    np.testing.assert_array_equal(found[far], pixels[far])
    inside = found[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)]
    if min(inside.shape[:2]) >= 20:
        before = pixels[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)]
        assert inside.std() < 0.8 * before.std()


def test_the_boxes_are_of_the_upright_image() -> None:
    """A camera's rotation is applied before, and gone after."""
    upright = noise(160, 120)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = encode(Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    box: Box = (0.6, 0.1, 0.9, 0.4)
    with Image.open(io.BytesIO(blurred(turned, [box]))) as found:
        assert (found.format, found.size, dict(found.getexif())) == ("JPEG", (160, 120), {})
        pixels = np.asarray(found)
    np.testing.assert_array_equal(
        pixels, np.asarray(open_rgb(encode(Image.fromarray(blur(upright, [box])), "JPEG", quality=95)))
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_every_kind_of_image_becomes_an_rgb_jpeg(mode: str) -> None:
    image = Image.fromarray(noise(60, 40)).convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(blurred(data, [(0.2, 0.2, 0.5, 0.5)]))) as found:
        assert (found.format, found.mode, found.size) == ("JPEG", "RGB", (60, 40))


def test_what_is_no_image_is_said() -> None:
    with pytest.raises(ImageError, match="not an image"):
        blurred(b"<html>", [(0, 0, 1, 1)])
