"""caption: one sampled caption per image by BLIP, BLIP-2 or CoCa, the same in whatever batch it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.models.names import model_label
from components.pool.columns import ColumnSpec
from components.recipe.recipe import Captioner

EMPTY = "empty caption"


class CaptionStage(ColumnStage):
    """One captioner at one temperature."""

    name = "caption"
    summary = "captions of one captioner at one temperature"
    reads = ("image",)
    writes = "text"
    needs = Needs(memory_gib=24, gpu=True)  # BLIP-2 OPT-2.7B in half precision is 7.5 GiB, read from 15 GiB of files
    version = 1
    fields: tuple[Field, ...] = (
        Field("text", "string", "caption; null: the image can't be read, or nothing but special tokens was drawn"),
    )
    batch_size = 64

    @classmethod
    def make_spec(cls, captioner: Captioner, fingerprint: str, index: ColumnSpec) -> ColumnSpec:
        params = captioner.model_dump(mode="json", exclude={"name"}) | {"fingerprint": fingerprint}
        label = f"{model_label(captioner.model)}-t{captioner.temperature:g}"
        return ColumnSpec(cls.name, label, cls.version, params, {"index": index})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        from components.models.captioner import Sampling
        from components.models.captioners import load_captioner

        params = self.spec.params
        sampling = Sampling(params["temperature"], params["top_k"], params["min_length"], params["max_length"])
        self.captioner = load_captioner(params["model"], params["revision"], sampling)
        self.geometry = self.captioner.geometry

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.images is not None
        captions = self.captioner.generate(batch.images, batch.uids, self.spec.hash)
        return {"text": [c or None for c in captions], "error": [None if c else EMPTY for c in captions]}
