"""evaluate: every trained model on every zero-shot task, by clip-benchmark's own metrics."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluate.tasks import Task, gap, local_copy, tasks_of
from components.pool import recipe as schema
from components.pool.run import Run
from components.pool.stage import Needs, Step
from components.pool.storage import open_storage

if TYPE_CHECKING:
    from components.evaluate.metrics import Student

log = logging.getLogger(__name__)


class EvaluateStep(Step):
    """A model is loaded once for all its tasks; a missing data set is a reported gap."""

    name = "evaluate"
    summary = "evaluate each trained CLIP zero-shot: classification and retrieval"
    reads = ("models", "tasks")
    writes = "evaluations/<mixture>: a result per task, results.json"
    needs = Needs(memory_gib=8, gpu=True)

    def run(self, run: Run) -> None:
        for mixture in run.trained:
            if run.storage.size(f"{run.evaluation_folder(mixture)}/results.json") is None:
                _evaluate(run, mixture)


def _evaluate(run: Run, mixture: schema.Mixture) -> None:
    assert run.spec.evaluate is not None  # the step is part of runs that evaluate
    folder, root = run.evaluation_folder(mixture), open_storage(run.spec.evaluate.root)
    student: Student | None = None
    found, gaps = [], []
    for task in tasks_of(run.spec.evaluate):
        path = f"{folder}/tasks/{task.folder}.json"
        reason = gap(task, root)
        if reason:
            log.warning("evaluate %s on %s: %s", mixture.name, task.name, reason)
            gaps.append({"task": task.name, "reason": reason})
            continue
        if run.storage.size(path) is None:
            student = student or _load(run, mixture)
            with local_copy(task, root) as data:
                result = _timed(student, task, data)
            run.storage.create(path, json.dumps(result, indent=1).encode())
            log.info("evaluate %s on %s: %s %.4f", mixture.name, task.name, result["metric"], result["value"])
        found.append(json.loads(run.storage.read(path)))
    results = {"mixture": mixture.name, "tasks": found, "gaps": gaps, **_means(found)}
    run.storage.create(f"{folder}/results.json", json.dumps(results, indent=1).encode())


def _load(run: Run, mixture: schema.Mixture) -> Student:
    from components.evaluate.metrics import Student

    folder = run.model_folder(mixture)
    model: dict[str, Any] = json.loads(run.storage.read(f"{folder}/model.json"))
    with tempfile.TemporaryDirectory(prefix="evaluate-") as scratch:
        name = model["model"]
        if model["architecture"]:
            config = Path(scratch) / f"{name}.json"
            config.write_text(json.dumps(model["architecture"]))
            name = str(config)
        checkpoint = Path(scratch) / "checkpoint.pt"
        checkpoint.write_bytes(run.storage.read(model["checkpoint"]))
        return Student(name, str(checkpoint))


def _timed(student: Student, task: Task, data: Path) -> dict[str, Any]:
    began = time.monotonic()
    kind, metrics, samples = student.evaluate(data)
    metric = task.metric or ("mean_recall@1" if kind == "retrieval" else "acc1")
    return {
        "name": task.name,
        "kind": kind,
        "metric": metric,
        "value": metrics[metric],
        "metrics": metrics,
        "samples": samples,
        "seconds": round(time.monotonic() - began, 3),
    }


def _means(results: list[dict[str, Any]]) -> dict[str, float | None]:
    """Unweighted means of the metrics that count (DataComp's average)."""

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "classification": mean([r["value"] for r in results if r["kind"] == "classification"]),
        "retrieval": mean([r["value"] for r in results if r["kind"] == "retrieval"]),
        "average": mean([r["value"] for r in results]),
    }
