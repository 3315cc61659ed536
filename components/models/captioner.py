"""Captioners: pixels to sampled captions. BLIP and BLIP-2 by transformers; CoCa in coca.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    LogitsProcessorList,
)
from transformers.utils.logging import disable_progress_bar

from components.models.devices import Pieces, generation_dtype, pick_device
from components.models.files import local_files
from components.models.loading import loading
from components.models.names import HF_HUB, OPEN_CLIP, model_folder
from components.models.pixels import Preprocess, from_transformers
from components.models.sampling import KeyedSampler, row_keys
from components.pool.errors import PermanentError
from components.pool.images import Geometry, Pixels

_CLASSES = {"blip": BlipForConditionalGeneration, "blip-2": Blip2ForConditionalGeneration}


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
        """What generate takes."""
        return self.preprocess.geometry

    @torch.inference_mode()
    def generate(self, images: Pixels, uids: Sequence[str], column_hash: str) -> list[str]:
        """One caption per image, (B, H, W, 3) uint8 of the geometry; white space is single, "" is possible.

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
        """Captions without special tokens of (B, 3, H, W) float32 pixels; keys are of row_keys."""


class TransformersCaptioner(Captioner):
    """BLIP or BLIP-2, without a prompt."""

    def __init__(self, model: Any, tokenizer: Any, *args: Any) -> None:
        super().__init__(*args)
        self.model, self.tokenizer = model, tokenizer

    def _captions(self, pixels: torch.Tensor, keys: torch.Tensor) -> list[str]:
        sampler = KeyedSampler(keys, self.sampling.temperature, self.sampling.top_k)
        tokens = self.model.generate(
            pixel_values=pixels.to(self.model.dtype),
            logits_processor=LogitsProcessorList([sampler]),
            do_sample=False,
            num_beams=1,
            use_cache=True,
            min_new_tokens=self.sampling.min_length,
            max_new_tokens=self.sampling.max_length,
        )
        captions: list[str] = self.tokenizer.batch_decode(tokens[:, sampler.prompt :], skip_special_tokens=True)
        return captions


def load_captioner(
    model: str, revision: str | None = None, sampling: Sampling | None = None, device: torch.device | None = None
) -> Captioner:
    """Load a captioner of the kind that the model's own config names.

    Args:
        model: a Hugging Face id or a folder of BLIP or BLIP-2; or CoCa: `open_clip:<model>/<pretrained tag>`,
            `hf-hub:org/name`, or a folder with open_clip_config.json.
        revision: commit, branch or tag of a Hugging Face id.
        sampling: None is the paper's.
        device: None picks a GPU if there is one.

    Raises:
        PermanentError: no such model, of another kind, or broken.
        TemporaryError: the hub can't be reached.
    """
    sampling, device = sampling or Sampling(), device or pick_device()
    folder = model_folder(model) if not model.startswith((OPEN_CLIP, HF_HUB)) else None
    if model.startswith((OPEN_CLIP, HF_HUB)) or (folder and (folder / "open_clip_config.json").is_file()):
        from components.models.coca import load_coca

        if revision:
            raise PermanentError(f"captioner {model}: open_clip takes no revision; leave it out, or give a folder")
        return load_coca(model, sampling, device)
    return _load_transformers(model, revision, sampling, device)


def _load_transformers(model: str, revision: str | None, sampling: Sampling, device: torch.device) -> Captioner:
    what = f"captioner {model}" + (f" at {revision}" if revision else "")
    disable_progress_bar()  # the worker loop has its own
    with loading(what):
        folder = local_files(model, what, revision)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check(config, sampling, what)
        folder = local_files(model, what, revision, weights=True)
        module, found = _CLASSES[config.model_type].from_pretrained(
            folder, dtype=generation_dtype(device), output_loading_info=True, trust_remote_code=False
        )
        if found["missing_keys"]:
            some = ", ".join(sorted(found["missing_keys"])[:3])
            raise PermanentError(
                f"{what}: {len(found['missing_keys'])} weights are missing ({some}, …); give a model made to caption"
            )
        module.to(device).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) < config.text_config.vocab_size // 2:  # without files transformers makes an empty one
            raise PermanentError(
                f"{what}: its tokenizer has {len(tokenizer)} tokens, the model {config.text_config.vocab_size}; "
                "put the tokenizer's files beside the weights"
            )
        images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False).to_dict()
    return TransformersCaptioner(module, tokenizer, model, from_transformers(images, what), sampling, device)


def _check(config: Any, sampling: Sampling, what: str) -> None:
    """What would otherwise fail late, or not at all."""
    if config.model_type not in _CLASSES:
        raise PermanentError(f"{what}: is a {config.model_type} model; supported are blip, blip-2 and open_clip's CoCa")
    positions = getattr(config.text_config, "max_position_embeddings", None)
    before = 0  # a start token takes a position, and nothing follows the last token
    if config.model_type == "blip-2":
        before = config.num_query_tokens
        if config.image_token_index is None:  # generate would die of a TypeError
            raise PermanentError(f"{what}: its config.json has no image_token_index; save it with a newer transformers")
    if positions is not None and sampling.max_length > positions - before:
        raise PermanentError(
            f"{what}: maxLength {sampling.max_length} is above the {positions - before} positions it has for a caption"
        )
