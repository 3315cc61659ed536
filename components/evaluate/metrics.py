"""A trained CLIP and clip-benchmark's zero-shot metrics on one data set."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch.utils.data import DataLoader, default_collate

from components.evaluate.groups import METRICS
from components.models.clip import load_open_clip
from components.models.devices import pick_device

BATCH = 256
RECALLS = [1, 5, 10]
IMAGES = ["webp", "png", "jpg", "jpeg"]
INLINE = 64 << 20  # bytes of a data set below which starting processes costs more than they decode
WORKERS = 8  # decoding processes of a larger one, at most; no more than it has tars


class DataError(Exception):
    """The data set isn't what its format says; the message says what."""


class Student:
    """The model of one mixture, loaded once for all tasks. Images and texts are embedded in float32."""

    def __init__(self, model: str, checkpoint: str) -> None:
        self.device = pick_device()
        self.module, self.tokenizer, _ = load_open_clip(model, checkpoint, self.device)
        preprocess = PreprocessCfg(**get_model_preprocess_cfg(self.module))
        self.transform = image_transform_v2(preprocess, is_train=False)
        self.common = {"device": self.device.type, "amp": False}

    def evaluate(self, folder: Path, metric: str | None) -> tuple[str, dict[str, float], int]:
        """(classification or retrieval, metrics, number of images) of one data set.

        Args:
            metric: the one that counts, where it takes more than clip-benchmark's own evaluations; else ignored.

        Raises:
            DataError: the data set is broken.
        """
        try:
            data = build_wds_dataset("task", self.transform, split="test", data_dir=str(folder))
            with _no_bars():
                if data.templates is None and data.classes is None:
                    return self._retrieval(data, folder)
                if not data.templates or not data.classes:
                    raise DataError("classnames.txt or zeroshot_classification_templates.txt is missing or empty")
                return self._classification(data, folder, metric)
        except (OSError, ValueError, KeyError, IndexError, tarfile.TarError, wds.autodecode.DecodingError) as error:
            raise DataError(" ".join(str(error).split())[:300]) from error

    def _classification(self, data: Any, folder: Path, metric: str | None) -> tuple[str, dict[str, float], int]:
        towers = (self.module, self.tokenizer)
        if metric not in METRICS:
            loader = _Counted(_loader(data, folder, default_collate), data.classes)
            found = zeroshot_classification.evaluate(
                towers[0], loader, towers[1], data.classes, data.templates, **self.common
            )
            return "classification", _floats(found), loader.samples
        classifier = zeroshot_classification.zero_shot_classifier(*towers, data.classes, data.templates, **self.common)
        grouped = DataLoader(_with_groups(folder, self.transform), BATCH, num_workers=_workers(folder))
        logits, rows = zeroshot_classification.run_classification(towers[0], classifier, grouped, **self.common)
        labels, groups = rows.T  # (N,) each
        (acc1,) = zeroshot_classification.accuracy(logits, labels)
        return "classification", {"acc1": acc1, metric: METRICS[metric](logits, labels, groups)}, len(labels)

    def _retrieval(self, data: Any, folder: Path) -> tuple[str, dict[str, float], int]:
        loader = _Counted(_loader(data, folder, image_captions_collate_fn), None)
        found = zeroshot_retrieval.evaluate(self.module, loader, self.tokenizer, recall_k_list=RECALLS, **self.common)
        found["mean_recall@1"] = (found["image_retrieval_recall@1"] + found["text_retrieval_recall@1"]) / 2
        return "retrieval", _floats(found), loader.samples


def _loader(data: Any, folder: Path, collate: Any) -> DataLoader[Any]:
    return DataLoader(data, BATCH, collate_fn=collate, num_workers=_workers(folder))


def _workers(folder: Path) -> int:
    tars = list((folder / "test").glob("*.tar"))
    if sum(tar.stat().st_size for tar in tars) < INLINE:
        return 0
    return min(os.cpu_count() or 1, WORKERS, len(tars))


def _with_groups(folder: Path, transform: Any) -> Any:
    """(image, [label, group]) of a data set with metadata, where clip-benchmark gives (image, label)."""
    count = int((folder / "test/nshards.txt").read_text())
    return (
        wds.WebDataset(f"{folder}/test/{{0..{count - 1}}}.tar", nodesplitter=lambda urls: urls)
        .decode(wds.autodecode.ImageHandler("pil", extensions=IMAGES))
        .to_tuple(IMAGES, "cls", "npy")
        .map(lambda row: (transform(row[0]), torch.tensor([int(row[1]), int(row[2].flat[0])])))
    )


class _Counted:
    """A loader that counts its samples; `dataset.classes` is what clip-benchmark looks at."""

    def __init__(self, loader: Iterable[Any], classes: list[str] | None) -> None:
        self.loader, self.classes, self.samples = loader, classes, 0
        self.dataset = self

    def __iter__(self) -> Iterator[Any]:
        for images, labels in self.loader:
            self.samples += len(images)
            yield images, labels
        if self.samples < (max(RECALLS) if self.classes is None else 1):
            raise DataError(f"has {self.samples} images, too few to be evaluated")


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Plain numbers; acc5 is NaN where there are fewer than five classes, and left out."""
    return {name: float(value) for name, value in metrics.items() if float(value) == float(value)}


@contextmanager
def _no_bars() -> Iterator[None]:
    """clip-benchmark draws a bar per loop; our log has a line per task."""
    modules = (zeroshot_classification, zeroshot_retrieval)
    bars = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = lambda items: items
    try:
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
