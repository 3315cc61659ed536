"""Finishes the tasks of a column in which nothing is to be computed, without a worker and its model.

A further mixture adds a part to a captioner's column, and often asks for no caption that isn't there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from components.engine.registry import column_stage
from components.engine.worker import commit_empty
from components.pool.columns import ALL
from components.pool.run import Node, Run
from components.pool.shards import tasks_of
from components.selection.demand import load_demand

log = logging.getLogger(__name__)

READERS = 16  # tasks that are looked at at a time: reading small files of a bucket is mostly waiting


def commit_empty_tasks(run: Run, node: Node, todo: Sequence[int]) -> list[int]:
    """Commit this run's parts of the tasks in which nothing is to be computed; return the other tasks.

    Of a task with something to compute, only the shards before the first with something are read.

    Raises:
        TemporaryError: an input was withdrawn; the next run makes it anew.
    """
    columns, tasks, part = run.open_columns(), tasks_of(run.pool.shards, run.tasks), run.part(node)
    started = any(columns.parts(node.spec, shard) for task in todo for shard in tasks[task])
    if not todo or (part == ALL and not started):  # then every sample lacks a value
        return list(todo)
    demand = load_demand(run, node.demand) if node.demand else None
    stage = column_stage(node.spec.stage)(node.spec)

    def finished(task: int) -> bool:
        lacking = [shard for shard in tasks[task] if part not in columns.parts(node.spec, shard)]
        return not commit_empty(stage, lacking, columns, part, demand)

    first = finished(todo[0])  # which lists the columns, before there are threads
    with ThreadPoolExecutor(READERS) as pool:
        done = [first, *pool.map(finished, todo[1:])]
    left = [task for task, empty in zip(todo, done, strict=True) if not empty]
    if len(left) < len(todo):
        log.info("%s: nothing to compute in %d of %d tasks", node.key, len(todo) - len(left), len(todo))
    return left
