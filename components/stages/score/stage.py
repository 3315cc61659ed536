"""score: the cosine of a text with its image, from the stored image embedding; only the text tower runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.engine.stage import NO_EMBEDDING, Batch, ColumnStage, Field, Finding, Needs, Rate, vectors_of
from components.models.checks import check_clip
from components.models.names import model_label
from components.models.scorers import CLIP_RATES, scorer_of
from components.pool.specs import ColumnSpec
from components.recipe.columns import RAW, Options
from components.recipe.scorer import Scorer
from components.recipe.types import Model, ModelName, Name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


TEXT_TOWER = 13.0  # texts that cost as much as an image in CLIP ViT-L/14 (FLOPs of its two towers)


class ClipScore(Options):
    """The cosine of the image with a text by another CLIP than the recipe's scorer, which embeds the images as well."""

    kind = "clip"
    roles = ("score",)

    model: ModelName
    """An open_clip model name, hf-hub:org/name, or local-dir:/folder or gs:// or s3:// address with
    open_clip_config.json."""
    weights: ModelName | None = None
    """An open_clip pretrained tag, or a checkpoint's file or gs:// or s3:// address; left out where the model
    brings them."""
    text: Name = RAW
    """`raw`, or an imported text."""

    @property
    def scorer(self) -> Scorer:
        return Scorer(model=self.model, weights=self.weights)


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
    provides = "cosine"
    kinds = (ClipScore,)
    batch_size = 1024
    sample_bytes = 26

    @classmethod
    def make_spec(cls, options: Options, where: str, inputs: Mapping[str, ColumnSpec]) -> ColumnSpec:
        return cls.of_text(inputs["index"], inputs["embedding"], inputs["text"])

    @classmethod
    def of_text(cls, index: ColumnSpec, embedding: ColumnSpec, text: ColumnSpec) -> ColumnSpec:
        """Return the column of one text's cosines by the scorer that made the embeddings."""
        scorer = scorer_of(embedding)
        of = text.label if text.inputs else RAW  # only the index, which has the raw texts, reads no column
        label = f"{of}-by-{model_label(scorer.model, scorer.weights)}"
        inputs = {"index": index, "embedding": embedding, "text": text}
        return ColumnSpec(cls.name, label, cls.version, embedding.params, inputs)

    @classmethod
    def rate(cls, spec: ColumnSpec) -> Rate | None:
        rate = CLIP_RATES.get(scorer_of(spec).model)
        return rate and rate.times(TEXT_TOWER)

    @classmethod
    def pace(cls, spec: ColumnSpec) -> str:
        scorer = scorer_of(spec)  # whatever the text
        return f"{cls.name}.{model_label(scorer.model, scorer.weights)}"

    @classmethod
    def check(cls, options: Model, where: str) -> Iterator[Finding]:
        assert isinstance(options, ClipScore)
        return check_clip(options.model, options.weights, where)

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        from components.models.clip import load_clip

        scorer = scorer_of(self.spec)
        weights = scorer.weights and self.here("weights", scorer.weights)
        self.clip = load_clip(self.here("model", scorer.model), weights, revision=self.commit())

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        import pyarrow.compute as pc

        texts, images = batch.inputs["text"].column("text"), batch.inputs["embedding"].column("embedding")
        # A missing text is no error: its cosine is just null.
        unreadable = [None if there else NO_EMBEDDING for there in pc.is_valid(images).to_pylist()]
        both = pc.and_(pc.is_valid(texts), pc.is_valid(images))
        texts, images = texts.filter(both).to_pylist(), vectors_of(images.filter(both))
        cosines = iter(_cosines(images, self.clip.embed_texts(texts)) if texts else ())
        return {"cosine": [next(cosines) if there else None for there in both.to_pylist()], "error": unreadable}


def _cosines(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return cosines of rows, (B,) in [-1, 1]: normalised anew, since rounding to float16 moved the lengths off 1."""
    import numpy as np

    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    lengths = np.linalg.norm(a32, axis=1) * np.linalg.norm(b32, axis=1)
    found: NDArray[np.float32] = np.clip(np.einsum("bd,bd->b", a32, b32) / lengths, -1, 1)
    return found
