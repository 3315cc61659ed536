"""TrainJobs from values: one per mixture, the same run and mixture give the same name and the same object.

What all of them have in common lies in our ClusterTrainingRuntime, manifests/training/runtime.yaml.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from components.base.hashing import content_hash
from components.engine.stage import Needs
from components.recipe.compute import NodePool, TrainNodes
from components.recipe.nodes import DEFAULT_CPU, gpus_per_node
from components.recipe.training import Train
from components.stages.train.arguments import CPU_WORKERS
from components.stages.train.batch_plan import make_plan
from components.stages.train.scales import WORKERS, scale_of
from pipelines.kubernetes.jobs import (
    OURS,
    POOL,
    RUN,
    SPEC,
    STAGE,
    TASKS,
    THREADS,
    Target,
    label_value,
    node_tolerations,
    owner_reference,
    run_label,
)
from pipelines.kubernetes.secrets import SECRET_KEYS

MIXTURE = "recaption.dev/mixture"  # label; the annotation is the whole name
RUNTIME = "recaption-torch"
NODE = "node"  # Kubeflow Trainer's name of the replicated job and of its container
MANAGER = "recaption.dev/launcher"  # of our entry among a TrainJob's runtimePatches
KEY = "train"
CPU_PER_GPU = 4  # one for each of DataComp's 4 loading processes per GPU
GIB_PER_GPU = 8  # estimated: torch and CUDA, the model and its checkpoint, 4 loaders' 5,000 JPEGs each to shuffle
# Of a loading process: torch prefetches 2, the next is there as samples (webdataset's batched) and as their stack.
BATCHES = 2 + 2
SAMPLE = 3 * 224 * 224 * 4  # bytes: float32 pixels at the size that DataComp's models take


@dataclass(frozen=True)
class LaunchedTraining:
    """One model to be trained."""

    run: str
    """URI of the run."""
    mixture: str
    number: int
    """Number of the mixture among those that the run trains."""
    needs: Needs
    """What one process needs."""


def processes_per_node(nodes: TrainNodes, pool: NodePool) -> int:
    """Return how many processes of a node train: one per GPU; without one a single one, on all cores that it has."""
    return gpus_per_node(nodes, pool) or 1


def training_needs(train: Train, nodes: TrainNodes, pool: NodePool) -> Needs:
    """Return what one process needs, its loading processes' batches (in /dev/shm, which counts as memory) included.

    Raises:
        PermanentError: the processes don't divide the batch.
    """
    plan = make_plan(scale_of(train)[0], nodes.nodes * processes_per_node(nodes, pool))
    gpu = gpus_per_node(nodes, pool) > 0
    loaders = WORKERS if gpu else CPU_WORKERS
    return Needs(GIB_PER_GPU + loaders * BATCHES * plan.batch_per_gpu * SAMPLE / 2**30, gpu=gpu)


def build_train_job(
    training: LaunchedTraining, nodes: TrainNodes, pool: NodePool, target: Target, deadline: int
) -> dict[str, Any]:
    """Build the TrainJob of one mixture. Its name doesn't tell its number of nodes: one with another number is refused.

    Args:
        deadline: seconds until Kubeflow Trainer ends it.
    """
    labels = {**OURS, RUN: run_label(training.run), STAGE: KEY, MIXTURE: label_value(training.mixture)}
    labels |= {POOL: label_value(pool.name)}
    spec = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": RUNTIME},
        "activeDeadlineSeconds": deadline,
        "trainer": _trainer(training, nodes, pool, target),
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(labels, pool, target)}],
    }
    metadata: dict[str, Any] = {
        "name": train_job_name(training),
        "namespace": target.namespace,
        "labels": {**labels, **({"kueue.x-k8s.io/queue-name": pool.queue} if pool.queue else {})},
        "annotations": {
            RUN: training.run,
            MIXTURE: training.mixture,
            TASKS: str(training.number),
            SPEC: content_hash(spec),
        },
    }
    if target.owner:
        metadata["ownerReferences"] = [owner_reference(target.owner)]
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": spec}


def _trainer(training: LaunchedTraining, nodes: TrainNodes, pool: NodePool, target: Target) -> dict[str, Any]:
    gpus, processes = gpus_per_node(nodes, pool), processes_per_node(nodes, pool)
    memory = pool.memory or f"{math.ceil(training.needs.memory_gib * processes)}Gi"
    devices = {pool.device: str(gpus)} if pool.device and gpus else {}
    cpu = pool.cpu or (str(CPU_PER_GPU * gpus) if gpus else DEFAULT_CPU[False])
    requests = {"cpu": cpu, "memory": memory, **devices}
    trainer: dict[str, Any] = {
        "image": target.image,
        "command": ["recaption", "stage", KEY, training.run, "--mixture", training.mixture, "--launched"],
        "numNodes": nodes.nodes,
        "numProcPerNode": processes,
        "resourcesPerNode": {"requests": requests, "limits": {"memory": memory, **devices}},
    }
    env = [*([] if gpus else [THREADS]), *target.pods.worker_env()]
    if target.secret:
        env += [  # a TrainJob has no envFrom
            {"name": key, "valueFrom": {"secretKeyRef": {"name": target.secret, "key": key, "optional": True}}}
            for key in SECRET_KEYS
        ]
    return {**trainer, **({"env": env} if env else {})}


def _patch(labels: dict[str, str], pool: NodePool, target: Target) -> dict[str, Any]:
    """Build the patch of what our runtime can't know: which nodes, and who may read and write the storage."""
    pod: dict[str, Any] = target.pods.image_pull_secrets()
    if volumes := target.pods.volumes():
        pod |= {"volumes": volumes, "containers": [{"name": NODE, "volumeMounts": target.pods.mounts()}]}
    if target.service_account:
        pod["serviceAccountName"] = target.service_account
    if pool.node_selector:
        pod["nodeSelector"] = dict(pool.node_selector)
    tolerations = node_tolerations(pool)
    if tolerations:
        pod["tolerations"] = tolerations
    template = {"metadata": {"labels": labels}, **({"spec": pod} if pod else {})}
    job = {"name": NODE, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


def train_job_name(training: LaunchedTraining) -> str:
    """Make a DNS label that starts with a letter, of at most 45 characters: `-node-0-<index>-<5 letters>` must fit."""
    words = re.sub(r"[^a-z0-9]+", "-", f"train-{training.mixture}")
    return f"{words[:32].strip('-')}-{content_hash([training.run, training.mixture])}"
