"""filter: DataComp's filters by raw text and image size; each is a flag that rules may ask for.

Source: mlfoundations/datacomp, baselines/apply_filter.py. Two things differ: the index has stripped the text, and the
default language model is the quantised lid.176.ftz (`model: …/lid.176.bin` is DataComp's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.recipe.columns import Options
from components.recipe.types import LocalPath, Model
from components.stages.filter.language import BUNDLED, english
from components.stages.filter.wordnet import Entities

WORDS, CHARACTERS = 2, 5  # a text has more than these
SIDE, ASPECT = 200, 3.0  # an image has at least this short side, in pixels, and at most this ratio of its sides
NO_SIZE = "original size unknown"


class _Filter(Options):
    """Base of the filters, which all ask for a language."""

    roles = ("flag",)

    model: LocalPath | None = None
    """A fastText model such as DataComp's lid.176.bin, or its gs:// or s3:// address; left out: the bundled,
    quantised lid.176.ftz."""


class Language(_Filter):
    """Whether the raw text is in a language: DataComp's filter `english`."""

    kind = "language"

    is_: Annotated[Literal["en"], pydantic.Field(alias="is")] = "en"
    """Which language: en, as in DataComp."""


class Basic(_Filter):
    """DataComp's filter `basic`: in English, more than 2 words and 5 characters, an image of at least 200 pixels and at
    most 3:1."""

    kind = "basic"


class ImageNet21k(_Filter):
    """DataComp's filter `text_based`: in English, with a word that names a class of ImageNet-21k."""

    kind = "imagenet21k"

    wordnet: LocalPath
    """Folder or gs:// or s3:// address of WordNet 3.0's files (index.noun, data.noun, …)."""
    wnids: LocalPath
    """File or gs:// or s3:// address with the id of a class in each line, such as n02084071."""


class FilterStage(ColumnStage):
    """Reads the index alone, as the text: no image is opened."""

    name = "filter"
    summary = "DataComp's filters by raw text and image size"
    reads = ("text",)
    writes = "flag"
    needs = Needs(memory_gib=2)
    version = 1
    fields: tuple[Field, ...] = (
        Field("flag", "bool", "the sample passes; a sample without a text never does; null: original size unknown"),
    )
    kinds = (Language, Basic, ImageNet21k)
    batch_size = 10_000
    sample_bytes = 20

    @classmethod
    def fingerprints(cls, options: Model, where: str) -> dict[str, str]:
        return {"model": BUNDLED, **super().fingerprints(options, where)}

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        asked = self.options
        self.speaks = english(asked.model and self.here("model", asked.model))
        self.entities = None
        if isinstance(asked, ImageNet21k):
            self.entities = Entities(self.here("wordnet", asked.wordnet), self.here("wnids", asked.wnids))

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        rows = batch.inputs["text"].select(["text", "width", "height"]).to_pylist()
        flags = [row["text"] is not None and self._passes(**row) for row in rows]
        return {"flag": flags, "error": [NO_SIZE if flag is None else None for flag in flags]}

    def _passes(self, text: str, width: int | None, height: int | None) -> bool | None:
        if isinstance(self.options, Basic):
            long = len(text.split()) > WORDS and len(text) > CHARACTERS
            return long and self.speaks(text) and large(width, height)
        return self.speaks(text) and (self.entities is None or self.entities(text))


def large(width: int | None, height: int | None) -> bool | None:
    """Return whether an image is neither small nor a strip; None where a side is unknown."""
    if width is None or height is None:
        return None
    return min(width, height) >= SIDE and max(width, height) / min(width, height) <= ASPECT
