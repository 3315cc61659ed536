"""All checks, and how their findings are shown."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from pipelines.doctor import installed, ours, outside, pods, rights, secrets
from pipelines.doctor.finding import Check, Context, Finding, State, broken, examine
from pipelines.kubernetes.cluster import Cluster, connect
from pipelines.operator.runtime.settings import Settings

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Endpoint

CHECKS: dict[str, Check] = {
    "Kubernetes": installed.kubernetes,
    "custom resources": ours.custom_resources,
    "operator": ours.operator,
    "its Lease": ours.lease,
    "its settings": ours.settings,
    "its Secret": secrets.operators_secret,
    "its rights": rights.operators_rights,
    "launcher's rights": rights.launchers_rights,
    "service account": rights.accounts,
    "Secret": secrets.runs_secret,
    "runs' pods": pods.pods,
    "your rights": rights.your_rights,
    "Argo Workflows": installed.workflows,
    "Kubeflow Trainer": installed.trainer,
    "training runtime": installed.training_runtime,
    "JobSet": installed.jobset,
    "Kueue": installed.kueue,
    "GPU nodes": installed.gpu_nodes,
    "KFP": outside.kfp,
    "storage": outside.storage,
}
OUTAGE = 1.0  # seconds that the API server may be away
MARKS = {State.GOOD: ("✓", "green"), State.BROKEN: ("✗", "red"), State.AWAY: ("✗", "yellow"), State.OPEN: ("–", "dim")}
DEFAULTS = Settings(endpoint="", ui="")
"""Settings that are assumed where the operator's can't be read."""

Diagnosis = dict[str, Finding]


def diagnose(namespace: str | None, operator_namespace: str, kfp: Endpoint | None, storage: str | None) -> Diagnosis:
    """Run all checks; return what each found, by its name.

    Args:
        namespace: where the runs' pods are; None is what the operator is told.
    """
    logging.getLogger("urllib3.connectionpool").setLevel(
        logging.ERROR
    )  # silences its retries: their outcome is a finding
    context = Context(None, DEFAULTS, namespace or DEFAULTS.kfp_namespace, operator_namespace, kfp, storage)
    try:
        cluster = connect()
        cluster.outage = OUTAGE
        reached = examine([installed.api_server], replace(context, cluster=cluster))[0]
    except PermanentError as error:
        reached = broken(str(error), "name one: export KUBECONFIG=…")
    if reached.state is State.GOOD:
        told = _settings(cluster, operator_namespace)
        context = replace(context, cluster=cluster, settings=told, namespace=namespace or told.kfp_namespace)
    return {"API server": reached, **dict(zip(CHECKS, examine(list(CHECKS.values()), context), strict=True))}


def exit_code(diagnosis: Diagnosis) -> int:
    """Return 0 where nothing is broken; else 42, or 75 where something is only out of reach."""
    states = {finding.state for finding in diagnosis.values()}
    if State.BROKEN in states:
        return PermanentError.exit_code
    return TemporaryError.exit_code if State.AWAY in states else 0


def table(diagnosis: Diagnosis) -> Table:
    """Make a table with a line for each check, and the remedy where there is something to do."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    for name, finding in diagnosis.items():
        mark, style = MARKS[finding.state]
        remedy = Text(f" → {finding.remedy}" if finding.remedy else "", "" if finding.state is State.OPEN else "bold")
        shown.add_row(Text(mark, style), Text(name), Text.assemble(finding.what, remedy))
    return shown


def _settings(cluster: Cluster, operator_namespace: str) -> Settings:
    """Read the operator's settings; what is wrong with them, a check of its own tells."""
    try:
        return Settings.from_environment(ours.environment(cluster, operator_namespace) or {})
    except RecaptionError:
        return DEFAULTS
