"""Runs a recipe on this machine: the same stages as in a cluster, one after the other, what is done skipped."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

from components.base.cores import cores
from components.base.errors import PermanentError, TemporaryError
from components.engine.registry import column_stage, step
from components.engine.stage import Step
from components.engine.worker import run_task
from components.pool.run import Node, Run
from components.pool.shards import tasks_of
from components.selection.demand import load_demand, write_demand
from pipelines.execution.empty import commit_empty_tasks
from pipelines.execution.progress import RELAY, Progress
from pipelines.execution.run_status import keep_prediction, timed, unfinished
from pipelines.planning.graph_nodes import groups, ingest_of

log = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE = 2.0  # seconds before the second attempt, doubled for the third


def steps_of(run: Run) -> list[str]:
    """List the steps of a recipe, in order."""
    trained = ["train"] if run.spec.train else []
    evaluated = ["evaluate"] if run.spec.evaluate else []
    return ["mix", "analyze", "reshard", *trained, *evaluated, "report"]


def run_all(run: Run) -> None:
    """Run everything a run needs, from whatever is done already.

    Raises:
        RecaptionError: as the stages do; a TemporaryError only after three attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            keep_prediction(run, here=True)
            _walk(run)
            return
        except TemporaryError as error:
            if attempt == ATTEMPTS:
                raise
            pause = PAUSE * 2 ** (attempt - 1)
            log.warning("attempt %d of %d: %s; again in %.0f s", attempt, ATTEMPTS, error, pause)
            time.sleep(pause)


def run_group(run: Run, name: str) -> None:
    """Run a group of the coarse graph, or one column or step of it."""
    for key in groups(run).get(name, [name]):
        _run_key(run, key)


def _walk(run: Run) -> None:
    for key in (*ingest_of(run), *run.nodes, *steps_of(run)):
        _run_key(run, key)


def _run_key(run: Run, key: str) -> None:
    if key in run.nodes:
        timed(run, key, lambda: run_column(run, run.nodes[key]))
    else:
        timed(run, key, lambda: run_step(run, key))


def run_step(run: Run, name: str, task: int | None = None) -> None:
    """Run one step over all mixtures, or one task of a divisible step (as a pod does)."""
    found = step(name)
    if task is None:
        log.info("%s", name)
        if found.spread and _spread(run, name, found):
            found.run(run)
            return
        with _counted(run, name, found, None):
            found.run(run)
        return
    tasks = found.count_tasks(run)
    if found.divisible and not 0 <= task < tasks:
        raise PermanentError(f"task {task}: step {name} of run {run.name} has tasks 0 to {tasks - 1}")
    log.info("%s, task %d of %d", name, task, tasks)
    with _counted(run, name, found, task):
        found.run_task(run, task, tasks)


@contextmanager
def _counted(run: Run, key: str, found: Step, task: int | None) -> Iterator[None]:
    """Show the progress of a step that counts something."""
    total = found.count_units(run, task)
    if not total:
        yield
        return
    with Progress(key, total, found.unit, found.counts) as progress:
        found.progress = progress.add
        yield


def _spread(run: Run, key: str, found: Step) -> bool:
    """Run the tasks in a process per core, if there are several of both; return whether it was done."""
    todo = found.unfinished(run, False)
    slots = [str(core) for core in range(min(cores(), len(todo)))]
    if len(slots) < 2:
        return False
    total = sum(found.count_units(run, task) for task in todo)
    with Progress(key, total, found.unit, found.counts) as progress:
        _in_processes(run, key, todo, slots, progress)
    return True


def run_column(run: Run, node: Node, task: int | None = None) -> None:
    """Compute one column: one task (as a pod does), or all of them on this machine's GPUs or cores."""
    if node.demand:
        write_demand(run, node.demand)
    tasks = tasks_of(run.pool.shards, run.tasks)
    if task is not None and not 0 <= task < run.tasks:
        raise PermanentError(f"task {task}: run {run.name} has tasks 0 to {run.tasks - 1}")
    slots = _gpus() if column_stage(node.spec.stage).needs.gpu else [str(core) for core in range(cores())]
    todo = commit_empty_tasks(run, node, unfinished(run, node)) if task is None else [task]
    if not todo:
        return
    with Progress(node.key, sum(len(tasks[i]) for i in todo)) as progress:
        if task is None and len(todo) > 1 and len(slots) > 1:
            _in_processes(run, node.key, todo, slots[: len(todo)], progress)
            return
        for i in todo:
            _in_this_process(run, node, i, progress)


def _in_this_process(run: Run, node: Node, task: int, progress: Progress) -> None:
    compute, shards = run.spec.compute, tasks_of(run.pool.shards, run.tasks)[task]
    run_task(
        column_stage(node.spec.stage)(node.spec),
        run.pool,
        shards,
        run.open_columns(shards),
        run.part(node),
        load_demand(run, node.demand, shards) if node.demand else None,
        batch_size=getattr(compute.batch_size, node.spec.stage, None),
        decoders=compute.decoders,
        progress=progress.add,
    )


def _in_processes(run: Run, key: str, tasks: Sequence[int], slots: list[str], progress: Progress) -> None:
    """Run a process per slot, a GPU (or core), each working on one task at a time as a pod would."""
    free: SimpleQueue[str] = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def one(task: int) -> None:
        slot = free.get()
        command = [sys.executable, "-m", "pipelines.cli", "stage", key, f"{run.storage.uri}/{run.folder}"]
        environment = {**os.environ, RELAY: "1", "CUDA_VISIBLE_DEVICES": slot, "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen([*command, "--task", str(task)], env=environment, stderr=subprocess.PIPE, text=True)
        children.append(child)
        last = "no message"
        assert child.stderr is not None
        with child.stderr:
            for line in child.stderr:
                if not progress.take(line) and line.strip():
                    last = line.strip()
                    if " WARNING " in last:
                        log.warning("%s task %d: %s", key, task, last.partition(" WARNING ")[2])
        child.wait()
        free.put(slot)
        if child.returncode:
            kind = PermanentError if child.returncode == PermanentError.exit_code else TemporaryError
            raise kind(f"{key} task {task}: exit {child.returncode}: {last.removeprefix('error: ')}")

    children: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(len(slots)) as pool:
        futures = [pool.submit(one, task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:  # one failed, or this process was told to stop: end the others, they resume
            for future in futures:
                future.cancel()
            for child in children:
                child.terminate()
            raise


def _gpus() -> list[str]:
    """List the GPUs of CUDA_VISIBLE_DEVICES; unset, all GPUs, as the driver lists them: nothing here needs torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()] or [""]
    if not shutil.which("nvidia-smi"):
        return ["0"]
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(gpu) for gpu in range(max(1, listing.stdout.count("GPU ")))]
