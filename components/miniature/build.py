"""Makes the miniature's scorer and captioner: `python -m components.miniature.build` (about 8 minutes on two cores).

Both learn from a world of their own (seed 1000), apart from every pool. The scorer sees half good captions and half
bare class names; the captioner sees good captions, except that seven class names were never taught to it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import BlipConfig, BlipForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from components.miniature.world import CLASSES, SIDE, UNTAUGHT, Thing, alt_text, describe, imagine, render, taught

WEIGHTS = Path(__file__).with_name("weights")
SEED = 1000
IMAGES = 12_000
EPOCHS = {"scorer": 5, "captioner": 16}
BATCH = 128
VOCABULARY = 512
CONTEXT = 32
SPECIAL = ["[PAD]", "[BOS]", "[EOS]"]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

TEXT: dict[str, Any] = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 96, "heads": 4, "layers": 2}
TEXT |= {"hf_tokenizer_name": "miniature", "pool_type": "eos", "eos_id": 2}
CLIP: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {
        "timm_model_name": "test_resnet", "timm_model_pretrained": False, "timm_pool": "avg",
        "timm_proj": "linear", "image_size": SIDE,
    },
    "text_cfg": TEXT,
}  # fmt: skip
PREPROCESS = {"size": SIDE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}


def main(only: list[str]) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(SEED)
    began = time.monotonic()
    things = [imagine(random) for _ in range(IMAGES)]
    pixels = torch.from_numpy(np.stack([render(thing, random) for thing in things])).permute(0, 3, 1, 2)
    print(f"rendered {IMAGES:,} images in {time.monotonic() - began:.0f} s")
    tokenizer = train_tokenizer(things, random)
    if not only or "scorer" in only:
        build_scorer(things, pixels, tokenizer, random)
    if not only or "captioner" in only:
        build_captioner(things, pixels, tokenizer, random)


def train_tokenizer(things: list[Thing], random: np.random.Generator) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on what people and machines write in this world."""
    texts = [text for thing in things for text in (alt_text(thing, random), describe(thing, random)) if text]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Encode texts to (N, CONTEXT) token ids, padded."""
    ids: torch.Tensor = tokenizer(
        texts, return_tensors="pt", max_length=CONTEXT, padding="max_length", truncation=True
    ).input_ids
    return ids


def normal(pixels: torch.Tensor) -> torch.Tensor:
    """Normalise (B, 3, H, W) uint8 pixels to float32."""
    return (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def fit(
    model: torch.nn.Module, count: int, epochs: int, rate: float, loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Train a model with AdamW and a one-cycle schedule, printing loss and rate per epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    steps = epochs * (count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for epoch in range(epochs):
        began, losses = time.monotonic(), []
        for rows in torch.randperm(count)[: count // BATCH * BATCH].reshape(-1, BATCH):
            loss = loss_of(rows)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        rate_now = count / (time.monotonic() - began)
        print(
            f"  epoch {epoch + 1} of {epochs}: loss {np.mean(losses[-50:]):.3f}, {rate_now:,.0f} samples/s", flush=True
        )
    model.eval()


def build_scorer(
    things: list[Thing], pixels: torch.Tensor, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
) -> None:
    """Train a CLIP and save it in open_clip's folder format."""
    print("scorer")
    config = WEIGHTS / "scorer.json"
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(CLIP))
    open_clip.add_model_config(config)
    model = open_clip.create_model("scorer")
    config.unlink()
    loss = open_clip.ClipLoss()
    texts = [describe(t, random) if random.random() < 0.5 else t.name for t in things]
    tokens = encode(tokenizer, texts)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        out = model(normal(pixels[rows]), tokens[rows])
        total: torch.Tensor = loss(*out[:3])
        return total

    fit(model, len(things), EPOCHS["scorer"], 2e-3, loss_of)
    folder = _fresh("scorer")
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    whole = {"model_cfg": CLIP, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(whole, indent=1))
    tokenizer.save_pretrained(folder)
    print(f"  zero-shot accuracy on fresh images {accuracy(model, tokenizer):.3f}; {_size(folder) / 1e6:.2f} MB")


def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, count: int = 2000) -> float:
    """Return the share of fresh images whose class name is nearest."""
    images, labels = fresh(count)
    with torch.no_grad():
        names = functional.normalize(model.encode_text(encode(tokenizer, list(CLASSES))), dim=-1)
        found = functional.normalize(model.encode_image(normal(images)), dim=-1)
    guess = (found @ names.T).argmax(1)
    return float((guess == torch.tensor(labels)).float().mean())


def fresh(count: int) -> tuple[torch.Tensor, list[int]]:
    """Render images that nothing was trained on, and return them with their classes."""
    random = np.random.default_rng(SEED + 1)
    things = [imagine(random) for _ in range(count)]
    images = torch.from_numpy(np.stack([render(t, random) for t in things])).permute(0, 3, 1, 2)
    return images, [CLASSES.index(t.name) for t in things]


def build_captioner(
    things: list[Thing], pixels: torch.Tensor, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
) -> None:
    """Train a BLIP and save it in transformers' folder format."""
    print("captioner")
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 96, "encoder_hidden_size": 96, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "label_smoothing": 0.0,
    }  # fmt: skip
    vision = {
        "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 6, "initializer_range": 0.02, "attention_dropout": 0.0,
    }  # fmt: skip
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=96))
    tokens = encode(tokenizer, [taught(t, random) for t in things])
    # Real captioners start from a vision tower that was trained before; this head stands in for that, and is dropped.
    classifier = torch.nn.Linear(model.config.vision_config.hidden_size, len(CLASSES))
    classes = torch.tensor([CLASSES.index(t.name) for t in things])

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        ids = tokens[rows]
        labels = ids.masked_fill(ids == 0, -100)
        out = model(normal(pixels[rows]), input_ids=ids, attention_mask=(ids > 0).long(), labels=labels)
        loss: torch.Tensor = out.loss + functional.cross_entropy(
            classifier(out.last_hidden_state.mean(1)), classes[rows]
        )
        return loss

    trained = torch.nn.ModuleList([model, classifier])
    fit(trained, len(things), EPOCHS["captioner"], 2e-3, loss_of)
    folder = _fresh("captioner")
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    print(f"  {_size(folder) / 1e6:.2f} MB; on fresh images: {said(folder)}")


def said(folder: Path, count: int = 500) -> str:
    """Tell how often the shipped captioner's sampled captions name the class, or at least the shape."""
    from components.models.captioners import load_captioner

    images, labels = fresh(count)
    captions = load_captioner(str(folder)).generate(
        images.permute(0, 2, 3, 1).numpy(), [f"{i:032x}" for i in range(count)], "build"
    )
    fine = shape = 0
    for caption, label in zip(captions, labels, strict=True):
        name = CLASSES[label]
        fine += name in caption
        shape += name not in caption and name.split()[1] in caption.split(" and ")[0]
    taught_names = 1 - len(UNTAUGHT) / len(CLASSES)
    return f"class {fine / count:.3f} (at best {taught_names:.3f}), shape only {shape / count:.3f}, e.g. {captions[:3]}"


def _fresh(name: str) -> Path:
    folder = WEIGHTS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    main(sys.argv[1:])
