"""Explains the state of Jobs, pods and events to a person: values in, one line out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.base.errors import PermanentError
from pipelines.kubernetes.jobs import CONTAINER, parse_ranges

Object = Mapping[str, Any]

IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
SETUP = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True)
class Blockage:
    """The reason why nothing runs."""

    text: str
    bad_input: bool
    """Whether somebody must change something: waiting longer doesn't help."""


@dataclass(frozen=True)
class PodEnding:
    """The end of a pod."""

    pod: str
    index: int
    code: int | None
    text: str
    """One line: pod, node, exit code and reason."""
    message: str
    """The last lines of its log, as far as Kubernetes kept them."""


def condition(thing: Object, kind: str) -> Object | None:
    """Return an object's condition of this type if it is True."""
    for found in thing.get("status", {}).get("conditions") or []:
        if found["type"] == kind and found["status"] == "True":
            return dict(found)
    return None


def is_finished(job: Object) -> bool:
    return bool(condition(job, "Complete") or condition(job, "Failed"))


def ran_out_of_time(job: Object) -> bool:
    """Return whether Kubernetes ended it at its activeDeadlineSeconds."""
    return (condition(job, "Failed") or {}).get("reason") == "DeadlineExceeded"


def is_waiting(job: Object) -> bool:
    """Return whether a Job is in a queue: Kueue hasn't let it start."""
    return bool(job["spec"].get("suspend"))


def counted(job: Object, what: str) -> int:
    return int(job.get("status", {}).get(what) or 0)


def completed(job: Object) -> list[int]:
    """List the indexes that are done."""
    return parse_ranges(job.get("status", {}).get("completedIndexes") or "")


def failed(job: Object) -> list[int]:
    """List the indexes that are given up."""
    return parse_ranges(job.get("status", {}).get("failedIndexes") or "")


def find_blockage(pods: Sequence[Object], events: Sequence[Object]) -> Blockage | None:
    """Explain why these pods of a Job, or a Job without pods, don't run; None when nothing is wrong."""
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            waiting = status.get("state", {}).get("waiting") or {}
            why = f"{waiting.get('reason')}: {waiting.get('message', 'no message')}"
            if waiting.get("reason") in IMAGE:
                return Blockage(f"image {status['image']} can't be pulled ({_line(why)})", True)
            if waiting.get("reason") in SETUP:
                return Blockage(f"pod {pod['metadata']['name']} can't start ({_line(why)})", True)
    for pod in pods:
        for found in pod.get("status", {}).get("conditions") or []:
            if found["type"] == "PodScheduled" and found["status"] == "False":
                name = pod["metadata"]["name"]
                return Blockage(f"no node for pod {name} ({_line(found.get('message') or 'no message')})", False)
    if not pods:
        for event in reversed(events):
            if event.get("type") == "Warning":
                return _of_event(_line(event.get("message") or ""))
    return None


def _of_event(message: str) -> Blockage:
    if "exceeded quota" in message:
        return Blockage(f"a quota leaves no room for a pod ({message})", False)
    return Blockage(f"no pod can be created ({message})", True)


def ended(pod: Object, container_name: str = CONTAINER) -> PodEnding:
    """Describe how a pod's container ended; one that never ran is described by what its pod says."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    node = pod.get("spec", {}).get("nodeName") or "no node"
    labels = {**pod["metadata"].get("annotations", {}), **pod["metadata"].get("labels", {})}
    index = int(labels.get("batch.kubernetes.io/job-completion-index", -1))
    for container in status.get("containerStatuses") or []:
        state = container.get("state", {}).get("terminated")
        if container["name"] == container_name and state:
            reason = _line(state.get("reason") or "no reason")
            text = f"pod {name} on {node} ended with exit code {state['exitCode']} ({reason})"
            return PodEnding(name, index, state["exitCode"], text, state.get("message") or "")
    why = _line(f"{status.get('reason') or 'no reason'} {status.get('message') or ''}")
    return PodEnding(name, index, None, f"pod {name} on {node}: {why}", "")


def is_bad_input(endings: Sequence[PodEnding]) -> bool:
    return any(ending.code == PermanentError.exit_code for ending in endings)


def workflow_ended(workflow: Object | None, uid: str) -> bool:
    """Return whether a KFP run is over, or being ended: terminated (KFP sets its deadline to 0), stopped, deleted."""
    if workflow is None or workflow["metadata"]["uid"] != uid or workflow["metadata"].get("deletionTimestamp"):
        return True
    spec = workflow.get("spec", {})
    phase = workflow.get("status", {}).get("phase")
    return (
        phase in ("Succeeded", "Failed", "Error")
        or spec.get("activeDeadlineSeconds") == 0
        or bool(spec.get("shutdown"))
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
