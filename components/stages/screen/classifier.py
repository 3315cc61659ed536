"""A text classifier by transformers: how likely one of its labels is for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from components.base.errors import PermanentError
from components.models.devices import Pieces, half_precision, pick_device
from components.models.files import local_files
from components.models.loading import loading
from components.models.texts import cut

LONGEST = 512  # tokens, where the tokenizer knows no limit: what BERT and its kin were trained on


class Classifier:
    """Scores texts."""

    def __init__(self, module: Any, tokenizer: Any, label: int, name: str) -> None:
        self.module, self.tokenizer, self.label = module, tokenizer, label
        self.device = next(module.parameters()).device
        self.alone = module.config.problem_type == "multi_label_classification" or module.config.num_labels == 1
        self.pieces = Pieces(name)

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (B,) probabilities of the label, each text cut to the model's length.

        Softmax over the labels; a sigmoid where the model says that its labels don't exclude each other.
        """
        parts = self.pieces.run(lambda rows: self._score(texts[rows]), len(texts))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        limit = min(LONGEST, self.tokenizer.model_max_length)
        tokens = self.tokenizer(
            [cut(text) for text in texts], return_tensors="pt", padding=True, truncation=True, max_length=limit
        )
        with half_precision(self.device):
            logits = self.module(**tokens.to(self.device)).logits
        logits = logits.float()  # (B, labels)
        chances = logits.sigmoid() if self.alone else logits.softmax(dim=1)
        found: NDArray[np.float32] = chances[:, self.label].cpu().numpy()
        return found


def load_classifier(model: str, revision: str | None, label: str) -> Classifier:
    """Load a sequence classifier.

    Args:
        model: a Hugging Face id or a folder.
        label: a name of the config's id2label.

    Raises:
        PermanentError: there is no such model, or it has no such label.
        TemporaryError: as `loading`.
    """
    what = f"screen {model}"
    disable_progress_bar()  # the worker loop has its own
    with loading(what):
        folder = local_files(model, what, revision, weights=True)
        module = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    labels = {str(name): int(number) for number, name in module.config.id2label.items()}
    if label not in labels:
        raise PermanentError(f"{what}: has no label {label}; there is {', '.join(labels)}")
    module.to(pick_device()).eval().requires_grad_(False)
    return Classifier(module, tokenizer, labels[label], what)
