"""faces: where faces are in an image, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from components.engine.images import Geometry
from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.pool.columns import ColumnSpec
from components.recipe.screens import Screen
from components.storage.fingerprint import path_fingerprint

SIDE = 640  # pixels: larger than DataComp's images, which are looked at as they are
CASCADE = "opencv-frontalface-alt2"


class FacesStage(ColumnStage):
    """OpenCV's frontal-face cascade, or YuNet."""

    name = "faces"
    summary = "boxes of faces, to be blurred or counted"
    reads = ("image",)
    writes = "boxes"
    needs = Needs(memory_gib=4)
    version = 1
    fields: tuple[Field, ...] = (
        Field("score", "float32", "how many faces; null: the image can't be read"),
        Field("boxes", "boxes", "of the upright image, as DataComp's face_bboxes; null: the image can't be read"),
    )
    batch_size = 64

    @classmethod
    def make_spec(cls, screen: Screen, where: str, index: ColumnSpec) -> ColumnSpec:
        """`where` is the screen's place in the recipe, for messages. Raises PermanentError: a path isn't there."""
        if screen.weights:
            params = {"weights": screen.weights, "print": path_fingerprint(screen.weights, f"{where}.weights")}
        else:
            params = {"cascade": CASCADE}
        return ColumnSpec(cls.name, "yunet" if screen.weights else "cascade", cls.version, params, {"index": index})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        import cv2

        from components.stages.faces.detectors import cascade, yunet

        cv2.setNumThreads(1)  # a worker has one core, and its threads would find boxes in any order
        weights = self.spec.params.get("weights")
        self.detect = yunet(weights) if weights else cascade()
        self.geometry = Geometry((SIDE, SIDE), "inside")

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        boxes = [self.detect(picture) for picture in batch.pictures]
        return {"score": [len(found) for found in boxes], "boxes": boxes}
