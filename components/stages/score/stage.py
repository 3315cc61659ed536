"""score: the cosine of a text with its image, from the stored image embedding; only the text tower runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.engine.stage import Batch, ColumnStage, Field, Needs, vectors_of
from components.models.names import model_label
from components.pool.columns import ColumnSpec
from components.recipe.recipe import RAW, Scorer

UNREADABLE = "image without an embedding"  # a missing text is no error: its cosine is just null


class ScoreStage(ColumnStage):
    """The scorer's text tower, against the embed stage's column of the same scorer."""

    name = "score"
    summary = "cosine of each image with one text"
    reads = ("embedding", "text")
    writes = "cosine"
    needs = Needs(memory_gib=8, gpu=True)
    version = 1
    fields: tuple[Field, ...] = (
        Field("cosine", "float32", "[-1, 1], higher = closer; null: no text, or the image can't be read"),
    )
    batch_size = 1024

    @classmethod
    def make_spec(
        cls, scorer: Scorer, fingerprint: str, index: ColumnSpec, embedding: ColumnSpec, text: ColumnSpec
    ) -> ColumnSpec:
        params = {"model": scorer.model, "weights": scorer.weights, "fingerprint": fingerprint}
        of = RAW if text.stage == index.stage else text.label
        label = f"{of}-by-{model_label(scorer.model, scorer.weights)}"
        return ColumnSpec(cls.name, label, cls.version, params, {"index": index, "embedding": embedding, "text": text})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        from components.models.clip import load_clip

        self.clip = load_clip(self.spec.params["model"], self.spec.params["weights"])

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        texts, images = batch.inputs["text"].column("text"), batch.inputs["embedding"].column("embedding")
        unreadable = [None if there else UNREADABLE for there in pc.is_valid(images).to_pylist()]
        both = pc.and_(pc.is_valid(texts), pc.is_valid(images))
        texts, images = texts.filter(both).to_pylist(), vectors_of(images.filter(both))
        cosines = iter(_cosines(images, self.clip.embed_texts(texts)) if texts else ())
        return {"cosine": [next(cosines) if there else None for there in both.to_pylist()], "error": unreadable}


def _cosines(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float32]:
    """Cosines of rows, (B,) in [-1, 1]: normalised anew, since rounding to float16 moved the lengths off 1."""
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    lengths = np.linalg.norm(a32, axis=1) * np.linalg.norm(b32, axis=1)
    found: NDArray[np.float32] = np.clip(np.einsum("bd,bd->b", a32, b32) / lengths, -1, 1)
    return found
