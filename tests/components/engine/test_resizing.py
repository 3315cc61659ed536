"""The fast decoder gives Pillow's pixels, the fast resizer Pillow's to one level."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from components.engine import images
from components.engine.images import Geometry, Pixels, decode, open_rgb
from tests.pools import encode


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes and grain: no contrast so strong that what lies beyond 0 and 255 matters."""
    noise = np.random.default_rng(seed)
    coarse = noise.integers(40, 215, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth + noise.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "progressive", "grey", "stored as RGB"])
def test_the_fast_decoder_gives_pillows_pixels(subsampling: str) -> None:
    options: dict[str, dict[str, Any]] = {"progressive": {"progressive": True}, "stored as RGB": {"keep_rgb": True}}
    for size in ((61, 37), (64, 48), (17, 130)):
        image = photo(*size).convert("L" if subsampling == "grey" else "RGB")
        if subsampling.isdecimal():
            data = simplejpeg.encode_jpeg(np.asarray(image), 80, colorsubsampling=subsampling)
        else:
            data = encode(image, "JPEG", quality=80, **options.get(subsampling, {}))
        fast = images._clean_jpeg(data)
        assert fast is not None
        np.testing.assert_array_equal(fast, np.asarray(open_rgb(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_fast_decoder_turns_as_pillow_does(orientation: int) -> None:
    tags = Image.Exif()
    tags[0x112] = orientation
    data = encode(photo(61, 37), "JPEG", exif=tags)
    fast = images._clean_jpeg(data)
    assert fast is not None
    np.testing.assert_array_equal(fast, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    np.testing.assert_array_equal(fast, np.asarray(open_rgb(data)))


def test_what_the_fast_decoder_complains_of_is_pillows() -> None:
    """A warning of libjpeg is no reason to lose a picture, nor to take half of one for a whole."""
    data = encode(photo(64, 48), "JPEG")
    noisy = data[:-2] + b"\0\0\0\0" + data[-2:]  # bytes before the end's marker that nobody needs
    np.testing.assert_array_equal(np.asarray(open_rgb(noisy)), np.asarray(open_rgb(data)))
    assert decode(noisy, Geometry((32, 32), "crop")).shape == (32, 32, 3)
    with pytest.raises(images.ImageError, match=r"^truncated image$"):
        decode(data[:-600], Geometry((32, 32), "crop"))


def pillows(image: Image.Image, geometry: Geometry) -> Pixels:
    """Pillow alone, rows before columns: some versions of Pillow begin with what is less work, and differ by that."""

    def resize(to: tuple[int, int]) -> Image.Image:
        return image.resize((to[0], image.height), kind).resize(to, kind)

    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    (height, width), kind, (w, h) = geometry.size, filters[geometry.interpolation], image.size
    if geometry.mode == "squash":
        return np.asarray(resize((width, height)))
    if geometry.mode != "crop":
        scale = min(width / w, height / h)
        inner = resize((round(w * scale), round(h * scale)))
        canvas = Image.new("RGB", (width, height), (geometry.fill,) * 3)
        canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return np.asarray(inner if geometry.mode == "inside" else canvas)
    across, down = (width, int(width * h / w)) if w <= h else (int(height * w / h), height)
    left, top = round((across - width) / 2), round((down - height) / 2)
    return np.asarray(resize((across, down)).crop((left, top, left + width, top + height)))


@pytest.mark.parametrize(
    "geometry",
    [
        *(Geometry((96, 96), "crop", kind) for kind in ("bicubic", "bilinear")),  # type: ignore[arg-type]
        Geometry((60, 90), "squash"),
        Geometry((96, 96), "longest", fill=127),
        Geometry((96, 80), "inside"),
    ],
)
@pytest.mark.parametrize("size", [(256, 192), (192, 256), (97, 96), (1300, 500), (40, 31)])
def test_resizing_is_pillows_to_one_level(geometry: Geometry, size: tuple[int, int]) -> None:
    image = photo(*size)
    if geometry.mode == "inside" and size == (40, 31):
        expected = np.asarray(image)  # is never enlarged
    else:
        expected = pillows(image, geometry)
    for data in (encode(image, "PNG", compress_level=1), encode(image, "BMP")):
        difference = np.abs(decode(data, geometry).astype(int) - expected)
        assert difference.max() <= 2
        assert (difference > 1).mean() < 0.001
        assert difference.mean() < 0.01


def test_bands_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(300, 400), "JPEG", quality=90)
    whole = decode(data, Geometry((96, 96), "crop"))
    monkeypatch.setattr(images, "BAND", 300 * 14)
    np.testing.assert_array_equal(decode(data, Geometry((96, 96), "crop")), whole)
    transparent = encode(photo(300, 400).convert("RGBA"), "PNG")
    np.testing.assert_array_equal(
        np.asarray(open_rgb(transparent)), np.asarray(Image.open(io.BytesIO(transparent)).convert("RGB"))
    )
