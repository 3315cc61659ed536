"""BLIP and BLIP-2 by transformers."""

from __future__ import annotations

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

from components.base.errors import PermanentError
from components.models.captioner import Captioner, Sampling
from components.models.devices import generation_dtype
from components.models.files import local_files
from components.models.loading import loading
from components.models.pixels import from_transformers
from components.models.sampling import KeyedSampler

_CLASSES = {"blip": BlipForConditionalGeneration, "blip-2": Blip2ForConditionalGeneration}


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


def load_blip(model: str, revision: str | None, sampling: Sampling, device: torch.device) -> Captioner:
    """Load BLIP or BLIP-2 from a folder or by its Hugging Face id.

    Raises:
        PermanentError, TemporaryError: as load_captioner.
    """
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
        _check_end(module, config, what)
        module.to(device).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) < config.text_config.vocab_size // 2:  # without files transformers makes an empty one
            raise PermanentError(
                f"{what}: its tokenizer has {len(tokenizer)} tokens, the model {config.text_config.vocab_size}; "
                "put the tokenizer's files beside the weights"
            )
        images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False).to_dict()
    return TransformersCaptioner(module, tokenizer, model, from_transformers(images, what), sampling, device)


def _check_end(module: Any, config: Any, what: str) -> None:
    """Refuse a model that doesn't know which token ends a caption: all would be as long as they may."""
    key, end = (
        ("sep_token_id", config.text_config.sep_token_id)
        if config.model_type == "blip"
        else ("eos_token_id", module.language_model.generation_config.eos_token_id)
    )
    if end is None:
        raise PermanentError(f"{what}: its config.json has no text_config.{key}, the token that ends a caption; add it")


def _check(config: Any, sampling: Sampling, what: str) -> None:
    """Refuse a model or a length that would otherwise fail late, or not at all."""
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
