"""Zero-shot tasks: folders in clip-benchmark's webdataset format, and the metric that counts for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from components.recipe.training import Evaluate
from components.stages.evaluate.metrics import find_metric
from components.storage.interface import Storage, below
from components.storage.local import LocalStorage

DATACOMP = Path(__file__).with_name("datacomp_tasks.yaml")


@dataclass(frozen=True)
class Task:
    """One data set."""

    name: str
    folder: str
    """Below the root."""
    metric: str | None = None
    """Name of the metric that counts; None: the first of the data set's kind in METRICS."""


def tasks_of(evaluate: Evaluate) -> list[Task]:
    """List the tasks that a recipe names, DataComp's with its metrics."""
    if evaluate.tasks == "datacomp":
        return [Task(**entry) for entry in yaml.safe_load(DATACOMP.read_text())]
    return [Task(name, name) for name in evaluate.tasks]


def gap(task: Task, root: Storage) -> str | None:
    """Say why a task can't be evaluated; None where it can."""
    if task.metric and find_metric(task.metric) is None:
        return f"its metric {task.metric} is not implemented"
    if root.size(f"{task.folder}/test/nshards.txt") is None:
        return f"no data set at {root.uri}/{task.folder} (test/nshards.txt is missing)"
    return None


@contextmanager
def local_copy(task: Task, root: Storage) -> Iterator[Path]:
    """Give the task's folder on this machine: as it is, or fetched for as long as it is needed.

    Raises:
        PermanentError: the name of an object is no path below a folder; nothing is written for it.
    """
    if isinstance(root, LocalStorage):
        yield below(root.root, task.folder)
        return
    with TemporaryDirectory(prefix="evaluate-") as folder:
        for entry in root.list(f"{task.folder}/"):
            if entry.path.endswith("/") and not entry.size:  # a bucket's console makes one for a folder
                continue
            target = below(Path(folder), entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(root.read(entry.path))
        yield below(Path(folder), task.folder)
