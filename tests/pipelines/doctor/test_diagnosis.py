"""The doctor's checks, each against an API server that answers what the test says: all well, and one trouble each."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubernetes import client
from typer.main import get_command

from components.base.errors import TemporaryError
from components.storage.local import LocalStorage
from pipelines.cli import app
from pipelines.doctor import outside, rights
from pipelines.doctor.diagnosis import CHECKS, exit_code
from pipelines.doctor.finding import Context, Finding, State, broken, examine, find, good, open_
from pipelines.kubeflow.client import Endpoint
from pipelines.kubernetes.cluster import Cluster
from pipelines.kubernetes.pod_settings import PodSettings
from pipelines.operator.crd.generate import recaption_crd, schedule_crd
from pipelines.operator.runtime.settings import Settings
from pipelines.operator.runtime.tenants import Tenants
from tests.components.storage.faulty import serving
from tests.pipelines.kubeflow.kfp_server import kfp_server
from tests.pipelines.kubernetes.api_server import kubeconfig

ROOT = Path(__file__).parents[3]
SETTINGS = Settings("http://ml-pipeline.kubeflow:8888", "http://ml-pipeline.kubeflow:8888")
DEPLOYMENT = "/apis/apps/v1/namespaces/recaption/deployments/recaption-operator"
CONFIG = "/api/v1/namespaces/recaption/configmaps/recaption-operator-abc"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/recaption/leases/recaption-operator"
TRAIN_JOBS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainjobs.trainer.kubeflow.org"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
RUNTIME = f"{TRAINER}/clustertrainingruntimes/recaption-torch"
ACCOUNTS = "/api/v1/namespaces/kubeflow/serviceaccounts"
SECRET = "/api/v1/namespaces/kubeflow/secrets/recaption"
OPERATORS_SECRET = "/api/v1/namespaces/recaption/secrets/storage-keys"
QUEUES = "/apis/kueue.x-k8s.io/v1beta2/namespaces/kubeflow/localqueues"
REVIEW = re.compile(r"/apis/authorization.k8s.io/v1/(self)?subjectaccessreviews")


@dataclass
class Answers:
    """Of the API server: a path has an object, or (status, message); all else is not there."""

    objects: dict[str, Any]
    may: Callable[[dict[str, Any]], bool] = lambda spec: True
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, what is accepted."""

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        found = self.objects.get(path, (404, "the server could not find the requested resource"))
        if path not in self.objects and REVIEW.fullmatch(path):
            return 201, {"status": {"allowed": self.may(body["spec"])}}
        if isinstance(found, tuple):
            return found[0], {"kind": "Status", "message": found[1]}
        return 200, found(query) if callable(found) else found


@contextmanager
def api_server(answers: Answers) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            answers.asked.append((self.command, url.path, self.headers["Accept"]))
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            status, found = answers.answer(self.command, url.path, parse_qs(url.query), body)
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield address


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def resources(*names: str) -> dict[str, Any]:
    """A group's version, as the API server's discovery has it."""
    return {"kind": "APIResourceList", "resources": [{"name": name} for name in names]}


def deployment(*conditions: dict[str, str]) -> dict[str, Any]:
    container = {
        "image": "registry.example/recaption-operator:1.0",
        "envFrom": [{"configMapRef": {"name": "recaption-operator-abc"}}],
        "env": [
            {"name": "POD_NAME", "valueFrom": {}},
            {"name": "RECAPTION_TAG", "value": "1.0"},
            {"name": "RECAPTION_SECRET_FOLDER", "value": "/etc/recaption/secret"},
        ],
        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}, {"name": "s", "mountPath": "/etc/recaption/secret"}],
    }
    volumes = [{"name": "ca", "secret": {"secretName": "ca"}}, {"name": "s", "secret": {"secretName": "storage-keys"}}]
    pod = {"containers": [container], "volumes": volumes}
    return {"spec": {"template": {"spec": pod}}, "status": {"conditions": list(conditions)}}


def without_volumes() -> dict[str, Any]:
    """As an older recaption has it."""
    made = deployment({"type": "Available", "status": "True"})
    del made["spec"]["template"]["spec"]["volumes"]
    return made


def train_jobs(*fields: str) -> dict[str, Any]:
    properties = {"spec": {"properties": {name: {} for name in fields}}}
    return {"spec": {"versions": [{"name": "v1alpha1", "schema": {"openAPIV3Schema": {"properties": properties}}}]}}


def node(gpu: str | None, count: int, *taints: str) -> dict[str, Any]:
    labels = {"cloud.google.com/gke-accelerator": gpu, "node.kubernetes.io/instance-type": "g2"} if gpu else {}
    spec = {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]}
    allocatable = {"cpu": "3920m", "memory": "12Gi", "nvidia.com/gpu": str(count)}
    return {"metadata": {"labels": labels}, "spec": spec, "status": {"allocatable": allocatable}}


def crd(plural: str) -> str:
    return f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.recaption.dev"


def known(made: dict[str, Any], status: str = "True") -> dict[str, Any]:
    """A CRD as the API server has taken it."""
    taken = {"type": "NamesAccepted", "status": status, "message": "" if status == "True" else "rcap is taken"}
    established = {"type": "Established", "status": status, "message": "not all names are accepted"}
    return {**made, "status": {"conditions": [taken, established]}}


def older(made: dict[str, Any]) -> dict[str, Any]:
    """Without a property of its spec."""
    made = copy.deepcopy(made)
    del made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["evaluate"]
    return made


def nodes(*pages: list[dict[str, Any]]) -> Callable[[dict[str, list[str]]], dict[str, Any]]:
    """A listing that comes in pages."""

    def page(query: dict[str, list[str]]) -> dict[str, Any]:
        number = int(query.get("continue", ["0"])[0])
        more = {"continue": str(number + 1)} if number + 1 < len(pages) else {}
        return {"metadata": more, "items": pages[number]}

    return page


def healthy() -> dict[str, Any]:
    l4 = node("nvidia-l4", 1, "nvidia.com/gpu")
    queue = {"metadata": {"name": "recaption"}, "status": {"conditions": [{"type": "Active", "status": "True"}]}}
    return {
        "/version": {"major": "1", "minor": "33+", "gitVersion": "v1.33.4-gke.1"},
        crd("recaptions"): known(recaption_crd()),
        crd("recaptionschedules"): known(schedule_crd()),
        DEPLOYMENT: deployment({"type": "Available", "status": "True"}),
        CONFIG: {
            "data": {"KF_PIPELINES_ENDPOINT": "http://ml-pipeline.kubeflow:8888", "RECAPTION_IMAGES": "r.example/x"}
        },
        LEASE: {"spec": {"holderIdentity": "pod-1", "renewTime": ago(4), "leaseDurationSeconds": 30}},
        "/apis/argoproj.io/v1alpha1": resources("workflows", "cronworkflows"),
        TRAINER: resources("trainjobs", "clustertrainingruntimes"),
        TRAIN_JOBS: train_jobs("runtimeRef", "runtimePatches"),
        RUNTIME: {"metadata": {"name": "recaption-torch"}},
        "/apis/jobset.x-k8s.io/v1alpha2": resources("jobsets", "jobsets/status"),
        "/apis/kueue.x-k8s.io": {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}},
        QUEUES: {"items": [queue]},
        "/api/v1/nodes": nodes([l4, node(None, 0)], [l4]),
        f"{ACCOUNTS}/recaption": {},
        f"{ACCOUNTS}/pipeline-runner": {},
        SECRET: {},
        OPERATORS_SECRET: {},
    }


@contextmanager
def asked(answers: Answers, **changes: Any) -> Iterator[Context]:
    with api_server(answers) as host:
        settings = client.Configuration(host=host)
        settings.retries = False
        cluster = Cluster(client.ApiClient(settings), "research", outage=0.6)
        yield replace(Context(cluster, SETTINGS, "kubeflow", "recaption"), **changes)
        cluster.client.close()


def test_a_healthy_cluster_and_a_healthy_rest(tmp_path: Path) -> None:
    answers = Answers(healthy())
    with kfp_server() as (kfp, _), asked(answers, kfp=Endpoint(kfp), storage=str(tmp_path)) as context:
        found = dict(zip(CHECKS, examine(list(CHECKS.values()), context), strict=True))
    assert {name: f for name, f in found.items() if f.state is not State.GOOD} == {}
    assert exit_code(found) == 0
    assert {name: found[name].what for name in ("Kubernetes", "GPU nodes", "its settings", "operator", "KFP")} == {
        "Kubernetes": "v1.33.4-gke.1",
        "GPU nodes": "2 nvidia.com/gpu on 2 nodes (cloud.google.com/gke-accelerator=nvidia-l4, taint nvidia.com/gpu)",
        "its settings": "KFP at http://ml-pipeline.kubeflow:8888, its pods in kubeflow; images r.example/x-*:1.0; "
        "watches all namespaces",
        "operator": "Deployment recaption/recaption-operator is available: registry.example/recaption-operator:1.0",
        "KFP": f"{kfp} answers: version 2.17.0, one user",
    }
    assert re.fullmatch(
        r"pod-1 holds the Lease recaption/recaption-operator, renewed \d+ s ago", found["its Lease"].what
    )
    assert list(LocalStorage(tmp_path).list()) == []


def test_no_secret_is_read() -> None:
    answers = Answers(healthy())
    with asked(answers) as context:
        examine(list(CHECKS.values()), context)
    secrets = [(method, path, accept) for method, path, accept in answers.asked if "/secrets" in path]
    only_metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    assert sorted(secrets) == [("GET", SECRET, only_metadata), ("GET", OPERATORS_SECRET, only_metadata)]
    writes = {path for method, path, _ in answers.asked if method != "GET"}
    assert all(REVIEW.fullmatch(path) for path in writes)


NOT_THERE = (404, "not found")
UNAVAILABLE = {"type": "Available", "status": "False", "message": "Deployment does not have minimum availability."}
PROGRESSED = {"type": "Progressing", "status": "True", "message": "ReplicaSet has successfully progressed."}
REFUSED = {"type": "ReplicaFailure", "status": "True", "message": "pods is forbidden: violates PodSecurity"}


@pytest.mark.parametrize(("check", "path", "answer", "state", "what", "remedy"), [
    ("Kubernetes", "/version", {"minor": "32", "gitVersion": "v1.32.1"}, State.BROKEN,
     r"v1.32.1: recaption is not tested with it", "to 1.33 or later"),
    ("Kubernetes", "/version", {"minor": "28", "gitVersion": "v1.28.0"}, State.BROKEN,
     r"v1.28.0 lacks retries per index of a Job \(our Jobs are refused\), selectable fields", "1.33"),
    ("Kubernetes", "/version", {}, State.BROKEN, "^of an unknown version: recaption is not tested", "1.33"),
    ("custom resources", crd("recaptionschedules"), NOT_THERE, State.BROKEN,
     "the cluster doesn't know recaptionschedules.recaption.dev", "kubectl apply -k manifests/crd"),
    ("custom resources", crd("recaptions"), known(recaption_crd(), status="False"), State.BROKEN,
     "recaptions.recaption.dev is not established: rcap is taken", "kubectl describe crd recaptions.recap"),
    ("custom resources", crd("recaptions"), known(older(recaption_crd())), State.BROKEN,
     "recaptions.recaption.dev is another version's, not recaption ", "kubectl apply -k manifests/crd"),
    ("operator", DEPLOYMENT, NOT_THERE, State.BROKEN,
     "namespace recaption has no Deployment", "kubectl apply -k manifests/overlays/local"),
    ("operator", DEPLOYMENT, deployment(UNAVAILABLE), State.BROKEN,
     "is not available: Deployment does not have minimum", "kubectl describe -n recaption pods .*; kubectl logs"),
    ("operator", DEPLOYMENT, deployment(UNAVAILABLE, REFUSED), State.BROKEN, "violates PodSecurity", "kubectl logs"),
    ("operator", DEPLOYMENT, deployment(UNAVAILABLE, PROGRESSED), State.BROKEN, "minimum availability", "kubectl logs"),
    ("operator", DEPLOYMENT, deployment(), State.BROKEN, "no controller has looked at it yet", "kubectl describe"),
    ("its Lease", LEASE, NOT_THERE, State.BROKEN, "nobody holds the Lease", "kubectl logs -n recaption deployment/"),
    ("its Lease", LEASE, {"spec": {"holderIdentity": "", "renewTime": ago(1)}}, State.BROKEN, "nobody holds", "logs"),
    ("its Lease", LEASE, {"spec": {"holderIdentity": "pod-1", "renewTime": ago(300), "leaseDurationSeconds": 30}},
     State.BROKEN, r"pod-1 holds .*, renewed \d{3,} s ago: it no longer acts", "kubectl logs"),
    ("its settings", DEPLOYMENT, NOT_THERE, State.OPEN, "no operator", ""),
    ("its settings", CONFIG, NOT_THERE, State.BROKEN,
     "KF_PIPELINES_ENDPOINT: found nothing", "expected KFP's API server, such as http"),
    ("launcher's rights", f"{ACCOUNTS}/pipeline-runner", NOT_THERE, State.BROKEN,
     "namespace kubeflow has no service account pipeline-runner or default-editor", "--namespace"),
    ("service account", f"{ACCOUNTS}/recaption", NOT_THERE, State.BROKEN,
     "namespace kubeflow has no service account recaption", "kubectl apply -n kubeflow -k manifests/pipeline"),
    ("Secret", SECRET, NOT_THERE, State.OPEN, "namespace kubeflow has no Secret recaption", "HF_TOKEN"),
    ("its Secret", OPERATORS_SECRET, NOT_THERE, State.OPEN, "namespace recaption has no Secret storage-keys",
     "needed only where the operator's identity isn't enough"),
    ("its Secret", DEPLOYMENT, NOT_THERE, State.OPEN, "no operator", ""),
    ("its Secret", DEPLOYMENT, without_volumes(), State.OPEN, "mounts no Secret", "apply your overlay"),
    ("Argo Workflows", "/apis/argoproj.io/v1alpha1", NOT_THERE, State.BROKEN, "no Argo", "install Kubeflow Pipelines"),
    ("Kubeflow Trainer", TRAINER, NOT_THERE, State.OPEN,
     "no Kubeflow Trainer", "recipes with `train`: install 2.2 or later, then kubectl apply -k manifests/training"),
    ("Kubeflow Trainer", TRAIN_JOBS, train_jobs("podSpecOverrides"), State.BROKEN, "older than 2.2", "upgrade"),
    ("training runtime", TRAINER, NOT_THERE, State.OPEN, "no Kubeflow Trainer", ""),
    ("training runtime", RUNTIME, NOT_THERE, State.BROKEN,
     "no ClusterTrainingRuntime recaption-torch", "kubectl apply -k manifests/training"),
    ("JobSet", "/apis/jobset.x-k8s.io/v1alpha2", NOT_THERE, State.BROKEN, "no JobSet", "install Kubeflow Trainer"),
    ("Kueue", "/apis/kueue.x-k8s.io", NOT_THERE, State.OPEN, "no Kueue", "only where a recipe's pools name a queue"),
    ("Kueue", QUEUES, {"items": []}, State.OPEN, "namespace kubeflow has no LocalQueue", "only where"),
    ("Kueue", QUEUES, {"items": [{"metadata": {"name": "gpus"}, "status": {"conditions": [
        {"type": "Active", "status": "False", "reason": "Stopped", "message": "Can't submit new workloads"}]}}]},
     State.BROKEN, "LocalQueue gpus is not active: Can't submit new workloads", "ClusterQueue"),
    ("GPU nodes", "/api/v1/nodes", nodes([node(None, 0)]), State.OPEN, "no node has a GPU now", "autoscaler"),
])  # fmt: skip
def test_one_trouble(check: str, path: str, answer: Any, state: State, what: str, remedy: str) -> None:
    with asked(Answers({**healthy(), path: answer})) as context:
        found = find(CHECKS[check], context)
    assert found.state is state, found
    assert re.search(what, found.what), found
    assert re.search(remedy, found.remedy), found
    assert bool(remedy) == bool(found.remedy)


def test_a_cluster_that_trains_nothing_needs_no_trainer() -> None:
    without = {TRAINER: NOT_THERE, "/apis/jobset.x-k8s.io/v1alpha2": NOT_THERE}
    with asked(Answers({**healthy(), **without})) as context:
        found = [find(CHECKS[check], context) for check in ("Kubeflow Trainer", "training runtime", "JobSet")]
    assert [finding.state for finding in found] == [State.OPEN] * 3


def test_the_manifests_operator_is_read_as_it_reads_itself() -> None:
    base = list(yaml.safe_load_all((ROOT / "tests/manifests/golden/base.yaml").read_text()))
    (made,) = (thing for thing in base if thing["kind"] == "Deployment")
    (told,) = (thing for thing in base if thing["kind"] == "ConfigMap")
    path = f"/api/v1/namespaces/recaption/configmaps/{told['metadata']['name']}"
    with asked(Answers({DEPLOYMENT: made, path: told})) as context:
        found, secret = find(CHECKS["its settings"], context), find(CHECKS["its Secret"], context)
    assert secret.what == "namespace recaption has no Secret recaption"
    assert found.state is State.GOOD
    assert found.what.startswith(
        "KFP at http://ml-pipeline.kubeflow:8888, its pods in kubeflow; images registry.example/"
    )


@pytest.mark.parametrize(("check", "path", "secret"), [
    ("its Secret", OPERATORS_SECRET, "storage-keys -n recaption"),
    ("Secret", SECRET, "recaption -n kubeflow"),
])  # fmt: skip
def test_a_store_beside_aws_needs_keys(check: str, path: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no pod's identity: without a Secret nobody gets in. AWS may know the pod's service account."""
    for storage, endpoint, state in (
        ("s3://bucket/recaption", "http://localhost:9000", State.BROKEN),
        ("s3://bucket/recaption", "", State.OPEN),
        ("gs://bucket/recaption", "http://localhost:9000", State.OPEN),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with asked(Answers({**healthy(), path: NOT_THERE}), storage=storage) as context:
            found = find(CHECKS[check], context)
        assert found.state is state
        if state is State.BROKEN:
            assert f"no keys of {storage}" in found.what
            assert f"kubectl create secret generic {secret}" in found.remedy


KUBERNETES = "/api/v1/namespaces/default/services/kubernetes"
CLAIM = "/api/v1/namespaces/kubeflow/persistentvolumeclaims/models"
PROXY = ("HTTPS_PROXY", "http://proxy:3128")


@pytest.mark.parametrize(("pods", "paths", "what", "remedy"), [
    (PodSettings(pull_secrets=("recaption", "mirror")), {}, "RECAPTION_PULL_SECRETS: namespace kubeflow has no Secret "
     "mirror", "kubectl create secret docker-registry mirror -n kubeflow"),
    (PodSettings(volume="models"), {}, "RECAPTION_CACHE_VOLUME: namespace kubeflow has no PersistentVolumeClaim models",
     "make it, with ReadWriteMany"),
    (PodSettings(volume="models"), {CLAIM: {"spec": {"accessModes": ["ReadWriteOnce"]}}},
     "kubeflow/models is ReadWriteOnce, which pods of several nodes can't share", "with ReadWriteMany"),
    (PodSettings(volume="models"), {CLAIM: {"spec": {"accessModes": ["ReadWriteMany"]}}}, "cache of models in m", ""),
    (PodSettings(volume="/var/models"), {"/api/v1/namespaces/kubeflow": {"metadata": {"labels": {
     "pod-security.kubernetes.io/enforce": "baseline"}}}}, "is baseline, which lets no pod have the nodes' /var/models",
     "name a PersistentVolumeClaim"),
    (PodSettings(volume="/var/models"), {"/api/v1/namespaces/kubeflow": {"metadata": {}}}, "models in /var/models", ""),
    (PodSettings((PROXY,)), {}, "NO_PROXY: nothing leaves out ml-pipeline.kubeflow, so it is asked through the proxy",
     "add it in the overlay's ConfigMap"),
    (PodSettings((PROXY, ("NO_PROXY", ".kubeflow"))), {KUBERNETES: {"spec": {"clusterIP": "10.96.0.1"}}},
     "NO_PROXY: .kubeflow leaves out 10.96.0.1", "add it"),
    (PodSettings((PROXY, ("NO_PROXY", ".kubeflow,10.96.0.0/12"))), {KUBERNETES: {"spec": {"clusterIP": "10.96.0.1"}}},
     "they get HTTPS_PROXY, NO_PROXY, no common cache", ""),
])  # fmt: skip
def test_what_all_pods_get(pods: PodSettings, paths: dict[str, Any], what: str, remedy: str) -> None:
    with asked(Answers({**healthy(), **paths}), settings=replace(SETTINGS, pods=pods)) as context:
        found = find(CHECKS["runs' pods"], context)
    assert what in found.what
    assert remedy in found.remedy
    assert found.state is (State.BROKEN if remedy else State.GOOD)


def test_the_pods_settings_are_read_from_the_operators_environment() -> None:
    given = {"KF_PIPELINES_ENDPOINT": "http://x", "HF_ENDPOINT": "https://hub.example", "RECAPTION_CACHE_VOLUME": "/m"}
    expected = PodSettings((("HF_ENDPOINT", "https://hub.example"),), ("a", "b"), "/m")
    assert Settings.from_environment({**given, "RECAPTION_PULL_SECRETS": "a, b"}).pods == expected


def test_a_lease_without_an_operator_is_no_second_trouble() -> None:
    with asked(Answers({**healthy(), DEPLOYMENT: NOT_THERE, LEASE: NOT_THERE})) as context:
        assert find(CHECKS["its Lease"], context) == open_("there is no operator to hold it")


def test_a_profile_has_its_own_account_for_kfp_and_a_setting_names_any() -> None:
    paths = healthy()
    paths[f"{ACCOUNTS}/default-editor"] = paths.pop(f"{ACCOUNTS}/pipeline-runner")
    with asked(Answers(paths)) as context:
        assert "kubeflow/default-editor" in find(CHECKS["launcher's rights"], context).what
    with asked(Answers(paths), settings=replace(SETTINGS, kfp_service_account="mine")) as context:
        assert "has no service account mine" in find(CHECKS["launcher's rights"], context).what


def test_every_tenants_account_and_secret_are_looked_for_where_their_pods_run() -> None:
    text = "tenants: [{namespaces: [a], serviceAccount: a, secret: keys}, {namespaces: [b]}]"
    tenants = Tenants.from_environment({"RECAPTION_TENANTS": text})
    with asked(Answers({**healthy(), SECRET: {}}), settings=replace(SETTINGS, tenants=tenants)) as context:
        found = find(CHECKS["service account"], context)
        assert (found.what, found.remedy) == (
            "namespace kubeflow has no service account a",
            "kubectl create serviceaccount -n kubeflow a",
        )
        assert find(CHECKS["Secret"], context).what == "namespace kubeflow has no Secret keys"
        profile = replace(context, namespace="b")
        assert find(CHECKS["service account"], profile).what == "namespace b has no service account recaption"
        stranger = find(CHECKS["service account"], replace(context, namespace="c"))
        assert stranger.what.startswith("namespace c: this cluster allows a, b")


@pytest.mark.parametrize(("check", "denied", "what", "remedy"), [
    ("its rights", {"resource": "recaptions", "subresource": "status", "verb": "patch"},
     "service account recaption/recaption-operator may not patch recaptions/status.recaption.dev in all namespaces",
     "apply your overlay of manifests/base"),
    ("its rights", {"resource": "jobs", "verb": "delete", "namespace": "kubeflow"},
     "service account recaption/recaption-operator may not delete jobs.batch in namespace kubeflow",
     "kubectl apply -n kubeflow -k manifests/pipeline"),
    ("its rights", {"resource": "leases", "name": "recaption-operator"},
     "service account recaption/recaption-operator may not get/patch leases.coordination.k8s.io in namespace "
     "recaption", "apply your overlay of manifests/base"),
    ("launcher's rights", {"resource": "pods", "subresource": "log"},
     "service account kubeflow/pipeline-runner may not get pods/log in namespace kubeflow",
     "kubectl apply -n kubeflow -k manifests/pipeline; its RoleBinding recaption-launcher must name pipeline-runner"),
])  # fmt: skip
def test_a_right_that_is_missing(check: str, denied: dict[str, str], what: str, remedy: str) -> None:
    def may(spec: dict[str, Any]) -> bool:
        return not denied.items() <= spec["resourceAttributes"].items()

    with asked(Answers(healthy(), may)) as context:
        assert find(CHECKS[check], context) == broken(what, remedy)


def test_rights_are_asked_of_the_account_as_the_api_server_knows_it() -> None:
    specs: list[dict[str, Any]] = []
    with asked(Answers(healthy(), lambda spec: bool(specs.append(spec)))) as context:  # nobody may anything
        found = find(CHECKS["launcher's rights"], context)
        assert found.state is State.BROKEN
        assert found.what.endswith("get pods/log in namespace kubeflow, 2 more")
        yours = find(CHECKS["your rights"], context)
    assert yours.state is State.OPEN  # no fault of the cluster
    assert yours.what.startswith(
        "you may not create/get/list/patch/delete recaptions.recaption.dev in namespace research"
    )
    groups = ["system:serviceaccounts", "system:serviceaccounts:kubeflow", "system:authenticated"]
    launchers = [spec for spec in specs if "user" in spec]
    assert {spec["user"] for spec in launchers} == {"system:serviceaccount:kubeflow:pipeline-runner"}
    assert all(spec["groups"] == groups for spec in launchers)


def test_an_operator_that_watches_two_namespaces_needs_its_rights_there() -> None:
    places: set[str] = set()

    def may(spec: dict[str, Any]) -> bool:
        if spec["resourceAttributes"]["group"] == "recaption.dev":
            places.add(spec["resourceAttributes"]["namespace"])
        return True

    with asked(Answers(healthy(), may), settings=replace(SETTINGS, watched=("a", "b"))) as context:
        assert find(CHECKS["its rights"], context).state is State.GOOD
    assert places == {"a", "b"}


def test_the_rights_are_those_of_the_manifests() -> None:
    for rules, path in (
        (rights.OPERATORS, "base/cluster-role.yaml"),
        (rights.OPERATORS_LEASE, "base/lease-role.yaml"),
        (rights.OPERATORS_CLEANUP, "pipeline/cleanup.yaml"),
        (rights.LAUNCHERS, "pipeline/launcher.yaml"),
    ):
        granted = {
            (group, resource, verb, name)
            for rule in yaml.safe_load((ROOT / "manifests" / path).read_text())["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
            for name in rule.get("resourceNames", [""])
        }
        needed = {
            (rule.group, resource, verb, rule.name)
            for rule in rules
            for resource in rule.resources
            for verb in rule.verbs
        }
        assert needed == granted, path


FORBIDDEN = (403, 'nodes is forbidden: User "alice" cannot list resource "nodes" in API group "" at the cluster scope')


@pytest.mark.parametrize(("check", "path", "what"), [
    ("GPU nodes", "/api/v1/nodes", "not checked: alice may not get /api/v1/nodes"),
    ("its rights", f"{rights.REVIEWS}/subjectaccessreviews", "not checked: alice may not post .*subjectaccessreviews"),
    ("Secret", SECRET, "not checked: alice may not get .*/secrets/recaption"),
    ("its Lease", LEASE, "not checked: namespace recaption: alice may not get leases"),
])  # fmt: skip
def test_what_may_not_be_asked_is_not_broken(check: str, path: str, what: str) -> None:
    with asked(Answers({**healthy(), path: FORBIDDEN})) as context:
        found = find(CHECKS[check], context)
    assert found.state is State.OPEN
    assert re.match(what, found.what)
    assert "verb" in found.remedy


def test_an_api_server_that_goes_away_between_two_questions() -> None:
    with asked(Answers({**healthy(), RUNTIME: (503, "etcd is away")})) as context:
        found = find(CHECKS["training runtime"], context)
    assert found.state is State.AWAY
    assert found.what.startswith("the API server is away")


def test_a_check_that_hangs_or_breaks_stops_no_other() -> None:
    def hangs(context: Context) -> Finding:
        time.sleep(30)
        return good("late")

    def breaks(context: Context) -> Finding:
        raise KeyError("spec")

    began = time.monotonic()
    context = Context(None, SETTINGS, "kubeflow", "recaption")
    late, bug, fine = examine([hangs, breaks, lambda context: good("fine")], context, patience=0.3)
    assert time.monotonic() - began < 5
    assert late == Finding(State.AWAY, "no answer within 0.3 s", "look whether it is overloaded, and try again")
    assert bug.state is State.BROKEN
    assert bug.what == "not checked: KeyError: 'spec'"
    assert fine == good("fine")


def test_without_a_cluster_nothing_of_it_is_asked() -> None:
    found = find(CHECKS["Kueue"], Context(None, SETTINGS, "kubeflow", "recaption"))
    assert found == open_("not asked: there is no API server to ask")


@pytest.mark.parametrize(("states", "code"), [
    ([State.GOOD, State.OPEN], 0), ([State.GOOD, State.AWAY], 75), ([State.AWAY, State.BROKEN], 42),
])  # fmt: skip
def test_the_exit_code_is_the_worst(states: list[State], code: int) -> None:
    assert exit_code({str(i): Finding(state, "") for i, state in enumerate(states)}) == code


# KFP and storage


def of(**given: Any) -> Context:
    return Context(None, SETTINGS, "kubeflow", "recaption", **given)


def test_kfp_that_is_not_named_is_not_checked() -> None:
    found = find(CHECKS["KFP"], of())
    assert found.state is State.OPEN
    assert "kubectl port-forward -n kubeflow svc/ml-pipeline 8888" in found.remedy


def test_kfp_lets_nobody_in_without_a_token() -> None:
    with kfp_server() as (host, kfp):
        kfp.token = "secret"
        found = find(CHECKS["KFP"], of(kfp=Endpoint(host)))
        assert find(CHECKS["KFP"], of(kfp=Endpoint(host, "secret"))).state is State.GOOD
    assert found.state is State.BROKEN
    assert "401" in found.what
    assert found.remedy.startswith("give a valid token (--token-file)")


def test_kfp_of_several_users_is_asked_for_the_runs_namespace() -> None:
    with kfp_server() as (host, kfp):
        kfp.multi_user = True
        found = find(CHECKS["KFP"], of(kfp=Endpoint(host)))
        assert found == good(f"{host} answers: version 2.17.0, several users, asked for namespace kubeflow")


def test_kfp_out_of_reach() -> None:
    with kfp_server() as (host, _):
        pass
    found = find(CHECKS["KFP"], of(kfp=Endpoint(host)))
    assert found.state is State.AWAY
    assert "refused" in found.what
    assert found.remedy == "look whether it runs, and whether this machine may reach it"


def test_a_storage_nobody_may_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    found = find(CHECKS["storage"], of(storage=f"{tmp_path}/file/below"))
    assert found.state is State.BROKEN
    assert f"cannot write {tmp_path}/file/below/recaption-doctor/" in found.what
    assert find(CHECKS["storage"], of(storage="ftp://host/x")).state is State.BROKEN
    assert find(CHECKS["storage"], of()).state is State.OPEN


class Careless(LocalStorage):
    """Replaces what is there, as a store that ignores If-None-Match."""

    def create(self, path: str, data: bytes) -> bool:
        self.write(path, data)
        return True


class Keeping(LocalStorage):
    """Deletes nothing, as a bucket with a retention policy."""

    def delete(self, path: str) -> None:
        pass


class Gone(LocalStorage):
    """Can't be read from, once something is written."""

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        raise TemporaryError("the bucket is away; try again")


@pytest.mark.parametrize(("kind", "state", "what", "left"), [
    (Careless, State.BROKEN, "creates what is there already", 0),
    (Keeping, State.BROKEN, "is still there after it was deleted", 1),
    (Gone, State.AWAY, "the bucket is away", 0),
])  # fmt: skip
def test_a_storage_that_does_not_do_what_commits_need(
    kind: type[LocalStorage], state: State, what: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "open_storage", kind)
    found = find(CHECKS["storage"], of(storage=str(tmp_path)))
    assert found.state is state
    assert what in found.what
    assert len(list(LocalStorage(tmp_path).list("recaption-doctor/"))) == left


# What a person meets


def doctor(host: str, folder: Path, *options: str) -> tuple[int, list[str], str]:
    """Exit code, lines, stderr."""
    env = {**os.environ, "KUBECONFIG": str(kubeconfig(folder / "config", host, "research")), "COLUMNS": "400"}
    env.pop("KF_PIPELINES_ENDPOINT", None)
    command = [sys.executable, "-m", "pipelines.cli", "doctor", *options]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, [line.rstrip() for line in ended.stdout.splitlines()], ended.stderr


def test_a_line_for_each_check_and_an_exit_code(tmp_path: Path) -> None:
    answers = Answers({**healthy(), RUNTIME: NOT_THERE})
    answers.objects[CONFIG]["data"]["RECAPTION_KFP_NAMESPACE"] = "team"
    for name in ("recaption", "pipeline-runner"):
        answers.objects[f"/api/v1/namespaces/team/serviceaccounts/{name}"] = {}
    with api_server(answers) as host:
        code, lines, said = doctor(host, tmp_path, "--storage", str(tmp_path / "storage"))
    text = "\n".join(lines)
    assert (code, said) == (42, ""), text
    assert re.search(rf"^✓ +API server +{host} answers$", text, re.M)
    assert re.search(r"^✗ +training runtime +there is no .* → kubectl apply -k manifests/training$", text, re.M)
    assert re.search(r"^✓ +service account +service account team/recaption is there", text, re.M)
    assert re.search(r"^– +KFP +not checked: its endpoint isn't given → kubectl port-forward", text, re.M)
    assert [line[0] for line in lines].count("✗") == 1
    with api_server(Answers(healthy())) as host:
        assert doctor(host, tmp_path)[0] == 0


def test_a_cluster_out_of_reach_is_said_once(tmp_path: Path) -> None:
    with api_server(Answers({})) as host:
        pass
    code, lines, said = doctor(host, tmp_path, "--kfp", host)
    assert code == 75
    assert "Retrying" not in said
    assert [line.split("  ")[0:2] for line in lines if line[0] == "✗"] == [["✗", "API server"], ["✗", "KFP"]]
    assert lines[0].startswith("✗  API server         the API server is away")
    with api_server(Answers({"/version": (401, "Unauthorized")})) as host:
        code, lines, _ = doctor(host, tmp_path)
    assert code == 42
    assert re.match(r"✗ +API server +the API server doesn't know who is asking .* → log in again", lines[0])
    assert {line[0] for line in lines[1:]} == {"–", " "}


def test_what_remedies_name_is_there() -> None:
    source = "".join(path.read_text() for path in (ROOT / "pipelines/doctor").glob("*.py"))
    folders = set(re.findall(r"-k (manifests/[a-z/]+)", source)) | set(
        re.findall(r"overlay of (manifests/[a-z]+)", source)
    )
    assert {"manifests/training", "manifests/pipeline", "manifests/base"} <= folders
    assert all((ROOT / folder / "kustomization.yaml").is_file() for folder in folders)
    files = set(re.findall(r"(manifests/[a-z/-]+\.yaml)", source))
    assert all((ROOT / file).is_file() for file in files)
    options = {option for parameter in get_command(app).commands["doctor"].params for option in parameter.opts}  # type: ignore[attr-defined]
    assert set(re.findall(r"--(?:namespace|kfp|storage|token-file)\b", source)) <= options
