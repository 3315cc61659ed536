"""What a recipe says of a CLIP that scores texts."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from components.recipe.types import Model, ModelName


class Scorer(Model):
    """The CLIP whose cosines are the scores."""

    model: ModelName = "ViT-L-14"
    """An open_clip model name, hf-hub:org/name, or local-dir:/folder or gs:// or s3:// address with
    open_clip_config.json."""
    weights: ModelName | None = None
    """An open_clip pretrained tag, or a checkpoint's file or gs:// or s3:// address; openai for ViT-L-14. Left
    out where the model brings them."""

    @model_validator(mode="before")
    @classmethod
    def _paper_weights(cls, value: Any) -> Any:
        known = isinstance(value, dict) and value.get("model") in (None, "ViT-L-14")
        if known and value.get("weights") is None:
            return {**value, "weights": "openai"}  # the paper's and DataComp's scorer
        return value
