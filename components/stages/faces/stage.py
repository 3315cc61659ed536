"""faces: where faces are in an image, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.recipe.columns import Options
from components.recipe.types import LocalPath, Model

SIDE = 640  # pixels: larger than DataComp's images, which are looked at as they are
CASCADE = "opencv-frontalface-alt2"


class Faces(Options):
    """How many faces are in the image, and where: to be blurred, or as a score."""

    kind = "faces"
    roles = ("score", "boxes")

    weights: LocalPath | None = None
    """YuNet's ONNX file or its gs:// or s3:// address; left out: OpenCV's frontal-face cascade, which misses more and
    takes more for a face."""


class FacesStage(ColumnStage):
    """OpenCV's frontal-face cascade, or YuNet."""

    name = "faces"
    summary = "boxes of faces, to be blurred or counted"
    reads = ("image",)
    writes = "boxes"
    needs = Needs(memory_gib=2, decoders=None)
    version = 2
    fields: tuple[Field, ...] = (
        Field("score", "float32", "how many faces; null: the image can't be read"),
        Field("boxes", "boxes", "of the upright image, as DataComp's face_bboxes; null: the image can't be read"),
    )
    kinds = (Faces,)
    batch_size = 64

    @classmethod
    def label(cls, options: Options) -> str:
        return "yunet" if cast(Faces, options).weights else "cascade"

    @classmethod
    def fingerprints(cls, options: Model, where: str) -> dict[str, str]:
        return super().fingerprints(options, where) or {"weights": CASCADE}

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        import cv2

        from components.engine.images import Geometry
        from components.stages.faces.detectors import cascade, yunet

        cv2.setNumThreads(1)  # a worker has one core, and its threads would find boxes in any order
        weights = self.options.weights
        self.detect = yunet(self.here("weights", weights)) if weights else cascade()
        self.geometry = Geometry((SIDE, SIDE), "inside")

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        boxes = [self.detect(picture) for picture in batch.pictures]
        return {"score": [len(found) for found in boxes], "boxes": boxes}
