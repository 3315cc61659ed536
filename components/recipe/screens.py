"""What a recipe says of screens: columns that tell what a sample should not be.

A screen is a score like any other: computed once, kept whole, of use to any rule. From which value on a sample is
dropped, the recipe's `drop` says: another threshold is a metadata job.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from components.recipe.types import Address, Model, Name, Text

TAKES = {  # kind → keys it needs, keys it may have
    "imageNsfw": (("weights",), ()),
    "textNsfw": (("model", "label"), ("revision", "text")),
    "duplicates": (("index",), ()),
    "faces": ((), ("weights",)),
}
KEYS = ("weights", "model", "revision", "label", "text", "index")
"""Those that not every kind has."""


def keys_said(kind: str) -> str:
    """Which keys a kind takes, for messages."""
    needs, may = TAKES[kind]
    needed = f"needs {' and '.join(f'`{key}`' for key in needs)}" if needs else "needs nothing more"
    return f"kind {kind} {needed}, may have {' and '.join(f'`{key}`' for key in may) or 'nothing else'}"


class Screen(Model):
    """A score of what a sample should not be."""

    name: Name
    """How rules call its score."""
    kind: Literal["imageNsfw", "textNsfw", "duplicates", "faces"]
    """imageNsfw: by a head over the scorer's image embedding; textNsfw: by a text classifier; duplicates: highest
    cosine of the image with the images of an index, such as the evaluation sets'; faces: how many, and where."""
    weights: Text | None = None
    """imageNsfw: file of the head (safetensors, or torch's state dict), as LAION's for this CLIP. faces: YuNet's ONNX
    file; left out: OpenCV's frontal-face cascade, which misses more and takes more for a face."""
    model: Text | None = None
    """textNsfw: a Hugging Face id or folder of a sequence classifier."""
    revision: Text | None = None
    """Commit, branch or tag of a Hugging Face id."""
    label: Text | None = None
    """textNsfw: the classifier's label whose probability is the score."""
    text: Name | None = None
    """textNsfw: `raw` (if left out) or an imported text."""
    index: Address | None = None
    """duplicates: embeddings by the scorer, as a .npy or .parquet file, or a folder of them: an embed column's."""

    @model_validator(mode="after")
    def _keys(self) -> Screen:
        needs, may = TAKES[self.kind]
        has = {key for key in KEYS if getattr(self, key) is not None}
        if not set(needs) <= has <= {*needs, *may}:
            raise ValueError(keys_said(self.kind))
        return self
