"""A zero-shot data set in clip-benchmark's webdataset format, read without its reader, which unpickles members.

    dataset_type.txt                          `retrieval` or `multilabel`; left out: classification
    classnames.txt                            a class a line; not of retrieval
    zeroshot_classification_templates.txt     a prompt a line, with {c} for the class; not of retrieval
    test/nshards.txt, test/0.tar, …           samples: an image, and cls (a number), npy (a row of 0 and 1) or txt

Only the image and the label of a sample are decoded, whatever else is in the tar.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset
from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from components.base.errors import PermanentError
from components.engine.images import ImageError, opened
from components.storage.local import LocalStorage

IMAGES = ("webp", "png", "jpg", "jpeg")  # the first that a sample has counts, as for clip-benchmark
CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


def _text(data: bytes) -> list[str]:
    return data.decode().splitlines()


def _row(data: bytes) -> NDArray[Any]:
    row: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return row


LABELS: dict[str, tuple[str, Callable[[bytes], Any]]] = {
    "retrieval": ("txt", _text),
    "multilabel": ("npy", _row),
    "classification": ("cls", int),
}


class ZeroShot(IterableDataset[tuple[torch.Tensor, Any]]):
    """Pairs of (image, label): (3, H, W) float32, and a class's number, a row over the classes, or a list of texts."""

    classes: list[str] | None = None
    """None for retrieval, as the templates are."""
    templates: list[str] | None = None

    def __init__(self, folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        """Read the text files of a data set. Raises PermanentError: one is missing, or isn't what it should be."""
        super().__init__()
        self.storage, self.transform = LocalStorage(folder), transform
        found = self._read("dataset_type.txt") if self.storage.size("dataset_type.txt") is not None else ""
        self.kind = kind if (kind := found.strip().lower()) in LABELS else "classification"
        self.label, self.decode = LABELS[self.kind]
        count = self._read("test/nshards.txt").strip()
        if not count.isdecimal() or not int(count):
            raise PermanentError(f"{folder}/test/nshards.txt: found {count[:40]!r}, expected the number of tars")
        self.tars = [f"test/{number}.tar" for number in range(int(count))]
        if self.kind != "retrieval":
            self.classes, self.templates = (
                [line.strip() for line in self._read(name).splitlines()] for name in (CLASSES, TEMPLATES)
            )

    def _read(self, name: str) -> str:
        try:
            return self.storage.read(name).decode()
        except UnicodeDecodeError as error:
            raise PermanentError(f"{self.storage.uri}/{name}: is no text ({error})") from error

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Any]]:
        for tar in self.tars:
            with self.storage.open(tar) as stream:
                files = tar_file_expander([{"url": tar, "stream": stream}], handler=reraise_exception)
                for sample in group_by_keys(files, handler=reraise_exception):
                    yield self._decoded(sample, f"{self.storage.uri}/{tar}: {sample['__key__']}")

    def _decoded(self, sample: dict[str, Any], where: str) -> tuple[torch.Tensor, Any]:
        name = next((name for name in IMAGES if name in sample), None)
        if name is None or self.label not in sample:
            found = ", ".join(sorted(key for key in sample if not key.startswith("__")))
            raise PermanentError(f"{where}: has {found}; expected an image ({', '.join(IMAGES)}) and {self.label}")
        try:
            with opened(sample[name]) as image:
                image.load()
                rgb = image.convert("RGB")  # as clip-benchmark: neither turned by EXIF nor laid over white
        except ImageError as error:
            raise PermanentError(f"{where}.{name}: {error}") from error
        try:
            label = self.decode(sample[self.label])
        except (ValueError, MemoryError) as error:  # no number, no UTF-8, no array, one of objects, a shape too large
            raise PermanentError(f"{where}.{self.label}: {error}") from error
        return self.transform(rgb), label
