"""Face detectors of OpenCV: the cascade that it brings, and YuNet from an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

from components.base.errors import PermanentError
from components.engine.images import Pixels

CASCADE = "7b0c967d9abbdfbde025eb9c786947d151b6426040d07a8f9562ed8fd90724b4"  # SHA-256 of the file below
CASCADE_FILE = "haarcascade_frontalface_alt2.xml"
SCALE, NEIGHBOURS = 1.1, 5  # as usual: between two sizes that are looked at; detections that make a face
SMALLEST = (30, 30)  # pixels: who is smaller is hardly known; looking for them too takes half as long again
CONFIDENCE, OVERLAP, MOST = 0.6, 0.3, 5000  # YuNet's: rather a box too many, since a missed face stays as it is

Boxes = list[list[float]]
"""[x0, y0, x1, y1] each, in [0, 1] of width and height, sorted."""
Detector = Callable[[Pixels], Boxes]
"""Finds the faces in (H, W, 3) uint8 RGB pixels."""


def cascade() -> Detector:
    """Return a detector of frontal faces by Viola and Jones' cascade: needs no download.

    Raises:
        PermanentError: OpenCV brings another cascade than the one that columns are named by.
    """
    path = Path(str(files("cv2"))) / "data" / CASCADE_FILE
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != CASCADE:
        raise PermanentError(f"faces: {path} has SHA-256 {digest}, expected {CASCADE}; install opencv 4.14")
    classifier = cv2.CascadeClassifier(str(path))

    def detect(pixels: Pixels) -> Boxes:
        grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
        found = classifier.detectMultiScale(grey, SCALE, NEIGHBOURS, minSize=SMALLEST)
        return _relative(np.asarray(found).reshape(-1, 4), pixels)

    return detect


def yunet(weights: str) -> Detector:
    """Return a detector by YuNet (opencv_zoo's face_detection_yunet): also finds faces turned, covered or small.

    Raises:
        PermanentError: the file is no YuNet.
    """
    try:
        network = cv2.FaceDetectorYN.create(str(Path(weights).expanduser()), "", (320, 320), CONFIDENCE, OVERLAP, MOST)
        network.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as error:
        message = " ".join(str(error).split())[:200]
        raise PermanentError(
            f"faces: {weights} is no YuNet that OpenCV {cv2.__version__} can run: {message}"
        ) from error

    def detect(pixels: Pixels) -> Boxes:
        network.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, found = network.detect(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR))
        return _relative(np.zeros((0, 4)) if found is None else found[:, :4], pixels)

    return detect


def _relative(found: np.ndarray, pixels: Pixels) -> Boxes:
    """Convert (N, 4) x, y, width, height in pixels to boxes."""
    height, width = pixels.shape[:2]
    corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1) / (width, height, width, height)
    return sorted(corners.clip(0, 1).astype(np.float32).tolist())
