"""filter: DataComp's filters by raw text and image size; each is a flag that rules may ask for.

Source: mlfoundations/datacomp, baselines/apply_filter.py. Two things differ: the index has stripped the text, and the
default language model is the quantised lid.176.ftz (`languageModel: …/lid.176.bin` is DataComp's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.pool.columns import ColumnSpec
from components.recipe.recipe import Filter
from components.stages.filter.language import BUNDLED, english
from components.stages.filter.wordnet import Entities
from components.storage.fingerprint import path_fingerprint

WORDS, CHARACTERS = 2, 5  # a text has more than these
SIDE, ASPECT = 200, 3.0  # an image has at least this short side, in pixels, and at most this ratio of its sides
NO_SIZE = "original size unknown"


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
    batch_size = 10_000

    @classmethod
    def make_spec(cls, wanted: Filter, where: str, index: ColumnSpec) -> ColumnSpec:
        """`where` is the filter's place in the recipe, for messages. Raises PermanentError: a path isn't there."""
        named = {"languageModel": wanted.language_model, "wordnet": wanted.wordnet, "wnids": wanted.wnids}
        paths = {key: path for key, path in named.items() if path}
        prints = {key: path_fingerprint(path, f"{where}.{key}") for key, path in paths.items()}
        params = {"kind": wanted.kind, "paths": paths, "prints": {"languageModel": BUNDLED, **prints}}
        return ColumnSpec(cls.name, wanted.kind, cls.version, params, {"index": index, "text": index})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        kind, paths = self.spec.params["kind"], self.spec.params["paths"]
        self.english = english(paths.get("languageModel"))
        self.entities = Entities(paths["wordnet"], paths["wnids"]) if kind == "imagenet21k" else None

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        rows = batch.inputs["text"].select(["text", "width", "height"]).to_pylist()
        flags = [row["text"] is not None and self._passes(**row) for row in rows]
        return {"flag": flags, "error": [NO_SIZE if flag is None else None for flag in flags]}

    def _passes(self, text: str, width: int | None, height: int | None) -> bool | None:
        if self.spec.params["kind"] == "basic":
            long = len(text.split()) > WORDS and len(text) > CHARACTERS
            return long and self.english(text) and large(width, height)
        return self.english(text) and (self.entities is None or self.entities(text))


def large(width: int | None, height: int | None) -> bool | None:
    """Whether an image is neither small nor a strip; None: a side is unknown."""
    if width is None or height is None:
        return None
    return min(width, height) >= SIDE and max(width, height) / min(width, height) <= ASPECT
