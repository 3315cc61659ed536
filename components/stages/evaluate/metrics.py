"""Every metric of a zero-shot task, each declared once.

To add one, add a Metric to METRICS: it is then measured on every data set of its kind, a task can be counted by it, and
the report writes it. This module is read without torch, which a metric imports when it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """The scores that a model gave to the samples of one data set, and what is true of them."""

    kind: str
    """classification: each image has one class; multilabel: any number of classes; retrieval: each text has one
    image."""
    scores: Tensor
    """float32, higher = fits better: (images, classes), of retrieval (texts, images)."""
    labels: Tensor
    """Number of each image's class, (images,); of multilabel 0 or 1, (images, classes); of retrieval the number of each
    text's image, (texts,)."""
    groups: Tensor | None = None
    """Number of each image's group, such as a region, (images,); None where the data set has no groups."""

    @property
    def images(self) -> int:
        """Count the data set's images."""
        return self.scores.shape[1 if self.kind == "retrieval" else 0]


@dataclass(frozen=True)
class Metric:
    """One number that says how good predictions are."""

    name: str
    """As DataComp's task list and clip-benchmark call it."""
    kind: str
    """Kind of the data sets that it is measured on."""
    said: str
    """How the report writes it."""
    measure: Callable[[Predictions], float]
    """NaN where it says nothing about this data set."""
    group: str = "classification"
    """Column of the report's table in whose mean it counts."""
    of_groups: bool = False
    """Whether it is measured only where a task is counted by it: what a data set's groups are, its task knows."""


def top_accuracy(k: int) -> Callable[[Predictions], float]:
    """Make the metric that is the share of images whose class is among the k with the highest scores.

    It is NaN where there are fewer than k classes.
    """

    def measure(found: Predictions) -> float:
        if found.scores.shape[1] < k:
            return math.nan
        return _hit(found.scores.topk(k, dim=1).indices == found.labels[:, None])

    return measure


def mean_per_class_recall(found: Predictions) -> float:
    """Average over the classes, each of which counts the same, the share of its images that are recognized.

    A class without an image is left out.
    """
    right = found.labels[found.scores.argmax(dim=1) == found.labels]
    images = found.labels.bincount()
    recalls = right.bincount(minlength=len(images)).double() / images
    return float(recalls[images > 0].mean())


def f1_macro(found: Predictions) -> float:
    """Average the F1 score over the classes that have an image, each of which counts the same (WILDS, iWildCam)."""
    guessed = found.scores.argmax(dim=1)
    images = found.labels.bincount(minlength=found.scores.shape[1])
    right = found.labels[guessed == found.labels].bincount(minlength=len(images)).double()
    scores = 2 * right / (images + guessed.bincount(minlength=len(images)))
    return float(scores[images > 0].mean())


def worst_group(k: int) -> Callable[[Predictions], float]:
    """Make the metric that is the lowest of the groups' shares of images whose class is among the k best (WILDS).

    It is NaN where an image has no group, or where there are fewer than k classes.
    """

    def measure(found: Predictions) -> float:
        if found.groups is None or found.scores.shape[1] < k:
            return math.nan
        right = (found.scores.topk(k, dim=1).indices == found.labels[:, None]).any(dim=1)
        images = found.groups.bincount()
        shares = found.groups[right].bincount(minlength=len(images)).double() / images
        return float(shares[images > 0].min())

    return measure


def mean_average_precision(found: Predictions) -> float:
    """Average over the classes the average precision of the images, sorted by score."""
    from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class

    return float(average_precision_per_class(found.scores, found.labels).mean())


def image_recall(k: int) -> Callable[[Predictions], float]:
    """Make the metric that is the share of texts whose image is among the k images with the highest scores."""

    def measure(found: Predictions) -> float:
        best = found.scores.topk(min(k, found.scores.shape[1]), dim=1).indices
        return _hit(best == found.labels[:, None])

    return measure


def text_recall(k: int) -> Callable[[Predictions], float]:
    """Make the metric that is the share of images one of whose texts is among the k texts with the highest scores."""

    def measure(found: Predictions) -> float:
        import torch

        best = found.scores.T.topk(min(k, found.scores.shape[0]), dim=1).indices
        return _hit(found.labels[best] == torch.arange(found.images)[:, None])

    return measure


def mean_recall(found: Predictions) -> float:
    """Average the recall of images and of texts at 1."""
    return (image_recall(1)(found) + text_recall(1)(found)) / 2


def _hit(right: Tensor) -> float:
    return float(right.any(dim=1).float().mean())


METRICS: list[Metric] = [
    Metric("acc1", "classification", "accuracy", top_accuracy(1)),
    Metric("acc5", "classification", "accuracy of 5 guesses", top_accuracy(5)),
    Metric("mean_per_class_recall", "classification", "mean recall of a class", mean_per_class_recall),
    Metric("F1-macro_all", "classification", "mean F1 of a class", f1_macro),
    Metric("acc_wg", "classification", "accuracy in the worst group", worst_group(1), of_groups=True),
    Metric("acc_worst_region", "classification", "accuracy in the worst region", worst_group(1), of_groups=True),
    Metric("acc_top5_wg", "classification", "accuracy of 5 guesses in the worst group", worst_group(5), of_groups=True),
    Metric("mean_average_precision", "multilabel", "mean average precision", mean_average_precision),
    Metric("mean_recall@1", "retrieval", "mean of image and text recall@1", mean_recall, "retrieval"),
    *(
        Metric(f"{what}_retrieval_recall@{k}", "retrieval", f"{what} recall@{k}", recall(k), "retrieval")
        for what, recall in (("image", image_recall), ("text", text_recall))
        for k in (1, 5, 10)
    ),
]
"""The first of a kind counts where a task names none."""


def find_metric(name: str | None, kind: str | None = None) -> Metric | None:
    """Return the metric of this name, or where there is no name the one that counts for data sets of this kind.

    None: there is no such metric.
    """
    return next((m for m in METRICS if m.name == name or (name is None and m.kind == kind)), None)


def measure_all(found: Predictions, counts: str | None = None) -> dict[str, float]:
    """Measure every metric of the data set's kind; one that says nothing about it is left out.

    Args:
        found: the predictions.
        counts: name of the metric that counts for the task.
    """
    measured = [m for m in METRICS if m.kind == found.kind and (not m.of_groups or m.name == counts)]
    values = {m.name: m.measure(found) for m in measured}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def mean_by_group(values: Sequence[tuple[str, float]]) -> dict[str, float | None]:
    """Average the values of (group, value) by group, unweighted; None where a group has none."""
    groups = dict.fromkeys(m.group for m in METRICS)
    return {group: mean_of([v for g, v in values if g == group]) for group in groups}


def mean_of(values: Sequence[float]) -> float | None:
    """Average values; None where there is none."""
    return sum(values) / len(values) if values else None
