"""Small networks over a CLIP's embedding: their files, and the linear one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from components.base.errors import PermanentError
from components.models.loading import loading


def load_tensors(path: str, what: str) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a safetensors file, or of torch's state dict.

    Raises:
        PermanentError: the file holds something else.
    """
    file = Path(path).expanduser()
    with loading(f"{what} {path}"):
        if file.suffix == ".safetensors":
            tensors: Any = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(tensors, Mapping) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise PermanentError(f"{what} {path}: is no state dict; save the module's state_dict(), or a safetensors file")
    return tensors


def check_width(embeddings: NDArray[np.float16], width: int, what: str) -> None:
    """Raise PermanentError unless embeddings, (B, D), are of the CLIP that the head was made for."""
    if embeddings.shape[1] != width:
        raise PermanentError(
            f"{what}: takes embeddings of {width} numbers, the scorer's have {embeddings.shape[1]}; give the head of "
            "this CLIP"
        )


def load_linear(path: str, what: str) -> Callable[[NDArray[np.float16]], NDArray[np.float32]]:
    """Return the linear head of a file with `weight` (1, D) and `bias` (1): from (B, D) unit vectors to (B,) scores.

    Raises:
        PermanentError: the file has another layout; when called: the vectors have another width.
    """
    tensors = load_tensors(path, what)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    width = shapes.get("weight", (0, 0))[-1]
    if shapes != {"weight": (1, width), "bias": (1,)}:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) or "nothing"
        raise PermanentError(f"{what} {path}: has {found}; expected weight (1, D) and bias (1,)")
    weight, bias = tensors["weight"].float().numpy()[0], float(tensors["bias"])

    def score(embeddings: NDArray[np.float16]) -> NDArray[np.float32]:
        check_width(embeddings, width, f"{what} {path}")
        found: NDArray[np.float32] = embeddings.astype(np.float32) @ weight + np.float32(bias)
        return found

    return score
