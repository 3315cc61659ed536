"""screen: how likely a sample is what it should not be, as a score; higher = worse.

Stored, not decided: the recipe's `drop` and its rules look at the scores, so that another threshold computes nothing
anew. What has no score stays: a missing text offends nobody, and an image that can't be read is dropped anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.engine.stage import FREE, NO_EMBEDDING, Batch, ColumnStage, Field, Finding, Needs, Rate, score_rows
from components.models.checks import check_classifier
from components.pool.specs import ColumnSpec
from components.recipe.columns import RAW, Options
from components.recipe.types import Address, LocalPath, Model, ModelName, Name, Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ImageNsfw(Options):
    """How likely the image is not safe for work, by a head over the scorer's image embedding; higher = worse."""

    kind = "imageNsfw"
    roles = ("score",)
    reads = ("embedding",)

    weights: LocalPath
    """File or gs:// or s3:// address of the head (safetensors, or torch's state dict), as LAION's for this CLIP."""


class TextNsfw(Options):
    """How likely a text is not safe for work, by a text classifier; higher = worse."""

    kind = "textNsfw"
    roles = ("score",)
    reads = ("text",)

    model: ModelName
    """A Hugging Face id, folder or gs:// or s3:// address of a sequence classifier."""
    revision: Text | None = None
    """Commit, branch or tag of a Hugging Face id."""
    label: Text
    """The classifier's label whose probability is the score."""
    text: Name = RAW
    """`raw`, or an imported text."""


class Duplicates(Options):
    """Highest cosine of the image with the images of an index, such as the evaluation sets'; higher = closer."""

    kind = "duplicates"
    roles = ("score",)
    reads = ("embedding",)

    index: Address
    """Embeddings by the scorer, as a .npy or .parquet file, or a folder of them: an embed column's."""


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
    kinds = (ImageNsfw, TextNsfw, Duplicates)
    batch_size = 1024
    sample_bytes = 26

    @classmethod
    def fingerprints(cls, options: Model, where: str) -> dict[str, str]:
        prints = super().fingerprints(options, where)
        if isinstance(options, Duplicates):
            from components.stages.screen.index import index_fingerprint

            prints["index"] = index_fingerprint(options.index, f"{where}.index")
        return prints

    @classmethod
    def check(cls, options: Model, where: str) -> Iterator[Finding]:
        if isinstance(options, TextNsfw):
            return check_classifier(options.model, options.revision, options.label, where)
        return super().check(options, where)

    @classmethod
    def rate(cls, spec: ColumnSpec) -> Rate | None:
        return FREE if "embedding" in spec.inputs else None

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        self.score: Callable[[Any], NDArray[np.float32]]
        match self.options:
            case ImageNsfw(weights=weights):
                from components.stages.screen.head import load_head

                self.score = load_head(self.here("weights", weights)).score
            case Duplicates(index=index):
                from components.stages.screen.index import read_index
                from components.stages.screen.nearest import Nearest

                self.score = Nearest(read_index(index, self.spec.inputs["embedding"].params), index).cosines
            case TextNsfw(model=model, revision=revision, label=label):
                from components.stages.screen.classifier import load_classifier

                self.score = load_classifier(self.here("model", model), self.commit() or revision, label).score

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        if "embedding" in batch.inputs:
            return score_rows(batch.inputs["embedding"].column("embedding"), self.score, NO_EMBEDDING)
        return score_rows(batch.inputs["text"].column("text"), self.score, None)  # a missing text is no error
