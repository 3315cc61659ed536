"""Checks of what must be in the cluster besides recaption, and of its nodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from pipelines.doctor.finding import Context, Finding, broken, good, open_
from pipelines.kubernetes.cluster import Object
from pipelines.kubernetes.trainjobs import RUNTIME

OLDEST = 33  # Kubernetes 1.33: the oldest that recaption is tested with
MISSING = {  # what recaption uses, by the minor version from which on it is there by default
    29: "retries per index of a Job (our Jobs are refused)",
    31: "selectable fields of custom resources",
}
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS_OF_GPU = (  # labels that say which GPU a node has, the most telling first
    *("cloud.google.com/gke-accelerator", "nvidia.com/gpu.product", "karpenter.k8s.aws/instance-gpu-name"),
    *("kubernetes.azure.com/accelerator", "node.kubernetes.io/instance-type"),
)
INACTIVE = ("Active", "False")  # a LocalQueue's condition
PAGE = 500  # nodes that are listed at a time


def api_server(context: Context) -> Finding:
    """Check that the API server answers."""
    context.get("/version")
    return good(f"{context.api.client.configuration.host} answers")


def kubernetes(context: Context) -> Finding:
    """Check the version of Kubernetes."""
    found = context.get("/version") or {}
    minor = re.match(r"\d+", str(found.get("minor", "")))  # some providers append a +
    version = str(found.get("gitVersion", "of an unknown version"))
    if minor and int(minor[0]) >= OLDEST:
        return good(version)
    lacks = [what for since, what in MISSING.items() if minor and int(minor[0]) < since]
    what = f"{version} lacks {', '.join(lacks)}" if lacks else f"{version}: recaption is not tested with it"
    return broken(what, f"upgrade the cluster to 1.{OLDEST} or later")


def workflows(context: Context) -> Finding:
    """Check for Argo Workflows, by which KFP runs pipelines."""
    if serves(context, "argoproj.io/v1alpha1", "workflows"):
        return good("workflows.argoproj.io is served")
    return broken("the cluster has no Argo Workflows: KFP can't run a pipeline", "install Kubeflow Pipelines 2")


def trainer(context: Context) -> Finding:
    """Check for Kubeflow Trainer, in a version that takes what we ask it for."""
    if not serves(context, "trainer.kubeflow.org/v1alpha1", "trainjobs"):
        remedy = "needed for recipes with `train`: install 2.2 or later, then kubectl apply -k manifests/training"
        return open_("the cluster has no Kubeflow Trainer", remedy)
    crd = context.get(f"{CRDS}/trainjobs.trainer.kubeflow.org") or {}
    schemas = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1alpha1"]
    if any("runtimePatches" in schema["properties"]["spec"]["properties"] for schema in schemas):
        return good("trainjobs.trainer.kubeflow.org is served, with runtimePatches")
    what = "Kubeflow Trainer is older than 2.2: its TrainJobs have no runtimePatches"
    return broken(what, "upgrade Kubeflow Trainer to 2.2 or later")


def training_runtime(context: Context) -> Finding:
    """Check for our part of every TrainJob, the ClusterTrainingRuntime."""
    if not serves(context, "trainer.kubeflow.org/v1alpha1", "clustertrainingruntimes"):
        return open_("there is no Kubeflow Trainer to have one")
    if context.get(f"/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/{RUNTIME}"):
        return good(f"ClusterTrainingRuntime {RUNTIME} is there")
    what = f"there is no ClusterTrainingRuntime {RUNTIME}, which every TrainJob names"
    return broken(what, "kubectl apply -k manifests/training")


def jobset(context: Context) -> Finding:
    """Check for JobSet, by which Kubeflow Trainer starts its pods."""
    if serves(context, "jobset.x-k8s.io/v1alpha2", "jobsets"):
        return good("jobsets.jobset.x-k8s.io is served")
    if not serves(context, "trainer.kubeflow.org/v1alpha1", "trainjobs"):
        return open_("there is no Kubeflow Trainer to need it")
    return broken("the cluster has no JobSet: a TrainJob gets no pods", "install Kubeflow Trainer, which brings JobSet")


def kueue(context: Context) -> Finding:
    """Check Kueue's queues in the namespace of the runs' pods."""
    group = context.get("/apis/kueue.x-k8s.io")
    if group is None:
        return open_("the cluster has no Kueue", "needed only where a recipe's pools name a queue")
    version, where = group["preferredVersion"]["groupVersion"], f"namespace {context.namespace}"
    listed = context.get(f"/apis/{version}/namespaces/{context.namespace}/localqueues") or {}
    queues = {queue["metadata"]["name"]: _inactive(queue) for queue in listed.get("items", ())}
    if not queues:
        return open_(f"{where} has no LocalQueue", "needed only where a recipe's pools name a queue")
    for name, why in queues.items():
        if why:
            return broken(f"{where}: LocalQueue {name} is not active: {why}", "look at its ClusterQueue and flavors")
    return good(f"{where}: LocalQueue {', '.join(queues)}")


def gpu_nodes(context: Context) -> Finding:
    """List the GPUs that the cluster has now, as a recipe's pools select them."""
    pools: Counter[tuple[str, str]] = Counter()
    nodes: Counter[tuple[str, str]] = Counter()
    for node in _nodes(context):
        for resource, count in node.get("status", {}).get("allocatable", {}).items():
            if resource.endswith("/gpu") and int(count):
                key = resource, _traits(node)
                pools[key] += int(count)
                nodes[key] += 1
    if not pools:
        remedy = (
            "an autoscaler may add some when a Job asks for them; else give spec.compute.pools nodes with GPUs, or a "
            "pool with `accelerator: {count: 0}`"
        )
        return open_("no node has a GPU now", remedy)
    parts = [
        f"{count} {resource} on {nodes[resource, traits]} node{'s' * (nodes[resource, traits] > 1)} ({traits})"
        for (resource, traits), count in sorted(pools.items())
    ]
    return good("; ".join(parts))


def serves(context: Context, group: str, plural: str) -> bool:
    """Return whether the API server knows this kind of object; everybody may ask that."""
    found = context.get(f"/apis/{group}")
    return any(resource["name"] == plural for resource in (found or {}).get("resources", ()))


def _inactive(queue: Object) -> str:
    conditions = queue.get("status", {}).get("conditions", ())
    return next((c.get("message") or c["reason"] for c in conditions if (c["type"], c["status"]) == INACTIVE), "")


def _nodes(context: Context) -> Iterator[Object]:
    more = ""
    while True:
        found = context.api.ask("GET", "/api/v1/nodes", query={"limit": PAGE, **({"continue": more} if more else {})})
        yield from (found or {}).get("items", ())
        more = (found or {}).get("metadata", {}).get("continue", "")
        if not more:
            return


def _traits(node: Object) -> str:
    """Name the label that says which GPU a node has, and the taints that a pod must tolerate."""
    labels = node["metadata"].get("labels", {})
    found = [f"{key}={labels[key]}" for key in KINDS_OF_GPU if key in labels][:1]
    taints = sorted({taint["key"] for taint in node.get("spec", {}).get("taints", ())})
    return ", ".join([*found, *(f"taint {key}" for key in taints)]) or "no label that says which"
