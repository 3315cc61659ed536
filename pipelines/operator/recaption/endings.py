"""Classify how a KFP run ended without a report: its stage, its reason, and whether to restart it.

The evidence is what the run's steps have recorded in status.json, because KFP keeps no exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from components.base.errors import BAD_LUCK, MISTAKE
from pipelines.kubeflow.client import KfpRun
from pipelines.operator.runtime.conditions import Object, parse_time

PAUSES = (60.0, 120.0, 240.0, 480.0, 960.0)
"""Seconds before each new attempt after bad luck. A step has tried for some 20 minutes by itself before it gives up."""
STEADY = timedelta(hours=6)
"""An attempt that ran so long before its bad luck starts the count of restarts anew."""

REASONS = {MISTAKE: "Mistake", BAD_LUCK: "BadLuck", "bug": "Bug"}
KILLED = "its pod was evicted, deleted or killed before it could say why"


@dataclass(frozen=True)
class Ending:
    """The end of a KFP run without a report."""

    kind: str
    """As `failure_of` records it; empty where no step has recorded anything."""
    text: str
    """One line: the stage and the reason."""

    @property
    def reason(self) -> str:
        """Return the reason of the condition."""
        return REASONS.get(self.kind, "KFPRunFailed")


def ending_of(kfp: KfpRun, progress: Mapping[str, Any], failure: Mapping[str, str]) -> Ending:
    """Classify the end of a KFP run that has no report.

    Args:
        progress: the run's status.json; a stage that never left `running` was killed.
        failure: why its plan step failed; empty where it didn't.
    """
    where = f" (KFP run {kfp.id}{f': {kfp.error}' if kfp.error else ''})"
    if failure:
        return Ending(str(failure.get("kind", "")), f"plan: {failure.get('message', '')}{where}")
    stages: Mapping[str, Mapping[str, Any]] = progress.get("stages", {})
    for name, stage in reversed(list(stages.items())):
        found, state = stage.get("error"), stage.get("state")
        error = found if isinstance(found, Mapping) else {}  # the file is a tenant's, who may write anything
        if state in ("running", "stopped"):
            return Ending(BAD_LUCK, f"stage {name}: {KILLED}{where}")
        if state == "failed":
            message = str(error.get("message", "its log in KFP says why")).removeprefix(f"{name}: ")
            return Ending(str(error.get("kind", "")), f"stage {name}: {message}{where}")
    return Ending("", f"no step recorded why the run ended; its log in KFP may say it{where}")


def restart_after(status: Object, now: datetime) -> tuple[int, timedelta] | None:
    """Return the restart's number, counted from 1, and how long to wait before it; None when there were enough."""
    began = status.get("startTime")
    steady = began is not None and now - parse_time(began) >= STEADY
    number = 0 if steady else int(status.get("restarts", 0))
    return (number + 1, timedelta(seconds=PAUSES[number])) if number < len(PAUSES) else None
