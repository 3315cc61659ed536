"""Faces are found where they are, by the bundled cascade and by a detector in YuNet's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from components.base.errors import PermanentError
from components.stages.faces import detectors
from components.stages.faces.detectors import cascade, yunet
from tests.components.stages.faces.pictures import FACE, hopper, overlap, save_yunet


@pytest.mark.parametrize("size", [(512, 600), (256, 300), (110, 128)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_cascade_finds_a_face_at_every_size(size: tuple[int, int], mirrored: bool) -> None:
    image, expected = hopper(size), FACE
    if mirrored:
        image, expected = ImageOps.mirror(image), (1 - FACE[2], FACE[1], 1 - FACE[0], FACE[3])
    [box] = cascade()(np.asarray(image))
    assert overlap(box, expected) > 0.75


def test_two_faces_are_two_boxes_in_the_same_order() -> None:
    wide = Image.new("RGB", (512, 300), "grey")
    wide.paste(hopper(), (0, 0))
    wide.paste(hopper(), (256, 0))
    left, right = cascade()(np.asarray(wide))
    assert overlap(left, (FACE[0] / 2, FACE[1], FACE[2] / 2, FACE[3])) > 0.75
    assert overlap(right, (0.5 + FACE[0] / 2, FACE[1], 0.5 + FACE[2] / 2, FACE[3])) > 0.75


@pytest.mark.parametrize("shape", [(300, 256, 3), (2, 2, 3), (3, 640, 3), (1, 1, 3)])
def test_no_face_is_no_box(shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    for image in (noise, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
        assert cascade()(image) == []


def test_another_cascade_than_the_columns_are_named_by_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "CASCADE_FILE", "haarcascade_frontalface_default.xml")
    with pytest.raises(PermanentError, match="has SHA-256 0f7d4527"):
        cascade()


def test_yunet_sees_colours_and_sizes_as_they_are(tmp_path: Path) -> None:
    detect = yunet(str(save_yunet(tmp_path / "yunet.onnx")))
    image = np.zeros((200, 300, 3), np.uint8)
    image[64:96, 128:160, 2] = 255
    assert detect(image) == [], "blue is not red"
    image[64:96, 128:160] = (255, 0, 0)
    image[0:32, 0:32] = (255, 0, 0)
    found = np.array(detect(image)) * (300, 200, 300, 200)
    np.testing.assert_allclose(found, [[0, 0, 16, 16], [112, 48, 144, 80]], atol=1e-4)
    np.testing.assert_allclose(np.array(detect(image[:100])) * (300, 100, 300, 100), found, atol=1e-4)


def test_a_file_that_is_no_yunet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(PermanentError, match=r"faces: .*x\.onnx is no YuNet that OpenCV"):
        yunet(str(tmp_path / "x.onnx"))
