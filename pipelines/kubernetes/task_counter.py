"""Counts what a launched stage has done so far: its completed tasks, and the samples in their shards' records."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from components.base.errors import PermanentError
from components.pool.run import Node, Run
from components.pool.shards import Shard, tasks_of
from pipelines.execution.progress import Progress

READERS = 16  # records that are read at a time: small objects, some 20 ms each


class TaskCounter:
    """Counts tasks once each, with the shards and samples of a column's."""

    def __init__(self, run: Run, key: str, todo: Sequence[int], total: int, done: int) -> None:
        """Start counting.

        Args:
            todo: the tasks that are to be done now.
            total: tasks of the stage.
            done: those of them that are finished already.
        """
        self.node: Node | None = run.nodes.get(key)
        self.part = run.part(self.node) if self.node else ""
        self.todo, self.began = set(todo), time.monotonic()
        self.columns = run.open_columns()
        self.shards: list[Sequence[Shard]] = tasks_of(run.pool.shards, run.tasks) if self.node else []
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
            return
        shards = [shard for task in sorted(new) for shard in self.shards[task]]
        for samples in self.readers.map(self._samples, shards):
            self.progress.add(samples, 1)

    def state(self) -> dict[str, Any]:
        """Return the counts for status.json."""
        done = {"shards" if self.node else "tasks": self.before + self.progress.finished, "total": self.total}
        if self.node is None:
            return done
        rate = self.progress.count / max(time.monotonic() - self.began, 1e-3)
        return done | {"samples": self.progress.count, "samples_per_second": round(rate, 1)}

    def _samples(self, shard: Shard) -> int:
        assert self.node is not None
        try:
            return self.columns.record(self.node.spec, shard, self.part).rows
        except PermanentError:  # withdrawn since: the check of the records after the Jobs will tell
            return 0
