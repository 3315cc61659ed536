"""Every strange image becomes RGB or a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from components.engine.images import Geometry, ImageError, decode, open_rgb
from tests.pools import encode, jpeg

CROP = Geometry((32, 32), "crop")
RED = (250, 10, 10)


def bomb() -> bytes:
    """A PNG that claims 40,000 × 40,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty image"),
        (b"<html>not found</html>", "not an image"),
        (jpeg()[:200], "not an image|truncated image|corrupt image"),
        (jpeg(size=(300, 300))[:-500], "truncated image"),
        (jpeg(size=(1, 1)), "image of one pixel's width"),
        (bomb(), "image of too many pixels"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^({reason})$"):
        decode(data, CROP)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("CMYK", (64, 48), (0, 245, 245, 5)),
        Image.new("RGBA", (64, 48), (*RED, 255)),
        Image.new("RGB", (64, 48), RED).quantize(4),
    ],
)
def test_modes_become_rgb(image: Image.Image) -> None:
    data = encode(image, "TIFF" if image.mode == "CMYK" else "PNG")
    assert np.abs(decode(data, CROP)[16, 16].astype(int) - RED).max() <= 12


def test_alpha_lies_over_white() -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert decode(encode(clear, "PNG"), CROP).min() == 255


def test_sixteen_bits_are_scaled_to_eight() -> None:
    wide = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    assert abs(int(decode(encode(wide, "PNG"), CROP).mean()) - 128) <= 1


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (64, 64), RED), Image.new("RGB", (64, 64), (0, 0, 0))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, CROP)[0, 0, 0] > 200


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (64, 32), (0, 0, 0))
    image.paste(RED, (0, 0, 8, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90° clockwise: the left edge becomes the top
    sink = io.BytesIO()
    image.save(sink, "JPEG", exif=exif, quality=95)
    shown = open_rgb(sink.getvalue())
    assert shown.size == (32, 64)
    assert np.asarray(shown)[2, 16, 0] > 200
    assert np.asarray(shown)[60, 16, 0] < 50


def test_extreme_aspect_stays_small() -> None:
    assert decode(encode(Image.new("RGB", (20_000, 2), RED), "PNG"), CROP).shape == (32, 32, 3)


@pytest.mark.parametrize(("mode", "size"), [("crop", (24, 24)), ("squash", (24, 40)), ("longest", (40, 40))])
def test_sizes(mode: str, size: tuple[int, int]) -> None:
    assert decode(jpeg(size=(100, 50)), Geometry(size, mode)).shape == (*size, 3)  # type: ignore[arg-type]
