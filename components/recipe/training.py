"""The part of a recipe that proves a mixture: a CLIP trained on it, and its zero-shot results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from components.recipe.types import Address, Count, Model, Name, Seed, Text, Whole, by_key


class ScaleConfig(Model):
    """Hyperparameters of a CLIP training; DataComp's are the named scales."""

    model: Text
    """open_clip model name, or the path or gs:// or s3:// address of a model config .json."""
    batch_size: Count
    """Global batch in samples, whatever the number of GPUs."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The highest, after the warmup."""
    warmup: Annotated[int, Field(ge=0, le=2**31 - 1), Whole]
    """Steps."""
    samples: Annotated[int, Field(ge=1, le=10**15), Whole]
    """Samples seen in total."""
    beta2: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Adam's; left out: open_clip's default for the model."""
    precision: Text = "amp"
    """open_clip's --precision; on a machine without a GPU fp32 is used."""
    checkpoints: Count = 5
    """How many checkpoints (open_clip's epochs) the training is cut into; resuming starts at the last one."""


ScaleName = Literal["debug", "small", "medium", "large", "xlarge"]


class Train(Model):
    """A CLIP trained on each mixture, with DataComp's fixed hyperparameters."""

    scale: Annotated[
        Annotated[ScaleName, Tag("<name>")] | Annotated[ScaleConfig, Tag("<ScaleConfig>")],
        by_key(
            "a scale's name or {model: …, batchSize: …, …}",
            "<name>",
            model="<ScaleConfig>",
            batch_size="<ScaleConfig>",
            samples="<ScaleConfig>",
        ),
    ] = "small"
    """DataComp's name of a scale, or hyperparameters of your own."""
    seed: Seed = 0
    """Of the training."""
    mixtures: Annotated[list[Name], Field(max_length=200)] | None = None
    """Which mixtures to train on; left out: all."""


class Evaluate(Model):
    """Zero-shot results of each trained CLIP."""

    root: Address
    """Folder of zero-shot tasks in clip-benchmark's webdataset format, one folder each."""
    tasks: Annotated[
        Annotated[Literal["datacomp"], Tag("<name>")]
        | Annotated[list[Text], Field(min_length=1, max_length=256), Tag("<list>")],
        Discriminator(lambda value: "<list>" if isinstance(value, list) else "<name>"),
    ] = "datacomp"
    """Names of folders below root, or `datacomp` for its 38, each with DataComp's metric either way."""
