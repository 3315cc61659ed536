"""CLIP by open_clip: images and texts to unit vectors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import get_model_preprocess_cfg
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg, list_pretrained_tags_by_model

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.engine.images import Geometry, Pixels
from components.models.configs import completed, register
from components.models.devices import Pieces, half_precision, pick_device
from components.models.files import checked_folder, hub_files
from components.models.known import doubt, published_tag, refuse_script
from components.models.loading import loading
from components.models.names import model_folder
from components.models.pixels import Preprocess, from_open_clip
from components.models.texts import bounded
from components.storage.hub import HF_HUB
from components.storage.model_files import OPEN_CLIP_CONFIG, find_checkpoint, read_object

log = logging.getLogger(__name__)

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
        """The size and mode of the images that `embed_images` takes."""
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


def load_clip(
    model: str, weights: str | None = None, device: torch.device | None = None, revision: str | None = None
) -> Clip:
    """Load a CLIP.

    Args:
        model: an open_clip model name, `hf-hub:org/name`, a folder with open_clip_config.json (a path, or
            `local-dir:` and a path), or the path of a model config .json.
        weights: a pretrained tag of that model name, or a checkpoint file; None where the model brings them.
        device: None picks a GPU if there is one.
        revision: commit, branch or tag of `hf-hub:org/name`.

    Raises:
        PermanentError, TemporaryError: as `loading`.
    """
    if said := doubt(model, weights):
        log.warning("model %s: %s", model, said)
    return Clip(*load_open_clip(model, weights, device or pick_device(), revision), name=model)


def load_open_clip(
    model: str, weights: str | None, device: torch.device, revision: str | None = None
) -> tuple[torch.nn.Module, Any, Preprocess]:
    """Load a model (for inference, on the device), its tokenizer and its preprocessing; see load_clip."""
    what = f"model {model}" + (f" with weights {weights}" if weights else "")
    with loading(what):
        name, options = _resolve(model, weights, what, revision)
        module = open_clip.create_model(name, precision="fp32", device=device, require_pretrained=True, **options)
        tokenizer = bounded(open_clip.get_tokenizer(name))
    module.eval().requires_grad_(False)
    if device.type == "cuda":
        module.to(memory_format=torch.channels_last)
    return module, tokenizer, from_open_clip(get_model_preprocess_cfg(module), what)


def _resolve(model: str, weights: str | None, what: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return open_clip's name for the model, and how create_model shall get its weights."""
    checkpoint = weights if weights and Path(weights).is_file() else None
    if model.startswith(HF_HUB) or model_folder(model):
        if weights and not checkpoint:
            raise PermanentError(f"model {model}: brings its weights, and {weights} is no file; leave weights out")
        return _from_repository(model, checkpoint, what, revision)
    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if model.endswith(".json") and Path(model).is_file():
        config, model = json.loads(Path(model).read_text(encoding="utf-8")), Path(model).stem
    if config is None or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise PermanentError(
            f"model {model}: open_clip has no model of this name; give a name of open_clip.list_models(), a "
            f"folder with {OPEN_CLIP_CONFIG}, or {HF_HUB}org/name"
        )
    tag = get_pretrained_cfg(model, weights or "")
    if not checkpoint and not tag:
        raise PermanentError(
            f"model {model}: has no weights {weights}; give a checkpoint file or one of "
            f"{', '.join(list_pretrained_tags_by_model(model)) or 'none'}"
        )
    register(model, completed(config, what))
    if not checkpoint:
        # open_clip only warns when it would run weights trained with QuickGELU (all of OpenAI's) with GELU
        return model, {"pretrained": weights, "force_quick_gelu": bool(tag.get("quick_gelu"))}
    quick, preprocess = _trained(model, Path(checkpoint))
    if config.get("quick_gelu") and quick is False:
        raise PermanentError(f"{what}: were trained with GELU; give model {model.removesuffix('-quickgelu')}")
    return model, {"pretrained": checkpoint, "force_quick_gelu": bool(quick), "force_preprocess_cfg": preprocess}


def _trained(model: str, checkpoint: Path) -> tuple[bool | None, dict[str, Any]]:
    """Return how a checkpoint file was trained: whether with QuickGELU (None: not known), and open_clip's options for
    preparing images: by the config beside it, or by the tag whose published file it is."""
    refuse_script(checkpoint)
    whole = read_object(checkpoint.parent / OPEN_CLIP_CONFIG)
    if isinstance(config := whole.get("model_cfg"), dict):
        return bool(config.get("quick_gelu")), _prepared(whole.get("preprocess_cfg") or {})
    tag = get_pretrained_cfg(model, published_tag(model, checkpoint) or "")
    return (bool(tag.get("quick_gelu")), _prepared(tag)) if tag else (None, {})


def _prepared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what open_clip takes of a preprocess_cfg besides the size, which is the model's."""
    return {
        key: config[key]
        for key in ("mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
        if key in config
    }


def _from_repository(model: str, checkpoint: str | None, what: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Do what `_resolve` does, for a folder or a hub's repository with open_clip_config.json and weights."""
    here = model_folder(model) if not model.startswith(HF_HUB) else None
    folder = checked_folder(here, what) if here else hub_files(model.removeprefix(HF_HUB), what, revision)
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        raise PermanentError(f"{what}: has no {OPEN_CLIP_CONFIG}; give a model of open_clip")
    whole = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
    if not isinstance(whole, dict) or "model_cfg" not in whole:
        raise PermanentError(f"{what}: {OPEN_CLIP_CONFIG} has no model_cfg; give a model of open_clip")
    if checkpoint is None and here:
        found = find_checkpoint(here)
        checkpoint = str(found) if found else None
    elif checkpoint is None:
        checkpoint = download_pretrained_from_hf(model.removeprefix(HF_HUB), revision=folder.name)
    config = completed(whole["model_cfg"], what, tokenizer=here)  # a folder has its tokenizer in it, whatever its name
    name = f"model-{content_hash(config)}"
    register(name, config)
    return name, {"pretrained": checkpoint, "force_preprocess_cfg": _prepared(whole.get("preprocess_cfg") or {})}
