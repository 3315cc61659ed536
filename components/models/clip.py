"""CLIP by open_clip: images and texts to unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.factory import load_checkpoint
from open_clip.model import get_model_preprocess_cfg
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg, list_pretrained_tags_by_model

from components.models.devices import Pieces, half_precision, pick_device
from components.models.loading import loading
from components.models.names import HF_HUB, LOCAL_DIR, model_folder
from components.models.pixels import Preprocess, from_open_clip
from components.pool.errors import PermanentError
from components.pool.images import Geometry, Pixels

Embeddings = NDArray[np.float16]
"""(B, D), L2-normalised before the rounding to float16."""


class Clip:
    """An image tower and a text tower."""

    def __init__(self, module: Any, tokenizer: Any, preprocess: Preprocess, name: str) -> None:
        self.module, self.tokenizer, self.preprocess, self.name = module, tokenizer, preprocess, name
        self.device = next(module.parameters()).device
        self.pieces = Pieces(name)

    @property
    def geometry(self) -> Geometry:
        """What embed_images takes."""
        return self.preprocess.geometry

    def embed_images(self, images: Pixels) -> Embeddings:
        """Embed (B, H, W, 3) uint8 pixels of the geometry.

        Raises:
            PermanentError: an embedding is zero or not finite.
        """
        return self._embed(
            lambda rows: self.module.encode_image(self.preprocess.tensor(images[rows], self.device)), len(images)
        )

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, each cut to the tokenizer's context length. Raises PermanentError as embed_images."""
        tokens = self.tokenizer(list(texts)) if texts else torch.zeros(0, 1, dtype=torch.long)  # (B, context)
        return self._embed(lambda rows: self.module.encode_text(tokens[rows].to(self.device)), len(texts))

    @torch.inference_mode()
    def _embed(self, encode: Callable[[slice], torch.Tensor], rows: int) -> Embeddings:
        def unit(piece: slice) -> Embeddings:
            with half_precision(self.device):
                features = encode(piece)
            features = features.float()  # (B, D)
            norms = features.norm(dim=-1, keepdim=True)
            if not bool(((norms > 0) & norms.isfinite()).all()):
                raise PermanentError(
                    f"scorer {self.name}: gave an embedding that is zero or not finite; its weights are broken, "
                    "or overflow in float16"
                )
            found: Embeddings = (features / norms).half().cpu().numpy()
            return found

        parts = self.pieces.run(unit, rows)
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float16)


def load_clip(model: str, weights: str | None = None, device: torch.device | None = None) -> Clip:
    """Load a CLIP.

    Args:
        model: an open_clip model name, `hf-hub:org/name`, a folder with open_clip_config.json (a path, or
            `local-dir:` and a path), or the path of a model config .json.
        weights: a pretrained tag of that model name, or a checkpoint file; None where the model brings them.
        device: None picks a GPU if there is one.

    Raises:
        PermanentError, TemporaryError: as `loading`.
    """
    return Clip(*load_open_clip(model, weights, device or pick_device()), name=model)


def load_open_clip(model: str, weights: str | None, device: torch.device) -> tuple[torch.nn.Module, Any, Preprocess]:
    """The model (for inference, on the device), its tokenizer and its preprocessing; see load_clip."""
    what = f"model {model}" + (f" with weights {weights}" if weights else "")
    checkpoint = weights if weights and Path(weights).is_file() else None
    with loading(what):
        name, options = _resolve(model, weights, checkpoint)
        module = open_clip.create_model(name, precision="fp32", device=device, **options)
        if checkpoint and "pretrained" not in options:
            load_checkpoint(module, checkpoint)
        tokenizer = open_clip.get_tokenizer(name)
    module.eval().requires_grad_(False)
    if device.type == "cuda":
        module.to(memory_format=torch.channels_last)
    return module, tokenizer, from_open_clip(get_model_preprocess_cfg(module), what)


def _resolve(model: str, weights: str | None, checkpoint: str | None) -> tuple[str, dict[str, Any]]:
    """open_clip's name for the model, and how create_model shall get its weights."""
    brings_weights = True
    if model.startswith(HF_HUB):
        if not checkpoint:
            download_pretrained_from_hf(model.removeprefix(HF_HUB))  # without them create_model goes on, at random
    elif folder := model_folder(model):
        model = f"{LOCAL_DIR}{folder}"
    else:
        brings_weights = False
        if model.endswith(".json") and Path(model).is_file():
            open_clip.add_model_config(model)
            model = Path(model).stem
        if open_clip.get_model_config(model) is None:
            raise PermanentError(
                f"model {model}: open_clip has no model of this name; give a name of open_clip.list_models(), a "
                f"folder with open_clip_config.json, or {HF_HUB}org/name"
            )
    if checkpoint:
        replaced = {"load_weights": False, "pretrained_text": False}  # else a text tower of the hub is downloaded
        return model, replaced if brings_weights else {"pretrained": checkpoint, "require_pretrained": True}
    if brings_weights:
        if weights:
            raise PermanentError(f"model {model}: brings its weights, and {weights} is no file; leave weights out")
        return model, {"require_pretrained": True}
    tag = get_pretrained_cfg(model, weights or "")
    if not tag:
        raise PermanentError(
            f"model {model}: has no weights {weights}; give a checkpoint file or one of "
            f"{', '.join(list_pretrained_tags_by_model(model)) or 'none'}"
        )
    # open_clip only warns when it would run weights trained with QuickGELU (all of OpenAI's) with GELU
    return model, {
        "pretrained": weights,
        "force_quick_gelu": bool(tag.get("quick_gelu")),
        "require_pretrained": True,
    }
