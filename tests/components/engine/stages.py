"""Column stages for tests of the worker loop: no model, but real decoding and real commits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from components.engine.images import Geometry
from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.pool.specs import ColumnSpec


class Brightness(ColumnStage):
    """Mean of the pixels: depends on the image alone."""

    name, summary, writes = "brightness", "mean of the pixels", "brightness"
    reads = ("image",)
    needs = Needs(memory_gib=1)
    version = 1
    fields = (Field("brightness", "float32", "[0, 255]"),)
    batch_size = 3
    geometry = Geometry((16, 16), "crop")

    @classmethod
    def make_spec(cls, index: ColumnSpec) -> ColumnSpec:
        return ColumnSpec(cls.name, "test", cls.version, {}, {"index": index})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        self.seen = sorted(uids())

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.images is not None
        return {"brightness": batch.images.mean((1, 2, 3)).astype(np.float32)}


class Twice(ColumnStage):
    """A column computed from another one."""

    name, summary, writes = "twice", "twice the brightness", "twice"
    reads = ("brightness",)
    needs = Needs(memory_gib=1)
    version = 1
    fields = (Field("twice", "float32", "[0, 510]; null: no brightness"),)

    @classmethod
    def make_spec(cls, index: ColumnSpec, brightness: ColumnSpec) -> ColumnSpec:
        return ColumnSpec(cls.name, "test", cls.version, {}, {"index": index, "brightness": brightness})

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        values = batch.inputs["brightness"].column("brightness").to_pylist()
        return {"twice": [None if v is None else 2 * v for v in values]}
