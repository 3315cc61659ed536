"""Counts what a launched stage has done so far: its completed tasks, and samples and work by their shards' records."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from components.base.errors import PermanentError
from components.pool.columns import Record
from components.pool.run import Node, Run
from components.pool.shards import Shard, tasks_of
from components.recipe.compute import NodePool
from components.recipe.costs import read_work
from components.stages.train.checkpoints import copies
from components.stages.train.scales import scale_of
from pipelines.execution import work as accounts
from pipelines.execution.progress import Progress
from pipelines.planning.workers import TRAIN, no_work

READERS = 16  # records that are read at a time: small objects, some 20 ms each


def checkpoints_of(run: Run) -> dict[str, int]:
    """Count the checkpoints that the trainings of a run have reached, of all that they will have."""
    assert run.spec.train is not None  # nothing is trained otherwise
    each = scale_of(run.spec.train)[0].checkpoints
    folders = [run.model_folder(mixture) for mixture in run.trained]
    ended = [run.storage.size(f"{folder}/model.json") is not None for folder in folders]
    reached = [
        each if done else max(copies(run.storage, f"{folder}/checkpoints"), default=0)
        for folder, done in zip(folders, ended, strict=True)
    ]
    return {"checkpoints": sum(reached), "checkpoints_total": each * len(folders)}


class TaskCounter:
    """Counts tasks once each, with the shards and samples of a column's."""

    def __init__(
        self,
        run: Run,
        key: str,
        todo: Sequence[int],
        pools: Sequence[NodePool],
        before: Mapping[str, Any],
        total: int,
        done: int,
    ) -> None:
        """Start counting.

        Args:
            todo: the tasks that are to be done now.
            pools: where they are done.
            before: the stage's entry of status.json, with what was spent on it so far.
            total: tasks of the stage.
            done: those of them that are finished already.
        """
        self.run, self.key, self.pools, self.before_run = run, key, pools, before.get("reused", {})
        none = {pool.name: no_work(run, key, pool) for pool in pools}
        self.work = none | read_work(before.get("work"))
        self.failures: Counter[str] = Counter()
        self.node: Node | None = run.nodes.get(key)
        self.part = run.part(self.node) if self.node else ""
        self.todo, self.began = set(todo), time.monotonic()
        self.columns = run.open_columns()
        self.shards: list[Sequence[Shard]] = tasks_of(run.pool.shards, run.tasks) if self.node else []
        self.pool_of_task = accounts.pools_of_tasks(run, pools) if self.node else []
        parts = sum(len(self.shards[task]) for task in todo) if self.node else len(todo)
        self.total = len(run.pool.shards) if self.node else total
        self.before = self.total - parts if self.node else done
        self.progress = Progress(key, parts, "shards" if self.node else "tasks")
        self.readers = ThreadPoolExecutor(READERS)

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.readers.shutdown(cancel_futures=True)
        self.progress.__exit__(kind, error, at)

    def take(self, completed: Iterable[int]) -> None:
        """Count these completed tasks; tasks that were counted before don't count again."""
        new = self.todo & set(completed)
        self.todo -= new
        if self.node is None:
            for _ in new:
                self.progress.add(1, 1)
            if new:
                self.work = accounts.without(accounts.work_of(self.run, self.key, self.pools), self.before_run)
            return
        shards = [(shard, task) for task in sorted(new) for shard in self.shards[task]]
        records = self.readers.map(self._record, (shard for shard, _ in shards))
        for record, (_, task) in zip(records, shards, strict=True):
            self.progress.add(record.rows if record else 0, 1)
            if record:
                pool = self.pool_of_task[task]
                self.work[pool] = self.work[pool].plus(record.seconds, record.rows)
                self.failures.update(record.failures)

    def state(self) -> dict[str, Any]:
        """Return the counts for status.json."""
        counted = "shards" if self.node else "tasks"
        found: dict[str, Any] = {counted: self.before + self.progress.finished, "total": self.total}
        found["work"] = accounts.to_json(self.work)
        if self.node is None:
            return found | (checkpoints_of(self.run) if self.key == TRAIN else {})
        rate = self.progress.count / max(time.monotonic() - self.began, 1e-3)
        if self.failures:
            found["failures"] = dict(sorted(self.failures.items()))
        return found | {"samples": self.progress.count, "samples_per_second": round(rate, 1)}

    def _record(self, shard: Shard) -> Record | None:
        assert self.node is not None
        try:
            return self.columns.record(self.node.spec, shard, self.part)
        except PermanentError:  # withdrawn since: the check of the records after the Jobs will tell
            return None
