"""aesthetic: how much people would like an image, from 1 to 10, by LAION's linear head over its embedding.

Source: LAION-AI/aesthetic-predictor; its weights for ViT-L-14 are sa_0_4_vit_l_14_linear.pth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from components.engine.stage import FREE, NO_EMBEDDING, Batch, ColumnStage, Field, Needs, Rate, score_rows
from components.pool.specs import ColumnSpec
from components.recipe.columns import Options
from components.recipe.types import LocalPath


class Aesthetic(Options):
    """How much people would like the image, by a linear head over the scorer's embedding; higher = better."""

    kind = "aesthetic"
    roles = ("score",)

    weights: LocalPath
    """File or gs:// or s3:// address of the head for this CLIP (safetensors, or torch's state dict): `weight` (1, D)
    and `bias` (1)."""


class AestheticStage(ColumnStage):
    """Reads the stored embedding: no image is opened."""

    name = "aesthetic"
    summary = "how much people would like each image"
    reads = ("embedding",)
    writes = "score"
    needs = Needs(memory_gib=4, gpu=True)
    version = 1
    fields: tuple[Field, ...] = (Field("score", "float32", "about 1 to 10, higher = better; null: no embedding"),)
    kinds = (Aesthetic,)
    batch_size = 10_000

    @classmethod
    def rate(cls, spec: ColumnSpec) -> Rate | None:
        return FREE

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        from components.models.heads import load_linear

        self.score = load_linear(self.here("weights", self.options.weights), "aesthetic")

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        return score_rows(batch.inputs["embedding"].column("embedding"), self.score, NO_EMBEDDING)
