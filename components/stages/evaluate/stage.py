"""evaluate: measure every trained model on every zero-shot task, as clip-benchmark does."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.base.errors import PermanentError, RecaptionError, TemporaryError, from_system
from components.base.hashing import content_hash
from components.engine.stage import Finding, Needs, Step
from components.pool.run import Run
from components.recipe.mixtures import Mixture
from components.recipe.recipe import Spec
from components.stages.evaluate.checks import check_data_sets
from components.stages.evaluate.metrics import find_metric, mean_by_group, mean_of, measure_all
from components.stages.evaluate.tasks import (
    Task,
    absent,
    fingerprint,
    gap,
    local_copy,
    print_key,
    tasks_of,
)
from components.storage.interface import Storage, below
from components.storage.opening import open_storage

if TYPE_CHECKING:
    from components.stages.evaluate.student import Student

log = logging.getLogger(__name__)

PASSING = ("OutOfMemoryError", "AcceleratorError")  # torch's, by name: a declaration imports nothing heavy

GROUP = 8  # zero-shot tasks that share one loading of a model; DataComp's 38 (5,142 s on its GPU) make five groups


class EvaluateStep(Step):
    """A worker loads a model once for all its tasks; a missing data set is a reported gap.

    A task that fails is named once the others are done. Its result is all that the next call has to make, as is the
    result of a task that a recipe adds later: a result's name depends on its model and its own data set only.
    """

    name = "evaluate"
    summary = "evaluate each trained CLIP zero-shot: classification and retrieval"
    reads = ("models", "tasks")
    writes = "evaluations/<mixture>: a result per task, results-<hash>.json"
    needs = Needs(memory_gib=8, gpu=True)
    divisible = True

    @classmethod
    def check(cls, spec: Spec) -> Iterator[Finding]:
        return check_data_sets(spec.evaluate) if spec.evaluate else iter(())

    def run(self, run: Run) -> None:
        failures: list[RecaptionError] = []
        for mixture in run.trained:
            if run.storage.size(run.results_path(mixture)) is None:
                failed = _evaluate(run, mixture, _tasks(run))
                failures += failed
                if not failed:
                    _merge(run, mixture)
        _raise(failures)

    def recorded(self, run: Run) -> tuple[float, float] | None:
        """Return the seconds that the results took, and how many results there are."""
        paths = [_path(run, mixture, task) for mixture in run.trained for task in _tasks(run)] if run.is_indexed else []
        found = [json.loads(run.storage.read(path)) for path in paths if run.storage.size(path) is not None]
        return sum(result["seconds"] for result in found), len(found)

    def count_tasks(self, run: Run) -> int:
        return len(_groups(run))

    def run_task(self, run: Run, task: int, tasks: int) -> None:
        groups = _groups(run)
        share = groups[len(groups) * task // tasks : len(groups) * (task + 1) // tasks]
        failures: list[RecaptionError] = []
        for mixture in run.trained:
            failures += _evaluate(run, mixture, [task for m, group in share if m is mixture for task in group])
        _raise(failures)


def _tasks(run: Run) -> list[Task]:
    assert run.spec.evaluate is not None  # the step is part of runs that evaluate
    return tasks_of(run.spec.evaluate)


def _groups(run: Run) -> list[tuple[Mixture, list[Task]]]:
    """Group the tasks that one loading of a model serves: every n-th, since neighbours tend to be equally large."""
    tasks = _tasks(run)
    count = -(-len(tasks) // GROUP)
    return [(mixture, tasks[i::count]) for mixture in run.trained for i in range(count)]


def _evaluate(run: Run, mixture: Mixture, tasks: Sequence[Task]) -> list[RecaptionError]:
    """Make the results that are missing, and return what failed."""
    assert run.spec.evaluate is not None
    root = open_storage(run.spec.evaluate.root)
    student: Student | None = None
    failures: list[RecaptionError] = []
    for task in tasks:
        try:
            path = _path(run, mixture, task)
            reason = _gap(run, task, root)
            if reason:
                log.warning("evaluate %s on %s: %s", mixture.name, task.name, reason)
            elif run.storage.size(path) is None:
                student = student or _load(run, mixture)
                with local_copy(task, root) as data:
                    result = _timed(student, task, data)
                _refuse_changed(run, task, root)
                run.storage.create(path, json.dumps(result, indent=1).encode())
                log.info("evaluate %s on %s: %s %.4f", mixture.name, task.name, result["metric"], result["value"])
        except Exception as error:  # whatever a data set or its reader comes up with: the others go on
            failures.append(_explained(error, mixture, task))
            log.error("%s", failures[-1])
            if student is None and not isinstance(error, TemporaryError):
                break  # the model can't be loaded
    return failures


def _path(run: Run, mixture: Mixture, task: Task) -> str:
    content = run.fingerprints.get(print_key(task)) or content_hash(task.metric)
    return f"{run.evaluation_folder(mixture)}/tasks/{task.folder}-{content}.json"


def _gap(run: Run, task: Task, root: Storage) -> str | None:
    """Say why a task is not evaluated; None where it is."""
    if run.fingerprints.get(print_key(task)) == absent(task) and not gap(task, root):
        return f"{root.uri}/{task.folder} was not there when this run was planned; run the recipe again to evaluate it"
    return gap(task, root)


def _refuse_changed(run: Run, task: Task, root: Storage) -> None:
    """Raise PermanentError where the data set is not the one that the result would be named by."""
    planned = run.fingerprints.get(print_key(task))
    if planned and planned != fingerprint(task, root):
        raise PermanentError(f"{root.uri}/{task.folder} was changed after this run was planned; run the recipe again")


def _explained(error: Exception, mixture: Mixture, task: Task) -> RecaptionError:
    """Say an error in one line. Memory and I/O may be there next time; anything else would happen again."""
    passing = isinstance(error, (TemporaryError, MemoryError)) or type(error).__name__ in PASSING or from_system(error)
    kind = TemporaryError if passing else PermanentError
    text = " ".join(str(error).split())[:500]
    what = text if isinstance(error, RecaptionError) else f"{type(error).__name__}: {text}"
    return kind(f"evaluate {mixture.name} on {task.name}: {what}")


def _raise(failures: Sequence[RecaptionError]) -> None:
    """Raise one error for all, worth a retry where one of them is."""
    if failures:
        kind = next((type(f) for f in failures if isinstance(f, TemporaryError)), PermanentError)
        more = f" (and {len(failures) - 1} more, above)" if len(failures) > 1 else ""
        first = next(f for f in failures if isinstance(f, kind))
        raise kind(f"{first}{more}; the other results are kept")


def _merge(run: Run, mixture: Mixture) -> None:
    assert run.spec.evaluate is not None
    root = open_storage(run.spec.evaluate.root)
    found, gaps = [], []
    for task in _tasks(run):
        path = _path(run, mixture, task)
        if run.storage.size(path) is not None:
            result = json.loads(run.storage.read(path))
            found.append({**result, "folder": task.folder, "column": task.column})
        else:
            gaps.append({"task": task.name, "reason": _gap(run, task, root)})
    results = {
        "mixture": mixture.name,
        "tasks": found,
        "gaps": gaps,
        "columns": {r["column"]: r["value"] for r in found if r["column"]},
        "means": mean_by_group([(r["kind"], r["value"]) for r in found]),
        "average": mean_of([r["value"] for r in found]),  # DataComp's
    }
    run.storage.create(run.results_path(mixture), json.dumps(results, indent=1).encode())


def _load(run: Run, mixture: Mixture) -> Student:
    from components.stages.evaluate.student import Student

    folder = run.model_folder(mixture)
    model: dict[str, Any] = json.loads(run.storage.read(f"{folder}/model.json"))
    with tempfile.TemporaryDirectory(prefix="evaluate-") as scratch:
        name = model["model"]
        if model["architecture"]:
            config = below(Path(scratch), f"{name}.json")
            config.write_text(json.dumps(model["architecture"]))
            name = str(config)
        checkpoint = Path(scratch) / "checkpoint.pt"
        with run.storage.open(model["checkpoint"]) as source, open(checkpoint, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)  # with its optimizer, a ViT-L-14 is 5 GB
        return Student(name, str(checkpoint))


def _timed(student: Student, task: Task, data: Path) -> dict[str, Any]:
    began = time.monotonic()
    found = student.predict(data)
    metric, metrics = find_metric(task.metric, found.kind), measure_all(found, task.metric)
    if metric is None or metric.name not in metrics:
        needs = "a .npy of each image whose first number is its group" if metric and metric.of_groups else "other data"
        raise PermanentError(f"metric {task.metric} needs {needs}; there is {', '.join(metrics)}")
    return {
        "name": task.name,
        "kind": metric.group,
        "metric": metric.name,
        "said": metric.said,
        "value": metrics[metric.name],
        "metrics": metrics,
        "samples": found.images,
        "seconds": round(time.monotonic() - began, 3),
    }
