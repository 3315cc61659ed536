"""Who tries again after a failure, how often and after how long: a table made of the constants themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from components.stages.train.nodes import FIRST, LONGEST
from components.storage.retry import DEADLINE
from pipelines.execution import local
from pipelines.kubeflow import step_retry
from pipelines.kubeflow.graph import EVICTIONS
from pipelines.kubernetes.jobs import FAILED_SHARE, RETRIES
from pipelines.operator.recaption.endings import PAUSES, STEADY
from pipelines.pages.reference import table

RUNTIME = Path(__file__).parents[2] / "manifests" / "training" / "runtime.yaml"


def retries() -> str:
    """Return the table, from the innermost loop to the outermost."""
    runtime = yaml.safe_load(RUNTIME.read_text(encoding="utf-8"))
    restarts = runtime["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"]
    here = [local.PAUSE * 2**i for i in range(local.ATTEMPTS - 1)]
    hours = STEADY.total_seconds() / 3600
    rows = [
        ("one request to a storage", "bad luck", f"until {DEADLINE:.0f} s have passed", "up to 20 s, at random"),
        (
            "one index of a Job (a task of a stage)",
            "any exit code but 42",
            f"{RETRIES} times; a Job is given up when more than {FAILED_SHARE:.0%} of its indexes (rounded up) have "
            "failed",
            "Kubernetes' own back-off",
        ),
        ("one index of a Job", "its pod was evicted or preempted", "without limit", "none"),
        (
            "a TrainJob",
            "any exit code but 42",
            f"{restarts} times, all nodes together",
            f"{FIRST:.0f} s, doubled up to {LONGEST:.0f} s: the node that failed waits before it leaves",
        ),
        ("a TrainJob", "a pod was evicted or preempted", "without limit", "none"),
        (
            "a step of the KFP run",
            "exit code 75 inside it",
            f"{len(step_retry.PAUSES)} times, by the step itself",
            _seconds(step_retry.PAUSES),
        ),
        ("a step of the KFP run", "its pod was evicted", f"{EVICTIONS} times, by Argo", "30 s"),
        (
            "the KFP run of a Recaption",
            "a step gave up after bad luck",
            f"{len(PAUSES)} times, by the operator; the count begins anew after an attempt of {hours:.0f} hours",
            _seconds(PAUSES),
        ),
        ("`recaption run` on this machine", "exit code 75 inside it", f"{local.ATTEMPTS - 1} times", _seconds(here)),
    ]
    return table(("what is tried again", "after", "how often", "pauses"), rows)


def _seconds(pauses: Sequence[float]) -> str:
    """Return pauses in one unit: `10, 30, 60 s` or `1, 2, 4 min`."""
    minutes = all(pause % 60 == 0 for pause in pauses)
    return ", ".join(f"{pause / 60 if minutes else pause:.0f}" for pause in pauses) + (" min" if minutes else " s")
