"""CoCa by open_clip, with a decoding loop of ours: open_clip's own draws inside and takes no logits processor.

The image is encoded once; there is no key-value cache (open_clip's towers have none), so a step costs the whole
prefix, and captions that ended leave the batch. Lengths count the caption's tokens, without start and end.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from open_clip import CoCa

from components.base.errors import PermanentError
from components.models.captioner import Captioner, Sampling
from components.models.clip import load_open_clip
from components.models.devices import generation_dtype, half_precision
from components.models.names import OPEN_CLIP
from components.models.sampling import draw


class CocaCaptioner(Captioner):
    """Greedy loop over keyed draws."""

    def __init__(self, module: CoCa, tokenizer: Any, *args: Any) -> None:
        super().__init__(*args)
        self.module, self.tokenizer = module, tokenizer
        self.start, self.end = _start_and_end(tokenizer, self.name)

    def _captions(self, pixels: torch.Tensor, keys: torch.Tensor) -> list[str]:
        with half_precision(self.device, generation_dtype(self.device)):
            tokens = self._tokens(pixels, keys).tolist()
        captions = [row[: row.index(self.end)] if self.end in row else row for row in tokens]
        decoder = getattr(self.tokenizer, "tokenizer", None)  # of transformers, inside open_clip's wrapper
        decode = partial(decoder.decode, skip_special_tokens=True) if decoder else self.tokenizer.decode
        return [decode(caption) for caption in captions]

    def _tokens(self, pixels: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Draw (B, max_length) int64 tokens, filled up with the end token."""
        encoded = self.module(pixels)
        latent, embeddings = encoded["image_features"], encoded["image_embs"]
        out = torch.full((len(keys), self.sampling.max_length), self.end, device=self.device)
        rows = torch.arange(len(keys), device=self.device)  # those that have not ended
        prefix = torch.full((len(keys), 1), self.start, device=self.device)
        for step in range(self.sampling.max_length):
            logits = self.module(None, prefix, latent, embeddings, output_labels=False)["logits"][:, -1].float()
            logits[:, [self.start, self.module.pad_id]] = -torch.inf  # never a target in training
            if step < self.sampling.min_length:
                logits[:, self.end] = -torch.inf
            token = draw(logits, keys[rows], step, self.sampling.temperature, self.sampling.top_k)
            out[rows, step] = token
            prefix = torch.cat([prefix, token[:, None]], dim=1)
            going = token != self.end
            if not bool(going.all()):
                rows, prefix, latent, embeddings = rows[going], prefix[going], latent[going], embeddings[going]
                if not len(rows):
                    break
        return out


def load_coca(model: str, sampling: Sampling, device: torch.device, revision: str | None = None) -> CocaCaptioner:
    """Load `open_clip:<model>/<pretrained tag>`, `hf-hub:org/name` or a folder with open_clip_config.json.

    Raises:
        PermanentError, TemporaryError: as load_captioner.
    """
    what = f"captioner {model}"
    name, weights = model, None
    if model.startswith(OPEN_CLIP):
        name, slash, weights = model.removeprefix(OPEN_CLIP).partition("/")
        if not (name and slash and weights):
            raise PermanentError(f"{what}: expected {OPEN_CLIP}<model>/<pretrained tag or checkpoint file>")
    module, tokenizer, preprocess = load_open_clip(name, weights, device, revision)
    if not isinstance(module, CoCa):
        raise PermanentError(f"{what}: is a CLIP, which has no text decoder; give a CoCa, BLIP or BLIP-2")
    positions = min(module.context_length, module.text.context_length)
    if sampling.max_length > positions:  # start takes one, and nothing follows the last token
        raise PermanentError(f"{what}: maxLength {sampling.max_length} is above its {positions} positions")
    return CocaCaptioner(module, tokenizer, model, preprocess, sampling, device)


def _start_and_end(tokenizer: Any, name: str) -> tuple[int, int]:
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return tokenizer.sot_token_id, tokenizer.eot_token_id
    start = inner.bos_token_id if inner.bos_token_id is not None else inner.cls_token_id
    end = inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id
    if start is None or end is None:
        raise PermanentError(
            f"captioner {name}: its tokenizer has no token that {'starts' if start is None else 'ends'} a text "
            f"({'bos_token or cls_token' if start is None else 'eos_token or sep_token'}); add it to its "
            "tokenizer_config.json"
        )
    return start, end
