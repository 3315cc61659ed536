"""DataComp's metrics that clip-benchmark lacks: F1 over the classes that occur, and the worst group's accuracy.

Each task's samples carry a row of integers (`.npy`, WILDS' metadata) whose first number is the group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from clip_benchmark.metrics.zeroshot_classification import accuracy
from sklearn.metrics import f1_score

OTHER = 5  # FMoW's regions are Asia, Europe, Africa, Americas, Oceania, Other; the last is no region


def f1_macro(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> float:
    """iWildCam's F1: the unweighted mean over the classes that some image really has (WILDS)."""
    return float(f1_score(labels, logits.argmax(1), average="macro", labels=labels.unique()))


def worst_group(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> float:
    """GeoDE's: top-1 accuracy of the worst region."""
    return _worst(logits, labels, groups, 1)


def worst_group_top5(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> float:
    """Dollar Street's: top-5 accuracy of the worst income group."""
    return _worst(logits, labels, groups, 5)


def worst_region(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> float:
    """FMoW's: top-1 accuracy of the worst region, `Other` left out (WILDS)."""
    rest = groups != OTHER
    return _worst(logits[rest], labels[rest], groups[rest], 1)


def _worst(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor, k: int) -> float:
    members = (groups == group for group in groups.unique())
    return min(float(accuracy(logits[rows], labels[rows], topk=(k,))[0]) for rows in members)


METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]] = {
    "F1-macro_all": f1_macro,
    "acc_worst_region": worst_region,
    "acc_top5_wg": worst_group_top5,
    "acc_wg": worst_group,
}
"""(logits (N, classes), labels (N,), groups (N,)) → [0, 1]."""
