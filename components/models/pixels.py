"""Turns a decoder's uint8 pixels into the input of a model's image tower, on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from components.base.errors import PermanentError
from components.engine.images import Geometry, Pixels

_MODES = {"shortest": "crop", "squash": "squash", "longest": "longest"}
_RESAMPLES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as transformers' configs write them


@dataclass(frozen=True)
class Preprocess:
    """How an image gets to a model: the geometry a decoder applies with PIL, then a normalisation."""

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels scaled to [0, 1]."""

    def tensor(self, images: Pixels, device: torch.device) -> torch.Tensor:
        """Turn (B, H, W, 3) uint8 pixels into (B, 3, H, W) float32 on the device, channels last in memory."""
        pixels = torch.from_numpy(np.require(images, np.uint8, ["C", "W"])).to(device)
        mean, std = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
        # torchvision's order of operations (ToTensor, Normalize), so that the values are the same to the last bit
        return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def from_open_clip(config: Mapping[str, Any], what: str) -> Preprocess:
    """Make a Preprocess of open_clip's preprocess_cfg. Raises PermanentError for a geometry we can't decode to."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    mode = _MODES[config["resize_mode"]]
    if mode == "crop" and height != width:
        raise PermanentError(f"{what}: crops to {height} × {width}; only square crops are supported")
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"  # "random" means it in training
    geometry = Geometry((height, width), mode, interpolation, config["fill_color"])  # type: ignore[arg-type]
    return Preprocess(geometry, _three(config["mean"]), _three(config["std"]))


def from_transformers(config: Mapping[str, Any], what: str) -> Preprocess:
    """Make a Preprocess of a BlipImageProcessor's attributes: resize to height × width whatever the aspect, scale,
    normalise.

    Raises:
        PermanentError: the processor does something else.
    """
    size = config.get("size") or {}
    resample = _RESAMPLES.get(int(config.get("resample") or 3))
    plain = config.get("do_resize") and config.get("do_rescale") and config.get("do_normalize")
    if not plain or config.get("do_center_crop") or resample is None or not {"height", "width"} <= set(size):
        raise PermanentError(
            f"{what}: its image processor is not BLIP's (resize to height × width by bilinear or bicubic, rescale, "
            "normalise); give a model with a BlipImageProcessor"
        )
    geometry = Geometry((size["height"], size["width"]), "squash", resample)  # type: ignore[arg-type]
    return Preprocess(geometry, _three(config["image_mean"]), _three(config["image_std"]))


def _three(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),) * 3
