"""Indexed Jobs from values: the same run, stage and pool of nodes give the same name and the same object."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.base.cores import CORES
from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.recipe.compute import NodePool
from components.recipe.nodes import DEFAULT_CPU, whole_cores
from pipelines.kubernetes.pod_settings import PodSettings

if TYPE_CHECKING:  # it brings pyarrow, which the operator needs for nothing else
    from components.engine.stage import Needs

RUN, STAGE, POOL = "recaption.dev/run", "recaption.dev/stage", "recaption.dev/pool"  # labels; RUN's annotation is a URI
SPEC, TASKS = "recaption.dev/spec-hash", "recaption.dev/tasks"  # annotations
OURS = {
    "app.kubernetes.io/name": "recaption",
    "app.kubernetes.io/part-of": "recaption",
    "app.kubernetes.io/managed-by": "recaption",
}
CONTAINER = "stage"
USER = 65532  # the images' user: distroless' "nonroot"
SCRATCH = "/scratch"  # the images' HOME and TMPDIR
SCRATCH_SIZE = "100Gi"  # downloaded models (BLIP-2: 15 GB) and a shard or two (some GB) with room to spare
SHARED_MEMORY = "2Gi"  # NCCL's and torch's own
RETRIES = 3  # of one index, after its first attempt; disruptions don't count
FAILED_SHARE = 0.01  # of a Job's indexes that may fail before all is given up: one bad shard doesn't stop the rest
GRACE = 30  # seconds: a worker drops its unfinished shard at once; spot nodes give 15 to 30
TTL = 24 * 3600  # seconds that a finished Job can be looked at, if nothing deletes it earlier
MOST_INDEXES = 100_000  # Kubernetes' limit of an Indexed Job with a backoff limit per index
LONGEST_LIST = 4096  # characters of a list of tasks: every pod of the Job carries it
THREADS: dict[str, Any] = {  # of a model without a GPU; torch would take the node's cores, whatever else runs there
    "name": "OMP_NUM_THREADS",
    "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}},
}
SPOT_TAINTS = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")


@dataclass(frozen=True)
class Owner:
    """The Argo Workflow of a KFP run: deleting it deletes what it owns."""

    name: str
    uid: str


@dataclass(frozen=True)
class Target:
    """The namespace of the Jobs, and the image, account and settings of their pods."""

    namespace: str
    image: str
    service_account: str | None = None
    """Account of the pods, which (with Workload Identity) may use the storage; None is the namespace's default."""
    secret: str | None = None
    """A Secret whose keys become environment variables (HF_TOKEN, an S3 key)."""
    owner: Owner | None = None
    pods: PodSettings = field(default_factory=PodSettings)
    """What the cluster's operator gives every pod."""


@dataclass(frozen=True)
class LaunchedStage:
    """A stage of a run that is launched: what all its Jobs have in common."""

    run: str
    """URI of the run."""
    key: str
    """A node's key or a step's name: what `recaption stage` is called with."""
    needs: Needs


def build_job(
    launched: LaunchedStage, pool: NodePool, target: Target, tasks: Sequence[int], deadline: int
) -> dict[str, Any]:
    """Build the Job that works through these tasks on one pool.

    Args:
        tasks: not empty, ascending; index i of the Job does the i-th of them (or, of a list too long to carry, the
            whole range is done: workers skip what is finished).
        deadline: seconds until Kubernetes ends it.
    """
    name = job_name(launched, pool)
    text = ranges(tasks)
    tasks = parse_ranges(text)
    if len(tasks) > MOST_INDEXES:
        raise PermanentError(
            f"{launched.key}: {len(tasks):,} tasks for pool {pool.name}, a Job has at most {MOST_INDEXES:,}; raise "
            "spec.compute.shardsPerTask"
        )
    labels = {**OURS, RUN: run_label(launched.run), STAGE: label_value(launched.key), POOL: label_value(pool.name)}
    spec = _spec(launched, pool, target, labels, text, deadline)
    made_from = {**_spec(launched, pool, target, labels, "", deadline), "parallelism": pool.parallelism}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": target.namespace,
        "labels": {**labels, **({"kueue.x-k8s.io/queue-name": pool.queue} if pool.queue else {})},
        "annotations": {RUN: launched.run, SPEC: content_hash(made_from), TASKS: text},
    }
    parallelism = min(pool.parallelism, len(tasks))
    if pool.queue and parallelism > 1:
        metadata["annotations"]["kueue.x-k8s.io/job-min-parallelism"] = "1"  # start with the quota there is
    if target.owner:
        metadata["ownerReferences"] = [owner_reference(target.owner)]
    counts = {
        "completions": len(tasks),
        "parallelism": parallelism,
        "maxFailedIndexes": math.ceil(len(tasks) * FAILED_SHARE),
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {**counts, **spec}}


def _spec(
    launched: LaunchedStage, pool: NodePool, target: Target, labels: dict[str, str], tasks: str, deadline: int
) -> dict[str, Any]:
    """Build all of a Job's spec that doesn't count tasks."""
    spec = {
        "completionMode": "Indexed",
        "backoffLimitPerIndex": RETRIES,
        "activeDeadlineSeconds": deadline,
        "ttlSecondsAfterFinished": TTL,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailIndex",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [PermanentError.exit_code],
                    },
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"metadata": {"labels": labels}, "spec": _pod(launched, pool, target, tasks)},
    }
    return {**spec, "suspend": True} if pool.queue else spec  # Kueue starts it when there is quota


def _pod(launched: LaunchedStage, pool: NodePool, target: Target, tasks: str) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "automountServiceAccountToken": False,  # a worker needs the storage, not the API server
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(launched, pool, target, tasks)],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
            {"name": "scratch", "emptyDir": {"sizeLimit": SCRATCH_SIZE}},
            *target.pods.volumes(),
        ],
        **target.pods.image_pull_secrets(),
    }
    if target.service_account:
        pod["serviceAccountName"] = target.service_account
    if pool.priority_class:
        pod["priorityClassName"] = pool.priority_class
    if pool.node_selector:
        pod["nodeSelector"] = dict(pool.node_selector)
    tolerations = node_tolerations(pool)
    if tolerations:
        pod["tolerations"] = tolerations
    return pod


def _container(launched: LaunchedStage, pool: NodePool, target: Target, tasks: str) -> dict[str, Any]:
    devices = {pool.device: str(pool.accelerator.count)} if pool.accelerator and pool.device else {}
    cpu = pool.cpu or DEFAULT_CPU[bool(devices)]
    memory = pool.memory or f"{math.ceil(launched.needs.gib(whole_cores(cpu)))}Gi"
    requests = {"cpu": cpu, "memory": memory, **devices}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": target.image,
        "command": ["recaption", "stage", launched.key, launched.run, "--tasks", tasks, "--launched"],
        "env": [
            {"name": "HOME", "value": SCRATCH},
            {"name": "TMPDIR", "value": SCRATCH},
            {
                "name": CORES,
                "valueFrom": {"resourceFieldRef": {"containerName": CONTAINER, "resource": "requests.cpu"}},
            },
            *target.pods.worker_env(),
        ],
        "resources": {"requests": requests, "limits": {"memory": memory, **devices}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "scratch", "mountPath": SCRATCH},
            *target.pods.mounts(),
        ],
    }
    if launched.needs.gpu and not devices:
        container["env"].append(THREADS)
    if target.secret:
        container["envFrom"] = [{"secretRef": {"name": target.secret, "optional": True}}]
    return container


def node_tolerations(pool: NodePool) -> list[dict[str, Any]]:
    given = [t.model_dump(mode="json", exclude_none=True) for t in pool.tolerations]
    keys = [pool.device] if pool.device else []
    keys += SPOT_TAINTS if pool.spot else ()
    return given + [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]


def owner_reference(owner: Owner) -> dict[str, Any]:
    """Refer to an owner: what refers to it is deleted with it, and never keeps it from being deleted."""
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "name": owner.name,
        "uid": owner.uid,
        "controller": False,
        "blockOwnerDeletion": False,
    }


def job_name(launched: LaunchedStage, pool: NodePool) -> str:
    """Make a DNS label that leaves room for its pods' hostnames, `<name>-<index>`: 63 characters with 6 digits."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{launched.key}-{pool.name}".lower())
    return f"{words[:43].strip('-')}-{content_hash([launched.run, launched.key, pool.name])}"


def run_label(run: str) -> str:
    """Make the label of everything that belongs to a run: its name, and a hash of where it lies."""
    uri = run.rstrip("/")
    return f"{uri.rpartition('/')[2][:50].rstrip('-._')}-{content_hash(uri)}"


def label_value(text: str) -> str:
    """Make a label's value of a text: at most 63 characters that a label may have."""
    value = re.sub(r"[^A-Za-z0-9._-]", ".", text)
    return value if len(value) <= 63 else f"{value[:50].rstrip('-._')}-{content_hash(text)}"


def selector(run: str, key: str | None = None) -> str:
    """Return the label selector of a run's objects, or of one stage's."""
    return f"{RUN}={run_label(run)}" + (f",{STAGE}={label_value(key)}" if key else "")


def ranges(tasks: Sequence[int], longest: int = LONGEST_LIST) -> str:
    """Write ascending tasks as text, `0-4,7`; where that gets too long, their whole range."""
    text = ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in _runs(tasks))
    return text if len(text) <= longest else f"{tasks[0]}-{tasks[-1]}"


def _runs(tasks: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for task in tasks:
        if found and found[-1][1] == task - 1:
            found[-1] = (found[-1][0], task)
        else:
            found.append((task, task))
    return found


def parse_ranges(text: str) -> list[int]:
    """Parse the tasks that `ranges` wrote; also Kubernetes' completedIndexes and failedIndexes."""
    tasks: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise PermanentError(f"tasks {text}: expected numbers and ranges such as 0-4,7")
        tasks.extend(range(int(first), int(last or first) + 1))
    return tasks
