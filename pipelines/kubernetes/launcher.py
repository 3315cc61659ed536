"""Launches a stage: its demand first, then its Jobs, followed to their end; what is done is not done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.engine.registry import step
from components.pool.run import Run
from components.recipe.compute import NodePool
from components.recipe.nodes import cut, train_pool
from components.selection.demand import write_demand
from pipelines.execution import run_status
from pipelines.execution.empty import commit_empty_tasks
from pipelines.kubernetes.cluster import Cluster, Object
from pipelines.kubernetes.jobs import LaunchedStage, Target, build_job
from pipelines.kubernetes.pod_logs import PodLogs
from pipelines.kubernetes.task_counter import TaskCounter
from pipelines.kubernetes.training import TrainJobFanOut, train_jobs, untrained
from pipelines.kubernetes.trainjobs import KEY as TRAIN
from pipelines.kubernetes.trainjobs import training_needs
from pipelines.kubernetes.watching import FanOut, JobStates, Pace
from pipelines.planning.graph_nodes import groups, ingest_of
from pipelines.planning.workers import needs_of, pools_of

log = logging.getLogger(__name__)

Counts = dict[str, Any]


def launch(
    run: Run, name: str, cluster: Cluster, target: Target, only: str | None = None, pace: Pace | None = None
) -> dict[str, Counts]:
    """Launch everything of a group, a stage or a node's key, one after the other.

    Args:
        only: the one pool of nodes to use; None uses all of the recipe's.

    Returns:
        Per key what status.json then says.

    Raises:
        PermanentError, TemporaryError: as the workers do, with the reason and last lines of a failed pod in the log.
    """
    found: dict[str, Counts] = {}
    for key in keys_of(run, name):
        again = run_status.entry(run, key).get("state") == "done"
        work = partial(_launch, run, key, cluster, target, only, pace or Pace(), again)
        run_status.timed(run, key, work, pools_of(run, key, only))
        found[key] = run_status.entry(run, key)
    return found


def keys_of(run: Run, name: str) -> list[str]:
    """List the nodes and steps that a name stands for.

    Raises:
        PermanentError: none of this run.
    """
    grouped = groups(run)
    named = [key for key, node in run.nodes.items() if name in (key, node.spec.stage)]
    keys = grouped[name] if name in grouped else named or [key for key in ingest_of(run) if name == key]
    if not keys and name not in grouped:
        there = dict.fromkeys([*grouped, *ingest_of(run), *run.nodes])
        raise PermanentError(f"launch {name}: run {run.name} has {', '.join(there)}")
    for key in keys:
        if key not in run.nodes and key != TRAIN and not step(key).divisible:
            raise PermanentError(f"launch {name}: {key} has no tasks to share; use `recaption stage {key} RUN`")
    return keys


def _launch(run: Run, key: str, cluster: Cluster, target: Target, only: str | None, pace: Pace, again: bool) -> None:
    if key == TRAIN:
        _train(run, cluster, target, only, pace)
        return
    if key not in run.nodes:
        declared = step(key)
        if todo := declared.unfinished(run, again):
            _fan_out(run, key, cluster, target, only, pace, todo, declared.count_tasks(run))
            _check(key, declared.unfinished(run, True))
        declared.run(run)
        return
    node = run.nodes[key]
    if node.demand:
        write_demand(run, node.demand)
    todo = commit_empty_tasks(run, node, run_status.unfinished(run, node))
    if not todo:
        log.info("%s: nothing to compute", key)
        return
    _fan_out(run, key, cluster, target, only, pace, todo, run.tasks)
    _check(key, run_status.unfinished(run, node))


def _check(key: str, left: Sequence[int]) -> None:
    """Fail if tasks are missing; the launcher's image cannot compute them."""
    if left:
        raise TemporaryError(f"{key}: its Jobs are through, but {len(left)} tasks lack a record; run again to go on")


def _fan_out(
    run: Run, key: str, cluster: Cluster, target: Target, only: str | None, pace: Pace, todo: Sequence[int], count: int
) -> None:
    """Run these tasks of the stage's `count` as Jobs."""
    needs = needs_of(run, key)
    if needs.decoders is None and key in run.nodes and run.spec.compute.decoders is not None:
        needs = replace(needs, decoders=max(1, run.spec.compute.decoders))  # none: the worker itself decodes
    launched = LaunchedStage(f"{run.storage.uri}/{run.folder}", key, needs)
    deadline = run.spec.compute.deadline_hours * 3600
    pools = pools_of(run, key, only)
    wanted = set(todo)
    bodies = [
        build_job(launched, pool, target, tasks, deadline)
        for pool, share in zip(pools, cut(count, pools), strict=True)
        if (tasks := [task for task in share if task in wanted])
    ]
    done = count - len(todo)
    _follow(run, key, FanOut(cluster, target, launched, pace, deadline), bodies, todo, pools, count, done)


def _train(run: Run, cluster: Cluster, target: Target, only: str | None, pace: Pace) -> None:
    """Train the mixtures that lack a model, `compute.train.parallelism` at a time; a failure stops no other."""
    assert run.spec.train is not None  # nothing is trained otherwise
    compute, todo = run.spec.compute, untrained(run)
    needs = training_needs(run.spec.train, compute.train, train_pool(compute, only))
    launched = LaunchedStage(f"{run.storage.uri}/{run.folder}", TRAIN, needs)
    build = train_jobs(run, launched.run, launched.needs, target, only)
    failures: list[RecaptionError] = []
    for start in range(0, len(todo), compute.train.parallelism):
        wave = todo[start : start + compute.train.parallelism]
        jobs = TrainJobFanOut(cluster, target, launched, pace, compute.deadline_hours * 3600)
        try:
            pools, done = pools_of(run, TRAIN, only), len(run.trained) - len(untrained(run))
            _follow(run, TRAIN, jobs, [build(n) for n in wave], wave, pools, len(run.trained), done)
        except RecaptionError as error:
            log.error("%s", error)
            failures.append(error)
            if jobs.starved:
                break
    if failures:
        raise next((error for error in failures if isinstance(error, TemporaryError)), failures[0])
    if left := untrained(run):
        raise TemporaryError(f"train: its TrainJobs are through, but {len(left)} mixtures have no model; run again")


def _follow(
    run: Run,
    key: str,
    jobs: FanOut,
    bodies: Sequence[Object],
    todo: Sequence[int],
    pools: Sequence[NodePool],
    total: int,
    done: int,
) -> None:
    """Follow the Jobs of these tasks to their end, and keep status.json up to date.

    Args:
        pools: where the tasks are done.
        total: tasks of the stage, of which `done` are finished already.
    """
    before = run_status.entry(run, key)
    kept: Counts = {name: before[name] for name in ("seconds", "reused") if name in before}
    logs = PodLogs(run, key, jobs.cluster, jobs.container)
    with TaskCounter(run, key, todo, pools, before, total, done) as tally:

        def beat(seen: JobStates) -> None:
            log.info("%s: %s", key, seen.state)
            if seen.count("failed") or (key == TRAIN and seen.jobs):  # a TrainJob doesn't count its pods
                logs.keep()
            state = {"state": "running", "pods": seen.count("ready"), "heartbeat": round(time.time())}
            if retries := max(seen.count("failed"), before.get("retries", 0)):
                kept["retries"] = retries
            run_status.put(run, key, {**kept, **tally.state(), **state, "waits_for": jobs.trouble or None})

        jobs.run(bodies, tally.take, beat)
