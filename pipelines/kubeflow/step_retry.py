"""A step of the KFP run: it retries its own bad luck, holds the run's claim, and puts away what it left if it fails.

KFP retries no step that fails (its Argo settings retry errors of a pod only, such as an eviction) and forgets exit
codes, so a step does so itself. A run that KFP is told to retry doesn't plan anew and has no exit step any more: each
step therefore takes the claim again, and one that fails for good does what the exit step would do.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.pool.run import Run, load_run

log = logging.getLogger(__name__)

T = TypeVar("T")
PAUSES = (10.0, 30.0, 60.0, 120.0, 240.0)
"""Seconds before each further attempt. A request to a storage that is away has itself tried for two minutes."""


def attempted(what: str, work: Callable[[], T]) -> T:
    """Call `work` until it succeeds, makes a mistake known, or has had bad luck once more than there are pauses."""
    for number, pause in enumerate(PAUSES, start=2):
        try:
            return work()
        except TemporaryError as error:
            log.warning("%s: %s; attempt %d of %d in %.0f s", what, error, number, len(PAUSES) + 1, pause)
            time.sleep(pause)
    return work()


def execute(what: str, uri: str, claimant: str | None, work: Callable[[Run], None]) -> None:
    """Do a step's work on the run at this address.

    Args:
        claimant: whose the run must be, a KFP run's id; None outside of KFP, where nobody claims, retries or cleans up.

    Raises:
        PermanentError: also where another KFP run executes the run by now.
        TemporaryError: bad luck in every attempt.
    """
    if claimant is None:
        work(load_run(uri))
        return
    run = attempted(what, lambda: _held(uri, claimant))
    try:
        attempted(what, lambda: work(load_run(uri)))
    except Exception:  # not a signal: an evicted step is started again and goes on with its Jobs
        put_away(run, claimant)
        raise


def _held(uri: str, claimant: str) -> Run:
    """Return the run, claimed: it still is, unless KFP was told to retry a run that had failed."""
    run = load_run(uri)
    holder = run.claim(claimant)
    if holder != claimant:
        raise PermanentError(
            f"run {run.name} is executed by KFP run {holder} by now; wait for its end, or terminate it, and start anew"
        )
    return run


def put_away(run: Run, claimant: str) -> bool:
    """End what the run has in the cluster, then give its claim up unless it is finished.

    Returns:
        False where something may be left: the claim stays then, so that whoever comes next ends it first.
    """
    command = [sys.executable, "-m", "pipelines.cli", "cleanup", f"{run.storage.uri}/{run.folder}"]
    try:
        if code := subprocess.run(command, check=False).returncode:
            log.error("cleanup of run %s: exit %d, see above; Jobs of it may be left", run.name, code)
            return False
        if run.is_finished:
            log.info("run %s is finished, by %s", run.name, claimant)
        else:
            run.storage.delete(f"{run.folder}/claim.json")
            log.info("run %s did not finish; its claim is released, another KFP run may take over", run.name)
    except RecaptionError as error:
        log.error("cleanup of run %s: %s", run.name, error)
        return False
    return True
