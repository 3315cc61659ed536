"""The interface of every captioner: pixels in, sampled captions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from components.engine.images import Geometry, Pixels
from components.models.devices import Pieces
from components.models.pixels import Preprocess
from components.models.sampling import row_keys


@dataclass(frozen=True)
class Sampling:
    """The paper's parameters (section 4): temperature after top-K; lengths in tokens of the caption alone."""

    temperature: float = 0.75
    top_k: int = 50
    min_length: int = 5
    max_length: int = 40


class Captioner(ABC):
    """Captions images; what a caption says depends on its image, its uid and the column only."""

    def __init__(self, name: str, preprocess: Preprocess, sampling: Sampling, device: torch.device) -> None:
        self.name, self.preprocess, self.sampling, self.device = name, preprocess, sampling, device
        self.pieces = Pieces(name)

    @property
    def geometry(self) -> Geometry:
        """The size and mode of the images that `generate` takes."""
        return self.preprocess.geometry

    @torch.inference_mode()
    def generate(self, images: Pixels, uids: Sequence[str], column_hash: str) -> list[str]:
        """Write one caption per image, (B, H, W, 3) uint8 of the geometry; white space is single, "" is possible.

        Raises:
            PermanentError: the model's logits are not finite.
        """
        keys = row_keys(column_hash, uids).to(self.device)
        parts = self.pieces.run(
            lambda rows: self._captions(self.preprocess.tensor(images[rows], self.device), keys[rows]), len(uids)
        )
        return [" ".join(caption.split()) for part in parts for caption in part]

    @abstractmethod
    def _captions(self, pixels: torch.Tensor, keys: torch.Tensor) -> list[str]:
        """Write captions, without special tokens, for (B, 3, H, W) float32 pixels; `keys` come from row_keys."""
