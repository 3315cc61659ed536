"""The metrics: clip-benchmark's numbers, and a new one that is one entry."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from sklearn.metrics import f1_score

from components.stages.evaluate import metrics, tasks
from components.stages.evaluate.metrics import METRICS, Metric, Predictions, measure_all
from components.stages.evaluate.stage import EvaluateStep
from components.stages.report.stage import ReportStep
from components.storage.local import LocalStorage
from tests.components.stages.evaluate.test_tasks import Fake, fake, results, with_data
from tests.filled import planned
from tests.pools import write_shard

__all__ = ["fake"]  # a fixture


class Model:
    """A CLIP whose embeddings are what it is given."""

    encode_image = encode_text = staticmethod(lambda given: given)


class Loader(list[Any]):
    """Batches, with the classes where clip-benchmark looks for them."""

    def __init__(self, batches: list[Any], classes: list[str]) -> None:
        super().__init__(batches)
        self.classes, self.dataset = classes, self


def vectors(rows: int, random: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=random), dim=-1)


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]) -> list[float]:
    """As clip-benchmark's own, which dies with numpy 2.4."""
    right = output.topk(max(topk), 1, True, True)[1].t().eq(target.view(1, -1))
    return [float(right[:k].reshape(-1).float().sum()) / len(target) for k in topk]


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx({name: value for name, value in expected.items() if not math.isnan(value)})


@pytest.mark.parametrize(("kind", "classes"), [("classification", 7), ("classification", 3), ("multilabel", 7)])
def test_metrics_of_classes_are_clip_benchmarks(kind: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(7)
    images, weights = vectors(60, random), vectors(classes, random)
    truth = torch.randint(classes - 1, (60,), generator=random)  # the last class has no image
    if kind == "multilabel":
        truth = (torch.rand(60, classes, generator=random) > 0.6).long()
    names = [str(i) for i in range(classes)]
    loader = Loader([(images[:40], truth[:40]), (images[40:], truth[40:])], names)
    monkeypatch.setattr(zeroshot_classification, "accuracy", accuracy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = zeroshot_classification.evaluate(
            Model(), loader, lambda some: weights[[int(s) for s in some]], names, ["{c}"], "cpu", amp=False
        )
    found = measure_all(Predictions(kind, 100 * images @ weights.T, truth))
    same({name: value for name, value in found.items() if name != "F1-macro_all"}, expected)
    assert ("acc5" in found) == (kind == "classification" and classes > 5)


def test_f1_is_that_of_the_classes_that_have_an_image() -> None:
    """As WILDS has it: scikit-learn's, over the labels that occur."""
    random = torch.Generator().manual_seed(7)
    scores, truth = torch.rand(80, 9, generator=random), torch.randint(7, (80,), generator=random)
    expected = f1_score(truth, scores.argmax(dim=1), average="macro", labels=torch.unique(truth))
    assert measure_all(Predictions("classification", scores, truth))["F1-macro_all"] == pytest.approx(expected)
    by_hand = Predictions("classification", torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 1]))
    assert measure_all(by_hand)["F1-macro_all"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # the third class has no image


GROUPS = torch.tensor([0, 0, 0, 2, 2, 5])  # 1, 3 and 4 are empty
GUESSED = torch.tensor([[5, 4, 3, 2, 1, 0]] * 6)  # class 0 is best, class 5 is last


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("acc_wg", [0, 0, 1, 0, 3, 0], 1 / 2),
        ("acc_worst_region", [0, 1, 2, 0, 0, 0], 1 / 3),
        ("acc_top5_wg", [0, 1, 5, 4, 3, 2], 2 / 3),
        ("acc_top5_wg", [0, 1, 1, 4, 3, 5], 0),
    ],
)
def test_a_group_is_the_worst_by_its_own_share(name: str, labels: list[int], expected: float) -> None:
    found = Predictions("classification", GUESSED.float(), torch.tensor(labels), GROUPS)
    assert measure_all(found, name)[name] == pytest.approx(expected)
    assert name not in measure_all(found), "what the groups are, only the task knows"
    assert name not in measure_all(Predictions("classification", GUESSED.float(), torch.tensor(labels)), name)


def test_metrics_of_retrieval_are_clip_benchmarks() -> None:
    random = torch.Generator().manual_seed(7)
    images, texts = vectors(60, random), vectors(100, random)
    numbers = [[n, n + 60] if n < 40 else [n] for n in range(60)]  # two texts of the first 40 images, one of the others
    loader = [(images[i : i + 20], numbers[i : i + 20]) for i in (0, 20, 40)]
    expected = zeroshot_retrieval.evaluate(
        Model(), loader, lambda some: texts[some], "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    expected["mean_recall@1"] = (expected["image_retrieval_recall@1"] + expected["text_retrieval_recall@1"]) / 2
    order = [t for some in numbers for t in some]
    labels = torch.tensor([n for n, some in enumerate(numbers) for _ in some])
    same(measure_all(Predictions("retrieval", texts[order] @ images.T, labels)), expected)


def test_fewer_texts_than_a_recall_looks_at_is_no_error() -> None:
    found = measure_all(Predictions("retrieval", torch.eye(3), torch.arange(3)))
    assert set(found.values()) == {1.0}


def test_a_new_metric_is_one_entry(tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is counted by it, it has a column of its own, and the page says it in its own words."""
    new = Metric("acc_odd", "classification", "oddness", lambda found: found.images / 200, "odd ones")
    monkeypatch.setattr(metrics, "METRICS", [*METRICS, new])
    table = tmp_path / "tasks.yaml"
    table.write_text("- {name: One, folder: t01, metric: acc_odd}\n- {name: Two, folder: t02, metric: acc1}\n")
    monkeypatch.setattr(tasks, "DATACOMP", table)
    write_shard(tmp_path / "shards", 0, 4)
    evaluate = {"root": str(with_data(tmp_path) / "tasks"), "tasks": "datacomp"}
    mixtures = [{"name": "a", "rules": [{"text": "raw"}]}]
    spec = {"columns": [], "train": {"scale": "debug"}, "evaluate": evaluate}
    run = planned(tmp_path / "out", tmp_path / "shards", mixtures, **spec)
    assert run.spec.evaluate is not None
    found = [tasks.gap(task, LocalStorage(tmp_path / "tasks")) for task in tasks.tasks_of(run.spec.evaluate)]
    assert found == [None, None]
    EvaluateStep().run(run)
    one = results(run)["a"]
    assert one["tasks"][0]["value"] == one["tasks"][1]["metrics"]["acc_odd"] == one["means"]["odd ones"] == 0.25
    assert one["average"] == (0.25 + one["means"]["classification"]) / 2

    ReportStep().run(run)
    page = run.storage.read(f"{run.folder}/report.html").decode()
    assert "One (oddness, 50 images)" in page
    assert '<th scope="col">odd ones</th>' in page
