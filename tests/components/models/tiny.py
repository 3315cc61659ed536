"""Tiny random models, saved in the formats of the real ones so that the same code loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

WORDS = 200
SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "<image>"]
VOCABULARY = len(SPECIAL) + WORDS
SIDE = 32  # pixels
PATCH = 8

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": PATCH},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COCA: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": PATCH,
        "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
        "embed_cls": True, "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2,
    },
    "custom_text": True,
}  # fmt: skip


def pixels(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """(count, side, side, 3) uint8, a random colour per patch: images that a random model tells apart."""
    patches = np.random.default_rng(seed).integers(0, 2, (count, side // PATCH, side // PATCH, 3), dtype=np.uint8)
    return (patches * 255).repeat(PATCH, axis=1).repeat(PATCH, axis=2)


def save_open_clip(folder: Path, config: dict[str, Any], preprocess: dict[str, Any] | None = None) -> Path:
    """A folder for `local-dir:`: open_clip_config.json and weights that make different inputs differ."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{folder.name}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    module = open_clip.create_model(folder.name)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    save_file(module.state_dict(), folder / "open_clip_model.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    return folder


def save_blip(folder: Path, processor: dict[str, Any] | None = None, end_bias: float = 0) -> Path:
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 48,
        "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=_vision(), projection_dim=16)
    model = BlipForConditionalGeneration(config)
    model.text_decoder.cls.predictions.bias.data[2] = end_bias
    return _save(folder, model, processor)


def save_blip2(folder: Path, language: str = "opt") -> Path:
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = (
        OPTConfig(
            **common, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=32,
        )
        if language == "opt"
        else T5Config(
            **common, d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2,
            decoder_start_token_id=0,
        )
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**_vision()).to_dict(), qformer_config=qformer.to_dict(),
        text_config=text.to_dict(), num_query_tokens=4, image_token_index=SPECIAL.index("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    model.query_tokens.data.normal_()
    return _save(folder, model, sharp="language_model" if language == "t5" else None)


def _vision() -> dict[str, Any]:
    return {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": PATCH, "initializer_range": 0.02,  # the default, 1e-10, sees nothing
    }  # fmt: skip


def _save(folder: Path, model: Any, processor: dict[str, Any] | None = None, sharp: str | None = None) -> Path:
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not (sharp and name.startswith(sharp)):
            parameter.data.mul_(6)  # random logits are flat otherwise, and nothing depends on the image
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]",
        additional_special_tokens=["<image>"],
    ).save_pretrained(folder)  # fmt: skip
    BlipImageProcessorPil(**(processor or {"size": {"height": SIDE, "width": SIDE}})).save_pretrained(folder)
    return folder
