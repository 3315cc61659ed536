"""A step of the KFP run: it tries again after bad luck, holds the run's claim, and cleans up after itself if it fails.

KFP retries no step that fails (its Argo settings retry errors of a pod only, such as an eviction) and forgets exit
codes, so a step retries by itself. A run that is retried in KFP repeats neither its plan step nor its exit step:
therefore each step takes the claim again, and a step that fails for good does what the exit step would do.
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
"""Seconds before each further attempt. One request to a storage that is down already tries for two minutes."""


def attempted(what: str, work: Callable[[], T]) -> T:
    """Call `work` until it succeeds or raises anything but TemporaryError; after the last pause, raise that, too."""
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
        claimant: id of the KFP run that must hold the claim; None outside of KFP: no claim, retry or cleanup.

    Raises:
        PermanentError: also if another KFP run executes the run by now.
        TemporaryError: bad luck in every attempt.
    """
    if claimant is None:
        work(load_run(uri))
        return
    run = attempted(what, lambda: _held(uri, claimant))
    try:
        attempted(what, lambda: work(load_run(uri)))
    except Exception:  # not a signal: an evicted step is started again and goes on with its Jobs
        clean_up(run, claimant)
        raise


def _held(uri: str, claimant: str) -> Run:
    """Load the run and claim it again: the claim was released if the run failed and is being retried in KFP."""
    run = load_run(uri)
    holder = run.claim(claimant)
    if holder != claimant:
        raise PermanentError(
            f"run {run.name} is executed by KFP run {holder} by now; wait for its end, or terminate it, and start anew"
        )
    return run


def clean_up(run: Run, claimant: str) -> bool:
    """Delete the run's Jobs in the cluster, then release its claim unless the run is finished.

    Returns:
        False if Jobs may be left: the claim stays then, so that the next attempt deletes them first.
    """
    command = [sys.executable, "-m", "pipelines.cli", "cleanup", f"{run.storage.uri}/{run.folder}"]
    try:
        if code := subprocess.run(command, check=False).returncode:
            log.error("cleanup of run %s: exit %d, see above; some of its Jobs may be left", run.name, code)
            return False
        if run.is_finished:
            log.info("run %s is finished; it stays claimed by %s", run.name, claimant)
        else:
            run.storage.delete(f"{run.folder}/claim.json")
            log.info("run %s did not finish; claim released, another KFP run may take over", run.name)
    except RecaptionError as error:
        log.error("cleanup of run %s: %s", run.name, error)
        return False
    return True
