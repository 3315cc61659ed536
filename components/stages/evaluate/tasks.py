"""Zero-shot tasks: folders in clip-benchmark's webdataset format, and the metric that counts for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import yaml

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.base.threads import map_ahead
from components.recipe.training import Evaluate
from components.stages.evaluate.metrics import find_metric
from components.storage.addressed import look_up
from components.storage.fetching import CACHE, copy_to, fetched
from components.storage.interface import Storage, below
from components.storage.local import LocalStorage
from components.storage.opening import open_storage

DATACOMP = Path(__file__).with_name("datacomp_tasks.yaml")
SHARDS = "test/nshards.txt"
TEXTS = ("dataset_type.txt", "classnames.txt", "zeroshot_classification_templates.txt", SHARDS)
"""Files of a data set that decide a result, beside its tars."""
LONGEST = 1 << 20  # bytes of such a file that are looked at; ImageNet's class names are 15 kB
WHERE_FROM = "DataComp's download_evalsets.py fetches most data sets; docs/evaluation.md says more"


@dataclass(frozen=True)
class Task:
    """One data set."""

    name: str
    folder: str
    """Below the root."""
    metric: str | None = None
    """Name of the metric that counts; None: the first of the data set's kind in METRICS."""
    column: str | None = None
    """Title of the column that the task has for itself in the report's table; None for most."""


def tasks_of(evaluate: Evaluate) -> list[Task]:
    """List the tasks that a recipe names, each once.

    A data set of DataComp's has DataComp's metric, whether the recipe names its folder or all of DataComp's.
    """
    listed = {entry["folder"]: Task(**entry) for entry in yaml.safe_load(DATACOMP.read_text())}
    if evaluate.tasks == "datacomp":
        return [*listed.values()]
    folders = dict.fromkeys(str(PurePosixPath(name)) for name in evaluate.tasks)
    return [_task_in(folder, listed.get(PurePosixPath(folder).name)) for folder in folders]


def _task_in(folder: str, known: Task | None) -> Task:
    if known is None:
        return Task(folder, folder)
    return known if known.folder == folder else Task(folder, folder, known.metric)


def fingerprint_tasks(evaluate: Evaluate) -> dict[str, str]:
    """Return a hash of what decides each task's result, its metric and its data set, by `task:<folder>`.

    A data set stands for the content of its text files and the names and sizes of its tars: no picture is read, and
    other files may change. One that is missing has a hash, too.

    Raises:
        PermanentError: there is nothing below the root.
    """
    root, tasks = open_storage(evaluate.root), tasks_of(evaluate)
    found = dict(zip(tasks, map_ahead(lambda task: fingerprint(task, root), tasks), strict=True))
    if all(value == absent(task) for task, value in found.items()) and not any(root.list()):
        raise PermanentError(nothing_at(evaluate))
    return {print_key(task): value for task, value in found.items()}


def nothing_at(evaluate: Evaluate) -> str:
    """Say that there is nothing at the root of a recipe's data sets, and where they come from."""
    return f"spec.evaluate.root: {evaluate.root} does not exist or is empty; {WHERE_FROM}"


def print_key(task: Task) -> str:
    """Return the key of a task's hash among a run's fingerprints."""
    return f"task:{task.folder}"


def fingerprint(task: Task, root: Storage) -> str:
    """Hash a task's metric and its data set, as `fingerprint_tasks` has it."""
    return content_hash([task.metric, _files(task, root)])


def absent(task: Task) -> str:
    """Return the hash of a task whose data set is not there."""
    return content_hash([task.metric, []])


def _files(task: Task, root: Storage) -> list[tuple[str, object]]:
    """List the files of a data set, each with its content or its size."""
    sizes = {e.path.removeprefix(f"{task.folder}/"): e.size for e in root.list(f"{task.folder}/")}
    counted = [n for n in sizes if n in TEXTS or (n.startswith("test/") and n.endswith(".tar"))]
    texts = [(name, root.read(f"{task.folder}/{name}", 0, LONGEST).hex()) for name in counted if name in TEXTS]
    return [*texts, *((name, sizes[name]) for name in counted)]


def gap(task: Task, root: Storage) -> str | None:
    """Say why a task can't be evaluated; None where it can."""
    if task.metric and find_metric(task.metric) is None:
        return f"its metric {task.metric} is not implemented"
    if root.size(f"{task.folder}/{SHARDS}") is None:
        return f"no data set at {root.uri}/{task.folder} ({SHARDS} is missing); {WHERE_FROM}"
    return None


@contextmanager
def local_copy(task: Task, root: Storage) -> Iterator[Path]:
    """Give the task's folder on this machine: as it is, or fetched for as long as it is needed.

    Where the operator or the user gives the cache a place, it stays there: the sets are larger than most models.

    Raises:
        PermanentError: the name of an object is no path below a folder; nothing is written for it.
    """
    if isinstance(root, LocalStorage):
        yield below(root.root, task.folder)
        return
    address = f"{root.uri}/{task.folder}"
    if os.environ.get(CACHE):
        yield Path(fetched(address))
        return
    with TemporaryDirectory(prefix="evaluate-") as folder:
        yield copy_to(look_up(address), Path(folder))
