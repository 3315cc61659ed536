"""The part of a Job's pod that stops it when no launcher follows the Job any more."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.pool.run import Run
from pipelines.execution import run_status
from pipelines.kubernetes.jobs import parse_ranges

log = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two looks: one small read each
STALE = 1800.0  # seconds: an evicted launcher is back within minutes; clocks differ by less


def own_task(tasks: str) -> int:
    """Return the task of this pod's index among these tasks, as `jobs.ranges` wrote them.

    Raises:
        PermanentError: this is no pod of an Indexed Job, or of another one.
    """
    index, all_tasks = os.environ.get("JOB_COMPLETION_INDEX", ""), parse_ranges(tasks)
    if not index.isdecimal():
        raise PermanentError("--tasks is for pods of an Indexed Job, and JOB_COMPLETION_INDEX is not set; use --task")
    if int(index) >= len(all_tasks):
        raise PermanentError(f"--tasks {tasks}: has {len(all_tasks)} tasks, and JOB_COMPLETION_INDEX is {index}")
    return all_tasks[int(index)]


@contextmanager
def followed(run: Run, key: str, every: float = EVERY, stale: float = STALE) -> Iterator[None]:
    """Run while the stage's launcher renews its heartbeat; when that is stale, send this process SIGTERM.

    Raises:
        TemporaryError: the heartbeat is stale already. The index is tried again, so a launcher that comes back in time
            finds it; if none does the Job ends by its bounded retries, having computed nothing.
    """
    if (age := _age(run, key)) > stale:
        raise TemporaryError(f"{key}: its launcher is silent for {age:.0f} s; launch the stage again to go on")
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(every):
            try:
                age = _age(run, key)
            except RecaptionError as error:
                log.warning("status.json: %s", error)
                continue
            if age > stale:
                log.warning("%s: its launcher is silent for %.0f s; stopping", key, age)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=look, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _age(run: Run, key: str) -> float:
    """Return the seconds since the launcher's last heartbeat; 0 before its first."""
    beat = run_status.entry(run, key).get("heartbeat")
    return 0.0 if beat is None else time.time() - float(beat)
