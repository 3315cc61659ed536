"""embed: one CLIP embedding per image, so that scoring another text costs the text tower only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.models.names import model_label
from components.pool.columns import ColumnSpec
from components.recipe.recipe import Scorer


class EmbedStage(ColumnStage):
    """The scorer's image tower."""

    name = "embed"
    summary = "CLIP embedding of every image"
    reads = ("image",)
    writes = "embedding"
    needs = Needs(memory_gib=8, gpu=True)
    version = 1
    fields: tuple[Field, ...] = (
        Field("embedding", "float16[D]", "L2-normalised before rounding; null: the image can't be read"),
    )
    batch_size = 256

    @classmethod
    def make_spec(cls, scorer: Scorer, fingerprint: str, index: ColumnSpec) -> ColumnSpec:
        params = {"model": scorer.model, "weights": scorer.weights, "fingerprint": fingerprint}
        return ColumnSpec(cls.name, model_label(scorer.model, scorer.weights), cls.version, params, {"index": index})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        from components.models.clip import load_clip

        self.clip = load_clip(self.spec.params["model"], self.spec.params["weights"])
        self.geometry = self.clip.geometry
        width = self.clip.embed_texts([""]).shape[1]
        self.fields = tuple(replace(field, width=width) for field in self.fields)

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.images is not None
        return {"embedding": list(self.clip.embed_images(batch.images))}
