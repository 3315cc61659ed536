"""screen: how likely a sample is what it should not be, as a score; higher = worse.

Stored, not decided: the recipe's `drop` and its rules look at the scores, so that another threshold computes
nothing anew. What has no score stays: a missing text offends nobody, and an image that can't be read is dropped anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.engine.stage import Batch, ColumnStage, Field, Needs, vectors_of
from components.models.names import model_label
from components.pool.columns import ColumnSpec
from components.recipe.screens import Screen
from components.stages.screen.index import index_fingerprint, read_index
from components.storage.fingerprint import model_fingerprint, path_fingerprint

UNREADABLE = "image without an embedding"


class ScreenStage(ColumnStage):
    """Reads the stored embedding or a text: no image is opened."""

    name = "screen"
    summary = "NSFW images and texts, near-duplicates of evaluation images"
    reads = ("embedding", "text")
    writes = "score"
    needs = Needs(memory_gib=8, gpu=True)
    version = 1
    fields: tuple[Field, ...] = (
        Field("score", "float32", "higher = worse; null: no text, or the image can't be read"),
    )
    batch_size = 1024

    @classmethod
    def make_spec(
        cls, screen: Screen, where: str, index: ColumnSpec, embedding: ColumnSpec, text: ColumnSpec
    ) -> ColumnSpec:
        """`where` is the screen's place in the recipe, for messages. Raises PermanentError: a path isn't there."""
        source = {"embedding": embedding}
        if screen.kind == "imageNsfw":
            assert screen.weights
            made_by = {"weights": screen.weights, "print": path_fingerprint(screen.weights, f"{where}.weights")}
        elif screen.kind == "duplicates":
            assert screen.index
            made_by = {"index": screen.index, "print": index_fingerprint(screen.index, f"{where}.index")}
        else:
            assert screen.model
            assert screen.label
            at = model_fingerprint(screen.model, screen.revision, f"{where}.model")
            made_by = {"model": screen.model, "revision": screen.revision or "", "label": screen.label, "print": at}
            source = {"text": text}
        label = f"{screen.kind.lower()}-{model_label(screen.weights, screen.index, screen.model)}"
        return ColumnSpec(cls.name, label, cls.version, {"kind": screen.kind, **made_by}, {"index": index, **source})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        params = self.spec.params
        self.score: Callable[[Any], NDArray[np.float32]]
        if params["kind"] == "imageNsfw":
            from components.stages.screen.head import load_head

            self.score = load_head(params["weights"]).score
        elif params["kind"] == "duplicates":
            from components.stages.screen.nearest import Nearest

            vectors = read_index(params["index"], self.spec.inputs["embedding"].params)
            self.score = Nearest(vectors, params["index"]).cosines
        else:
            from components.stages.screen.classifier import load_classifier

            self.score = load_classifier(params["model"], params["revision"] or None, params["label"]).score

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        images = "embedding" in batch.inputs
        column = batch.inputs["embedding"].column("embedding") if images else batch.inputs["text"].column("text")
        there = column.is_valid().to_pylist()
        given: Any = column.drop_null()
        given = vectors_of(given) if images and len(given) else given.to_pylist()
        scores = iter(self.score(given) if len(given) else ())
        missing = UNREADABLE if images else None  # a missing text is no error: its score is just null
        return {
            "score": [next(scores) if row else None for row in there],
            "error": [None if row else missing for row in there],
        }
