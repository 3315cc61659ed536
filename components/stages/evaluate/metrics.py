"""A trained CLIP and clip-benchmark's zero-shot metrics on one data set."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2

from components.models.clip import load_open_clip
from components.models.devices import pick_device
from components.stages.evaluate.data import ZeroShot

BATCH = 256
RECALLS = [1, 5, 10]


class Student:
    """The model of one mixture, loaded once for all tasks."""

    def __init__(self, model: str, checkpoint: str) -> None:
        self.device = pick_device()
        self.module, self.tokenizer, _ = load_open_clip(model, checkpoint, self.device)
        preprocess = PreprocessCfg(**get_model_preprocess_cfg(self.module))
        self.transform = image_transform_v2(preprocess, is_train=False)

    def evaluate(self, folder: Path) -> tuple[str, dict[str, float], int]:
        """(classification or retrieval, metrics, number of images) of one data set.

        Images and texts are embedded in float32, as DataComp does.

        Raises:
            PermanentError: a file or a member of a tar isn't what it should be.
        """
        data = ZeroShot(folder, self.transform)
        collate = image_captions_collate_fn if data.retrieval else torch.utils.data.default_collate
        loader = _Counted(torch.utils.data.DataLoader(data, BATCH, collate_fn=collate), data.classes)
        common = {"device": self.device.type, "amp": False}
        with _adapted():
            if data.retrieval:
                found = zeroshot_retrieval.evaluate(
                    self.module, loader, self.tokenizer, recall_k_list=RECALLS, **common
                )
                found["mean_recall@1"] = (found["image_retrieval_recall@1"] + found["text_retrieval_recall@1"]) / 2
                return "retrieval", _floats(found), loader.samples
            found = zeroshot_classification.evaluate(
                self.module, loader, self.tokenizer, data.classes, data.templates, **common
            )
        return "classification", _floats(found), loader.samples


class _Counted:
    """A loader that counts its samples; `dataset.classes` is what clip-benchmark looks at."""

    def __init__(self, loader: Iterable[Any], classes: list[str] | None) -> None:
        self.loader, self.classes, self.samples = loader, classes, 0
        self.dataset = self

    def __iter__(self) -> Iterator[Any]:
        for images, labels in self.loader:
            self.samples += len(images)
            yield images, labels


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Plain numbers; acc5 is NaN where there are fewer than five classes, and left out."""
    return {name: float(value) for name, value in metrics.items() if float(value) == float(value)}


def _accuracy(logits: torch.Tensor, labels: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """Share of rows whose label is among the k highest logits, (N, C); clip-benchmark's own dies with numpy 2.4."""
    hits = logits.topk(max(topk), dim=1).indices == labels[:, None]
    return [float(hits[:, :k].any(dim=1).float().mean()) for k in topk]


@contextmanager
def _adapted() -> Iterator[None]:
    """clip-benchmark as it is needed here: no bar per loop (our log has a line per task), an accuracy that runs."""
    with ExitStack() as stack:
        for module in (zeroshot_classification, zeroshot_retrieval):
            stack.enter_context(patch.object(module, "tqdm", lambda items: items))
        stack.enter_context(patch.object(zeroshot_classification, "accuracy", _accuracy))
        stack.enter_context(warnings.catch_warnings())
        # scikit-learn leaves classes without an image out of the mean, as it should, and warns of it
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        yield
