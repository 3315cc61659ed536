"""embed: one CLIP embedding per image, so that scoring another text costs the text tower only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from components.base.hashing import said
from components.engine.stage import Batch, ColumnStage, Field, Finding, Needs, Rate
from components.models.checks import check_clip
from components.models.names import model_label
from components.models.scorers import CLIP_RATES, embedding_width, scorer_of
from components.pool.specs import ColumnSpec
from components.recipe.scorer import Scorer
from components.recipe.types import Model


class EmbedStage(ColumnStage):
    """The scorer's image tower."""

    name = "embed"
    summary = "CLIP embedding of every image"
    reads = ("image",)
    writes = "embedding"
    needs = Needs(memory_gib=8, gpu=True, decoders=None)
    version = 2
    fields: tuple[Field, ...] = (
        Field("embedding", "float16[D]", "L2-normalised before rounding; null: the image can't be read"),
    )
    provides = "embedding"
    rates = CLIP_RATES
    batch_size = 256

    @classmethod
    def of_scorer(cls, scorer: Scorer, where: str, index: ColumnSpec) -> ColumnSpec:
        """Return the column of a scorer's embeddings. Raises PermanentError: its model is not there."""
        params = {"options": said(scorer), "content": cls.fingerprints(scorer, where)}
        return ColumnSpec(cls.name, model_label(scorer.model, scorer.weights), cls.version, params, {"index": index})

    @classmethod
    def rate(cls, spec: ColumnSpec) -> Rate | None:
        return CLIP_RATES.get(scorer_of(spec).model)

    @classmethod
    def bytes_per_sample(cls, spec: ColumnSpec) -> int:
        return 32 + 2 * embedding_width(scorer_of(spec).model)

    @classmethod
    def check(cls, options: Model, where: str) -> Iterator[Finding]:
        assert isinstance(options, Scorer)
        return check_clip(options.model, options.weights, where)

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        from components.models.clip import load_clip

        scorer = scorer_of(self.spec)
        weights = scorer.weights and self.here("weights", scorer.weights)
        self.clip = load_clip(self.here("model", scorer.model), weights, revision=self.commit())
        self.geometry = self.clip.geometry
        width = self.clip.embed_texts([""]).shape[1]
        self.fields = tuple(replace(field, width=width) for field in self.fields)

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.images is not None
        return {"embedding": list(self.clip.embed_images(batch.images))}
