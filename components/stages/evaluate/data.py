"""A zero-shot data set in clip-benchmark's webdataset format, read without its reader, which unpickles members.

    dataset_type.txt                          `retrieval` or `multilabel`; left out: classification
    classnames.txt                            a class a line; not of retrieval
    zeroshot_classification_templates.txt     a prompt a line, with {c} for the class; not of retrieval
    test/nshards.txt, test/0.tar, …           samples: an image, and cls (a number), npy (a row of 0 and 1) or txt

Beside cls, npy is a row of numbers, of which the first is the image's group, such as its region. Only the image, the
label and the group of a sample are decoded, whatever else is in the tar.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset
from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from components.base.errors import PermanentError, RecaptionError, from_system
from components.engine.images import ImageError, opened
from components.storage.local import LocalStorage

IMAGES = ("webp", "png", "jpg", "jpeg")  # the first that a sample has counts, as for clip-benchmark
LARGEST = 1 << 20  # the number of groups is below it
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
    groups: list[int | None]
    """The group of each image that was read since the last beginning; None where it has none."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        """Read the text files of a data set. Raises PermanentError: one is missing, or isn't what it should be."""
        super().__init__()
        self.storage, self.transform, self.groups = LocalStorage(folder), transform, []
        found = self._read("dataset_type.txt") if self.storage.size("dataset_type.txt") is not None else ""
        self.kind = kind if (kind := found.strip().lower()) in LABELS else "classification"
        self.label, self.decode = LABELS[self.kind]
        count = self._read("test/nshards.txt").strip()
        if not count.isdecimal() or not int(count):
            raise PermanentError(f"{folder}/test/nshards.txt: found {count[:40]!r}, expected the number of tars")
        self.tars = [f"test/{number}.tar" for number in range(int(count))]
        if self.kind != "retrieval":
            self.classes, self.templates = self._lines(CLASSES), self._lines(TEMPLATES)
            for number, template in enumerate(self.templates, 1):
                if not _has_slot(template):
                    raise PermanentError(
                        f"{folder}/{TEMPLATES}: line {number} is {template[:100]!r}; expected a text with {{c}} where "
                        "the name of the class belongs, and no other braces"
                    )

    def _lines(self, name: str) -> list[str]:
        lines = [line.strip() for line in self._read(name).splitlines()]
        if not lines:
            raise PermanentError(f"{self.storage.uri}/{name}: is empty; expected one line each")
        if "" in lines:
            raise PermanentError(
                f"{self.storage.uri}/{name}: line {lines.index('') + 1} of {len(lines)} is blank; expected a text on "
                "every line"
            )
        return lines

    def _read(self, name: str) -> str:
        try:
            return self.storage.read(name).decode()
        except UnicodeDecodeError as error:
            raise PermanentError(f"{self.storage.uri}/{name}: is no text ({error})") from error

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Any]]:
        self.groups, empty = [], True
        for tar in self.tars:
            for sample in self._samples(tar):
                empty = False
                self.groups.append(_group(sample.get("npy")) if self.kind == "classification" else None)
                yield self._decoded(sample, f"{self.storage.uri}/{tar}: {sample['__key__']}")
        if empty:
            raise PermanentError(f"{self.storage.uri}/test: its {len(self.tars)} tars have no sample")

    def _samples(self, tar: str) -> Iterator[dict[str, Any]]:
        """Yield the members of each sample. Raises PermanentError: this isn't a whole tar."""
        read = ["its beginning"]

        def files(stream: BinaryIO) -> Iterator[dict[str, Any]]:
            for file in tar_file_expander([{"url": tar, "stream": stream}], handler=reraise_exception):
                read.append(file["fname"])
                yield file

        with self.storage.open(tar) as stream:
            try:
                yield from group_by_keys(files(stream), handler=reraise_exception)
            except (RecaptionError, MemoryError):
                raise
            except Exception as error:  # tarfile's and webdataset's, which puts the stream into it
                if from_system(error):
                    raise
                said = str(error.args[0] if error.args else error).partition(" @ ")[0]
                raise PermanentError(f"{self.storage.uri}/{tar}: is damaged after {read[-1]} ({said})") from error

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
        if wrong := self._wrong(label):
            raise PermanentError(f"{where}.{self.label}: {wrong}")
        return self.transform(rgb), label

    def _wrong(self, label: Any) -> str | None:
        """Say why a label means nothing in this data set; None where it does."""
        if self.classes is None:
            return None if label else "is empty; expected a text on every line"
        count, file = len(self.classes), f"{self.storage.uri}/{CLASSES}"
        if self.kind == "multilabel":
            if label.shape == (count,) and np.isin(label, (0, 1)).all():
                return None
            return f"found an array of shape {label.shape}, expected a 0 or 1 for each of the {count} classes of {file}"
        if 0 <= label < count:
            return None
        return f"found {label}, expected 0 to {count - 1}, the number of a class of {file}, which has {count} lines"


def _group(data: bytes | None) -> int | None:
    """Return the first number of an array, if it can number a group; other data sets keep other things in a .npy."""
    try:
        row = _row(data) if data else np.empty(0)
    except (ValueError, MemoryError):
        return None
    if row.dtype.kind not in "iuf" or not row.size:
        return None
    first = float(row.flat[0])
    return int(first) if first.is_integer() and 0 <= first < LARGEST else None


def _has_slot(template: str) -> bool:
    """Return whether the name of a class, and nothing else, can be put into a template."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError:
        return False
    return bool(fields) and set(fields) == {"c"}
