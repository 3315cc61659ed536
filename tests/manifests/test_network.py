"""The network policies: they select the pods that there are, and allow what each needs and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest
import yaml

from components.base.guard import REFUSED_4, REFUSED_6
from components.engine.stage import Needs
from components.recipe.compute import NodePool
from components.recipe.sources import ROUNDS
from pipelines.kubernetes.jobs import LaunchedStage, Target, build_job
from tests.manifests.network import Pod, allowed, applying
from tests.manifests.rendering import MANIFESTS, Object, named, one, render
from tests.pipelines.kubeflow import test_graph
from tests.pipelines.kubernetes import test_jobs, test_trainjobs

EKS, GKE, LOCAL, OPENSHIFT, SHUT = (f"overlays/{n}" for n in ("eks", "gke", "local", "openshift", "on-premises"))
INSTALLATIONS = ("base", EKS, GKE, LOCAL, OPENSHIFT, SHUT)
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
KFP = Pod("kubeflow", {"app": "ml-pipeline"})
STORE = Pod("kubeflow", {"app": "seaweedfs"})
OPENSHIFT_DNS = Pod("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"})
MINIO = Pod("minio", {"app": "minio"})
PROMETHEUS = Pod("monitoring", {"app.kubernetes.io/name": "prometheus"})
STRANGER = Pod("default", {"app": "x"})
API_SERVER, ITS_SERVICE, PRIVATE, PUBLIC = "172.18.0.2", "10.96.0.1", "10.128.0.7", "142.250.1.95"
METADATA, METADATA_BEHIND, POD_IDENTITY = "169.254.169.254", "169.254.169.252", "169.254.170.23"
ENDPOINT = "10.99.7.1"


def policies(folder: str) -> list[Object]:
    return list(named(render(folder), "NetworkPolicy").values())


def operator() -> Pod:
    template = one(render("base"), "Deployment", "recaption-operator")["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    return Pod("recaption", template["metadata"]["labels"], ports)


def worker() -> Pod:
    """As the fan-out launches it."""
    job = test_jobs.objects()["default_gpu"]
    return Pod("kubeflow", job["spec"]["template"]["metadata"]["labels"])


def node() -> Pod:
    """Of a training: the runtime's labels, the TrainJob's, and JobSet's own."""
    runtime = yaml.safe_load((MANIFESTS / "training" / "runtime.yaml").read_text())
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    patches = next(iter(test_trainjobs.objects().values()))["spec"]["runtimePatches"]
    (patched,) = patches[0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    labels = [job["template"]["spec"]["template"]["metadata"]["labels"] for job in (replicated, patched)]
    return Pod("kubeflow", {**labels[0], **labels[1], "jobset.sigs.k8s.io/jobset-name": "train-raw-0123abcd"})


def downloader(step: str = "download") -> Pod:
    """As the fan-out launches it."""
    work = LaunchedStage("gs://bucket/recaption/runs/test-0123abcd", step, Needs(2))
    job = build_job(work, NodePool(name="cpu"), Target("kubeflow", "cpu"), range(4), 3600)
    return Pod("kubeflow", job["spec"]["template"]["metadata"]["labels"])


def step() -> Pod:
    """Of KFP, for a node of the compiled pipeline."""
    package = Path(test_graph.__file__).with_name("golden") / "pipeline.yaml"
    _, platform = yaml.safe_load_all(package.read_text(encoding="utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    (labels,) = {tuple(executor["podMetadata"]["labels"].items()) for executor in executors}
    return Pod("kubeflow", {**dict(labels), "pipelines.kubeflow.org/v2_component": "true"})


PODS = {"step": step, "operator": operator, "worker": worker, "node": node, "downloader": downloader}

# Who, which way, the other end, port, protocol; in which installations it is allowed: all, none, or a list.
ALL, NONE = INSTALLATIONS, ()
WEB = tuple(folder for folder in ALL if folder != SHUT)
FLOWS = [
    ("operator", "Egress", DNS, 53, "UDP", ALL),
    ("operator", "Egress", DNS, 53, "TCP", ALL),
    ("operator", "Egress", PUBLIC, 53, "UDP", NONE),
    ("operator", "Egress", ITS_SERVICE, 443, "TCP", ALL),
    ("operator", "Egress", API_SERVER, 6443, "TCP", ALL),
    ("operator", "Egress", PUBLIC, 443, "TCP", WEB),
    ("operator", "Egress", "2607:f8b0::5f", 443, "TCP", WEB),
    ("operator", "Egress", PRIVATE, 22, "TCP", NONE),
    ("operator", "Egress", PUBLIC, 80, "TCP", NONE),
    ("operator", "Egress", KFP, 8888, "TCP", ALL),
    ("operator", "Egress", STORE, 8333, "TCP", (LOCAL,)),
    ("operator", "Egress", STRANGER, 8888, "TCP", NONE),
    ("operator", "Egress", METADATA, 443, "TCP", NONE),
    ("operator", "Egress", METADATA, 80, "TCP", (GKE,)),
    ("operator", "Egress", METADATA_BEHIND, 988, "TCP", (GKE,)),
    ("operator", "Ingress", PROMETHEUS, 8080, "TCP", ALL),
    ("operator", "Ingress", PROMETHEUS, 22, "TCP", NONE),
    ("operator", "Ingress", STRANGER, 8080, "TCP", NONE),
    ("operator", "Ingress", PRIVATE, 8080, "TCP", NONE),
    ("worker", "Egress", DNS, 53, "UDP", ALL),
    ("worker", "Egress", PUBLIC, 443, "TCP", WEB),
    ("worker", "Egress", "2607:f8b0::5f", 443, "TCP", WEB),
    ("worker", "Egress", PUBLIC, 80, "TCP", NONE),
    ("worker", "Egress", ITS_SERVICE, 443, "TCP", NONE),
    ("worker", "Egress", API_SERVER, 6443, "TCP", NONE),
    ("worker", "Egress", API_SERVER, 443, "TCP", NONE),
    ("worker", "Egress", "192.168.0.1", 443, "TCP", NONE),
    ("worker", "Egress", "100.64.0.1", 443, "TCP", NONE),
    ("worker", "Egress", "240.0.0.1", 443, "TCP", NONE),
    ("worker", "Egress", "fd00::1", 443, "TCP", NONE),
    ("worker", "Egress", METADATA, 443, "TCP", NONE),
    ("worker", "Egress", METADATA, 80, "TCP", (GKE,)),
    ("worker", "Egress", METADATA_BEHIND, 988, "TCP", (GKE,)),
    ("worker", "Egress", "169.254.20.10", 53, "UDP", (GKE,)),
    ("worker", "Egress", KFP, 8888, "TCP", (LOCAL,)),  # with the store, which has no labels of its own
    ("worker", "Egress", STORE, 8333, "TCP", (LOCAL,)),
    ("worker", "Ingress", KFP, 443, "TCP", NONE),
    ("worker", "Ingress", STRANGER, 29500, "TCP", NONE),
    ("downloader", "Egress", DNS, 53, "UDP", ALL),
    ("downloader", "Egress", PUBLIC, 443, "TCP", WEB),
    ("downloader", "Egress", PUBLIC, 80, "TCP", WEB),
    ("downloader", "Egress", "2607:f8b0::5f", 80, "TCP", WEB),
    ("downloader", "Egress", "64:ff9b::8efa:15f", 80, "TCP", WEB),
    ("downloader", "Egress", PUBLIC, 8080, "TCP", NONE),
    ("downloader", "Egress", PUBLIC, 53, "UDP", NONE),
    ("downloader", "Egress", PUBLIC, 80, "UDP", NONE),
    ("downloader", "Egress", ITS_SERVICE, 443, "TCP", NONE),
    ("downloader", "Egress", API_SERVER, 6443, "TCP", NONE),
    ("downloader", "Egress", PRIVATE, 80, "TCP", NONE),
    ("downloader", "Egress", STRANGER, 80, "TCP", NONE),
    ("downloader", "Egress", KFP, 80, "TCP", (LOCAL,)),  # with the store
    ("downloader", "Egress", METADATA, 80, "TCP", (GKE,)),  # its own identity; images it gets from none
    ("downloader", "Ingress", STRANGER, 80, "TCP", NONE),
    ("step", "Egress", DNS, 53, "UDP", ALL),
    ("step", "Egress", KFP, 8888, "TCP", ALL),
    ("step", "Egress", STORE, 8333, "TCP", ALL),
    ("step", "Egress", API_SERVER, 6443, "TCP", ALL),
    ("step", "Egress", ITS_SERVICE, 443, "TCP", ALL),
    ("step", "Egress", PUBLIC, 443, "TCP", WEB),
    ("step", "Egress", PUBLIC, 80, "TCP", WEB),
    ("step", "Egress", PRIVATE, 80, "TCP", NONE),
    ("step", "Egress", STRANGER, 8080, "TCP", NONE),
    ("step", "Egress", METADATA, 443, "TCP", NONE),
    ("step", "Egress", METADATA, 80, "TCP", (GKE,)),
    ("step", "Egress", POD_IDENTITY, 80, "TCP", (EKS,)),
    ("step", "Egress", MINIO, 9000, "TCP", (SHUT,)),
    ("step", "Egress", OPENSHIFT_DNS, 5353, "UDP", (OPENSHIFT,)),
    ("step", "Ingress", STRANGER, 8080, "TCP", NONE),
    ("node", "Egress", PUBLIC, 80, "TCP", NONE),
    ("node", "Egress", PUBLIC, 443, "TCP", WEB),
    ("node", "Egress", PRIVATE, 29500, "TCP", NONE),
    ("operator", "Egress", POD_IDENTITY, 80, "TCP", (EKS,)),
    ("operator", "Egress", OPENSHIFT_DNS, 5353, "UDP", (OPENSHIFT,)),
    ("operator", "Egress", MINIO, 9000, "TCP", (SHUT,)),
    ("worker", "Egress", POD_IDENTITY, 80, "TCP", (EKS,)),
    ("worker", "Egress", ENDPOINT, 443, "TCP", (EKS,)),
    ("worker", "Egress", OPENSHIFT_DNS, 5353, "UDP", (OPENSHIFT,)),
    ("worker", "Egress", MINIO, 9000, "TCP", (SHUT,)),
    ("node", "Egress", MINIO, 9000, "TCP", (SHUT,)),
    ("node", "Ingress", STRANGER, 29500, "TCP", NONE),
]


@pytest.mark.parametrize("folder", INSTALLATIONS)
@pytest.mark.parametrize(("who", "way", "peer", "port", "protocol", "where"), FLOWS, ids=lambda v: str(v)[:20])
def test_a_pod_reaches_what_it_needs_and_no_more(
    folder: str, who: str, way: str, peer: Pod | str, port: int, protocol: str, where: tuple[str, ...]
) -> None:
    assert allowed(policies(folder), PODS[who](), way, peer, port, protocol) == (folder in where)


KFPS_STORE: Object = {  # what KFP 2.17 allows into its object store
    "metadata": {"namespace": "kubeflow", "name": "seaweedfs"},
    "spec": {
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["seaweedfs"]}]},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [
                    {"namespaceSelector": {"matchLabels": {"app.kubernetes.io/part-of": "kubeflow-profile"}}},
                    {"podSelector": {}},
                ],
                "ports": [{"port": 8333}],
            },
        ],
    },
}


@pytest.mark.parametrize("beside", [[], [KFPS_STORE]], ids=["no policy of KFP's", "KFP's policy"])
def test_the_operator_comes_into_kfps_store_and_shuts_nobody_out(beside: list[Object]) -> None:
    found = [*policies("overlays/local"), *beside]
    for pod in (operator(), worker(), KFP):
        assert allowed(found, STORE, "Ingress", pod, 8333, "TCP"), pod
        assert allowed(found, pod, "Egress", STORE, 8333, "TCP"), pod
    for pod in (STRANGER, Pod("recaption", {"app": "x"})):
        assert not allowed(found, STORE, "Ingress", pod, 8333, "TCP"), pod


@pytest.mark.parametrize("folder", INSTALLATIONS)
@pytest.mark.parametrize("port", [29500, 41234])
def test_the_nodes_of_a_training_reach_each_other_and_no_worker_reaches_them(folder: str, port: int) -> None:
    for way in ("Ingress", "Egress"):
        assert allowed(policies(folder), node(), way, node(), port, "TCP")
    assert not allowed(policies(folder), node(), "Ingress", worker(), port, "TCP")
    assert not allowed(policies(folder), worker(), "Ingress", node(), port, "TCP")


@pytest.mark.parametrize("folder", INSTALLATIONS)
def test_every_policy_selects_a_pod_that_there_is_and_of_kfps_own_only_the_store(folder: str) -> None:
    there = [pod() for pod in PODS.values()]
    for policy in policies(folder):
        assert any(applying([policy], pod, way) for pod in (*there, STORE) for way in policy["spec"]["policyTypes"])
    for pod in there:
        assert all(applying(policies(folder), pod, way) for way in ("Ingress", "Egress"))
    for pod in (KFP, STRANGER):
        assert not applying(policies(folder), pod, "Ingress") + applying(policies(folder), pod, "Egress")
    assert not applying(policies(folder), STORE, "Egress")
    assert len(applying(policies(folder), STORE, "Ingress")) == (folder == "overlays/local")


OTHERS_6 = ["::1/128", "::ffff:0:0/96", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "ff00::/8"]


@pytest.mark.parametrize("who", ["downloader", "worker"])
@pytest.mark.parametrize("network", [*REFUSED_4, *REFUSED_6, *map(ip_network, OTHERS_6)], ids=str)
def test_what_the_downloader_refuses_no_worker_reaches(network: IPv4Network | IPv6Network, who: str) -> None:
    """Two locks: the downloader's own check of every address, and the policies."""
    for address in (str(network[0]), str(network[-1])):
        for port in (80, 443):
            assert not allowed(policies("base"), PODS[who](), "Egress", address, port, "TCP"), address


def test_all_rounds_of_a_download_and_extract_may_and_nothing_else_may() -> None:
    rounds = ["download", *(f"download:{number}" for number in range(1, ROUNDS + 1))]
    for step in ["extract", *rounds]:
        assert allowed(policies("base"), downloader(step), "Egress", PUBLIC, 80, "TCP"), step
    for step in ("extract:dedup", "index", "caption:download", f"download:{ROUNDS + 1}"):
        assert not allowed(policies("base"), downloader(step), "Egress", PUBLIC, 80, "TCP"), step


def test_the_pipelines_folder_alone_shields_the_workers() -> None:
    """Without the operator, in any namespace."""
    alone = [{**p, "metadata": {**p["metadata"], "namespace": "kubeflow"}} for p in policies("pipeline")]
    assert allowed(alone, worker(), "Egress", PUBLIC, 443, "TCP")
    assert not allowed(alone, worker(), "Egress", PRIVATE, 443, "TCP")
    assert not allowed(alone, worker(), "Ingress", STRANGER, 443, "TCP")
