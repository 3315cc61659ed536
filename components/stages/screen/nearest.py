"""Near-duplicates: the highest cosine of an image with a set of others, by exact products in blocks.

An evaluation suite has some 10⁵ images: for them a pool of 10⁸ costs 2·10¹⁶ operations, minutes of one GPU or some
hundred core-hours, so an approximate index (faiss) would save nothing that counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.base.errors import PermanentError
from components.models.devices import pick_device

ROWS = 4096  # of the index at a time: 13 MB of float32 at 768 numbers stay in a cache where 50 MB would not


class Nearest:
    """An index in memory, as float16 or float32 as it was given; a product is made in float32."""

    def __init__(self, vectors: NDArray[Any], name: str) -> None:
        self.name, self.width = name, vectors.shape[1]
        self.device = pick_device()
        self.vectors = torch.from_numpy(vectors).to(self.device)

    def cosines(self, embeddings: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return (B,) highest cosines of (B, D) embeddings, in [-1, 1].

        Raises:
            PermanentError: the index has vectors of another length.
        """
        if embeddings.shape[1] != self.width:
            raise PermanentError(
                f"screen {self.name}: has embeddings of {self.width} numbers, the scorer's have "
                f"{embeddings.shape[1]}; make the index with this scorer"
            )
        images = torch.nn.functional.normalize(torch.tensor(embeddings, device=self.device).float(), dim=1)
        best = torch.full((len(images),), -1.0, device=self.device)
        for start in range(0, len(self.vectors), ROWS):
            block = torch.nn.functional.normalize(self.vectors[start : start + ROWS].float(), dim=1)
            best = torch.maximum(best, (images @ block.T).amax(dim=1))
        found: NDArray[np.float32] = best.clamp(-1, 1).cpu().numpy()
        return found
