"""Small heads and classifiers, saved as the real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

LABELS = ("safe", "nsfw", "spam")
WORDS = ["photo", "number", "a", "of", "the", *map(str, range(100))]


class Standardise(nn.Module):
    """As in LAION's src/models.py."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(width) * 0.1)
        self.register_buffer("variance", torch.rand(width) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.get_buffer("mean")) / (self.get_buffer("variance").sqrt() + 1e-10)


class Named(nn.Module):
    """The heads for ViT-L-14 and ViT-B-32, narrower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Standardise(width)
        self.linear_1, self.linear_2, self.linear_3 = nn.Linear(width, 8), nn.Linear(8, 12), nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.linear_1(self.norm(x)))
        return torch.sigmoid(self.linear_3(torch.relu(self.linear_2(x))))


class Numbered(nn.Module):
    """The head for ViT-H-14, narrower: nothing between its last two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = [nn.Linear(width, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*hidden, nn.Linear(8, 4), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def logistic(path: Path, weight: torch.Tensor, bias: float) -> Path:
    """A head that is a logistic regression of one vector."""
    torch.save({"linear_1.weight": weight.reshape(1, -1), "linear_1.bias": torch.tensor([bias])}, path)
    return path


def save_classifier(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random BERT in the from_pretrained layout, with LABELS."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    torch.manual_seed(seed)
    names = dict(enumerate(LABELS))
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = {"id2label": names, "label2id": {v: k for k, v in names.items()}, "initializer_range": 0.5}
    whole = {"vocab_size": len(vocabulary), "max_position_embeddings": 16, **shape, **settings, **config}
    BertForSequenceClassification(BertConfig(**whole)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
