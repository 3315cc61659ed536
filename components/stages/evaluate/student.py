"""A trained CLIP and its zero-shot predictions on one data set, made as clip-benchmark makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch.nn.functional import normalize

from components.models.clip import load_open_clip
from components.models.devices import pick_device
from components.stages.evaluate.data import ZeroShot
from components.stages.evaluate.metrics import Predictions

BATCH = 256


class Student:
    """The model of one mixture, loaded once for all tasks."""

    def __init__(self, model: str, checkpoint: str) -> None:
        self.device = pick_device()
        self.module: Any
        self.module, self.tokenizer, _ = load_open_clip(model, checkpoint, self.device)
        preprocess = PreprocessCfg(**get_model_preprocess_cfg(self.module))
        self.transform = image_transform_v2(preprocess, is_train=False)

    def predict(self, folder: Path) -> Predictions:
        """Score the images of one data set against its classes, or against its texts.

        Images and texts are embedded in float32, as DataComp does.

        Raises:
            PermanentError: a file or a member of a tar isn't what it should be.
        """
        data = ZeroShot(folder, self.transform)
        return self._retrieval(data) if data.kind == "retrieval" else self._classification(data)

    def _classification(self, data: ZeroShot) -> Predictions:
        loader = torch.utils.data.DataLoader(data, BATCH)
        with _without_bars():
            classifier = zeroshot_classification.zero_shot_classifier(
                self.module, self.tokenizer, data.classes, data.templates, self.device.type, amp=False
            )
            scores, labels = zeroshot_classification.run_classification(
                self.module, classifier, loader, self.device.type, amp=False
            )
        groups = None if None in data.groups else torch.tensor(data.groups)
        return Predictions(data.kind, scores, labels, groups)

    @torch.inference_mode()
    def _retrieval(self, data: ZeroShot) -> Predictions:
        """Compare all texts with all images; clip-benchmark has no function that stops before the metrics."""
        loader = torch.utils.data.DataLoader(data, BATCH, collate_fn=image_captions_collate_fn)
        images, texts, labels, number = [], [], [], 0
        for pictures, captions in loader:
            tokens = self.tokenizer([text for some in captions for text in some]).to(self.device)
            images.append(normalize(self.module.encode_image(pictures.to(self.device)), dim=-1).cpu())
            texts.append(normalize(self.module.encode_text(tokens), dim=-1).cpu())
            labels += [number + i for i, some in enumerate(captions) for _ in some]
            number += len(captions)
        return Predictions(data.kind, torch.cat(texts) @ torch.cat(images).T, torch.tensor(labels))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Run clip-benchmark without its bar per loop: our log has a line per task."""
    with patch.object(zeroshot_classification, "tqdm", lambda items: items):
        yield
