"""A head over CLIP's image embedding: a small network from a unit vector to one score.

Two layouts of a file are read, both LAION's (LAION-AI/CLIP-based-NSFW-Detector, src/models.py):

    norm.mean, norm.variance, linear_1, linear_2, …    standardise (may be left out), layers with ReLU between them, a
                                                       sigmoid: the heads for ViT-L-14 and ViT-B-32. A single
                                                       `linear_1` is a logistic regression.
    layers.0, layers.3, …, layers.15, layers.16        an nn.Sequential: ReLU where a number is left out between two
                                                       layers, no sigmoid, since it was trained on 0 and 1 by squared
                                                       error: the head for ViT-H-14.

Every layer has `.weight` (out, in) and `.bias`; the last one has one output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from components.base.errors import PermanentError
from components.models.devices import pick_device
from components.models.heads import check_width, load_tensors

EPSILON = 1e-10  # beside the standard deviation, as in LAION's code
LAYER = re.compile(r"(?P<kind>linear_|layers\.)(?P<number>\d+)\.(weight|bias)")


class Head:
    """Scores embeddings."""

    def __init__(self, network: nn.Module, width: int, name: str) -> None:
        self.network, self.width, self.name = network, width, name
        self.device = pick_device()
        network.to(self.device).eval().requires_grad_(False)

    def score(self, embeddings: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return (B,) scores of (B, D) unit vectors.

        Raises:
            PermanentError: the head was made for another CLIP, or a score is not finite.
        """
        check_width(embeddings, self.width, f"screen {self.name}")
        with torch.inference_mode():
            found: NDArray[np.float32] = (
                self.network(torch.tensor(embeddings, device=self.device).float()).cpu().numpy()
            )
        if not np.isfinite(found).all():
            raise PermanentError(f"screen {self.name}: gave a score that is not finite; its weights are broken")
        return found[:, 0]


class _Standardise(nn.Module):
    def __init__(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("deviation", variance.float().sqrt() + EPSILON)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return (vectors - self.get_buffer("mean")) / self.get_buffer("deviation")


def load_head(path: str) -> Head:
    """Read a head's file.

    Raises:
        PermanentError: it is no file of tensors, or of neither layout.
    """
    tensors = load_tensors(path, "screen")
    network, width = _network(tensors, path)
    return Head(network, width, path)


def _network(tensors: Mapping[str, torch.Tensor], path: str) -> tuple[nn.Module, int]:
    """Build the network; return it, and how many numbers it takes."""
    found = [LAYER.fullmatch(key) for key in tensors]
    kinds = {match["kind"] for match in found if match}
    others = {key for key, match in zip(tensors, found, strict=True) if not match} - {"norm.mean", "norm.variance"}
    if len(kinds) != 1 or others:
        raise _unknown(path, f"has {', '.join(sorted(others or tensors)[:6]) or 'nothing'}")
    kind = kinds.pop()
    numbers = sorted({int(match["number"]) for match in found if match})
    layers = [_linear(tensors, f"{kind}{number}", path) for number in numbers]
    network: list[nn.Module] = [_Standardise(tensors["norm.mean"], tensors["norm.variance"])] if _norm(tensors) else []
    network.append(layers[0])
    for (before, number), layer in zip(pairwise(numbers), layers[1:], strict=True):
        if kind == "linear_" or number > before + 1:
            network.append(nn.ReLU())
        network.append(layer)
    if kind == "linear_":
        network.append(nn.Sigmoid())
    fits = all(a.out_features == b.in_features for a, b in pairwise(layers))
    if not fits or layers[-1].out_features != 1:
        raise _unknown(path, f"has layers of {', '.join(f'{x.in_features} to {x.out_features}' for x in layers)}")
    if _norm(tensors) and tensors["norm.mean"].shape != (layers[0].in_features,):
        raise _unknown(path, f"has norm.mean of {tuple(tensors['norm.mean'].shape)}")
    return nn.Sequential(*network), layers[0].in_features


def _norm(tensors: Mapping[str, torch.Tensor]) -> bool:
    return {"norm.mean", "norm.variance"} <= tensors.keys()


def _linear(tensors: Mapping[str, torch.Tensor], name: str, path: str) -> nn.Linear:
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise _unknown(path, f"lacks a whole {name}")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return layer


def _unknown(path: str, what: str) -> PermanentError:
    return PermanentError(
        f"screen {path}: {what}; expected linear_1, linear_2, … or layers.0, … with weight and bias, down to one output"
    )
