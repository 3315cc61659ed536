"""caption: one sampled caption per image by BLIP, BLIP-2 or CoCa, the same in whatever batch it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pydantic

from components.engine.stage import Batch, ColumnStage, Field, Finding, Needs, Rate
from components.models.checks import check_captioner
from components.models.names import model_label
from components.recipe.columns import Options
from components.recipe.types import Model, ModelName, Seed, Text, Whole

EMPTY = "empty caption"


class Caption(Options):
    """Captions of a model that captions images, with how it samples."""

    kind = "caption"
    roles = ("text",)
    on_demand = True
    checks = (("self.minLength <= self.maxLength", "minLength is above maxLength"),)

    model: ModelName
    """A Hugging Face id, folder or gs:// or s3:// address of BLIP, BLIP-2 or CoCa, or
    open_clip:<CoCa model>/<pretrained tag>."""
    revision: Text | None = None
    """Commit, branch or tag of a Hugging Face id."""
    temperature: Annotated[float, pydantic.Field(gt=0, le=10)] = 0.75
    """Softmax temperature; the paper's default (section 4, Table 3)."""
    top_k: Annotated[int, pydantic.Field(ge=1, le=1000), Whole] = 50
    """Of how many most likely tokens one is sampled."""
    min_length: Annotated[int, pydantic.Field(ge=0, le=256), Whole] = 5
    """In tokens of the caption."""
    max_length: Annotated[int, pydantic.Field(ge=1, le=256), Whole] = 40
    """In tokens of the caption."""
    seed: Seed = 0
    """Of the sampling: another seed gives other captions."""

    @pydantic.model_validator(mode="after")
    def _lengths(self) -> Caption:
        if self.min_length > self.max_length:
            raise ValueError(f"minLength {self.min_length} is above maxLength {self.max_length}")
        return self


# The paper, Appendix B, for an A100. A core: measured with random weights, extrapolated (pipelines/planning/rates.py).
RATES = {"Salesforce/blip2-opt-2.7b": Rate(75.0, 0.07)}


class CaptionStage(ColumnStage):
    """One captioner at one temperature."""

    name = "caption"
    summary = "captions of one captioner at one temperature"
    reads = ("image",)
    writes = "text"
    # BLIP-2 OPT-2.7B in half precision is 7.5 GiB, read from 15 GiB of files
    needs = Needs(memory_gib=24, gpu=True, decoders=None)
    version = 2
    fields: tuple[Field, ...] = (
        Field("text", "string", "caption; null: the image can't be read, or nothing but special tokens was drawn"),
    )
    kinds = (Caption,)
    batch_size = 64
    rates = RATES
    sample_bytes = 70

    @classmethod
    def label(cls, options: Options) -> str:
        assert isinstance(options, Caption)
        return f"{model_label(options.model)}-t{options.temperature:g}"

    @classmethod
    def check(cls, options: Model, where: str) -> Iterator[Finding]:
        assert isinstance(options, Caption)
        return check_captioner(options.model, options.revision, where)

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        from components.models.captioner import Sampling
        from components.models.captioners import load_captioner

        asked = self.options
        sampling = Sampling(asked.temperature, asked.top_k, asked.min_length, asked.max_length)
        self.captioner = load_captioner(self.here("model", asked.model), self.commit() or asked.revision, sampling)
        self.geometry = self.captioner.geometry

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.images is not None
        captions = self.captioner.generate(batch.images, batch.uids, self.spec.hash)
        return {"text": [c or None for c in captions], "error": [None if c else EMPTY for c in captions]}
