"""What the operator has observed about a Recaption's KFP run and storage: the input of `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipelines.kubeflow.client import KfpRun
from pipelines.operator.runtime.tenants import Tenants

STOPPED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Problem:
    """Why a question to KFP or the storage, or an act, failed."""

    reason: str
    message: str


@dataclass(frozen=True)
class Observation:
    """The state of the attempt's KFP runs and of the run that they execute; empty where there was nothing to ask."""

    now: datetime
    tenants: Tenants = field(default_factory=Tenants)
    """What a recipe of each namespace may ask for."""
    runs: tuple[KfpRun, ...] = ()
    """All KFP runs of the attempt's name, oldest first: more than one only if two operators were at work."""
    run: str = ""
    """URI of the run that they planned."""
    holder: str | None = None
    """Who has claimed that run: a KFP run's id; asked only where it matters."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """The run's status.json."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """Of a finished run: datasets, rows of the result table."""
    failure: Mapping[str, str] = field(default_factory=dict)
    """Why the plan step of the KFP run failed, where it did."""
    answered: bool = False
    """Whether both KFP and the storage were asked and have answered."""
    link: str = ""
    """What a link to a KFP run begins with; empty where no UI is known."""
    problem: Problem | None = None

    @property
    def chosen(self) -> KfpRun | None:
        """Return the KFP run that executes the attempt: the claim's holder, else one that is live, else the oldest."""
        holder = [run for run in self.runs if run.id == self.holder]
        return next(iter((*holder, *self.live, *self.runs)), None)

    @property
    def live(self) -> tuple[KfpRun, ...]:
        """Return the KFP runs that have not ended."""
        return tuple(run for run in self.runs if run.state not in STOPPED)

    @property
    def finished(self) -> bool:
        """Return whether the report, which comes last, is written."""
        stages: Mapping[str, Any] = self.progress.get("stages", {})
        return bool(stages.get("report", {}).get("state") == "done")

    @property
    def claimed_by_another(self) -> bool:
        """Return whether a KFP run that is not this attempt's has claimed the run."""
        return self.holder not in (None, *(run.id for run in self.runs))
