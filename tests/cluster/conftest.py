"""A namespace of its own on the cluster that KUBECONFIG names, and hands that play the nodes.

Pods of these tests ask for a node label that no node has, so that no kubelet takes them, on any cluster: the test sets
their status, the cluster's own Job controller does the rest. What it doesn't show is a container that really starts.
"""

from __future__ import annotations

import copy
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from components.pool.run import Run
from pipelines.kubernetes.cluster import JOBS, PODS, Cluster
from pipelines.kubernetes.jobs import Owner, Target
from pipelines.kubernetes.launcher import launch
from pipelines.kubernetes.watching import Pace
from pipelines.operator.crd.generate import recaption_crd, schedule_crd
from tests.manifests.rendering import render
from tests.pipelines.kubernetes.conftest import plan
from tests.pipelines.kubernetes.controller import DISRUPTED, Outcome, Pod

NOWHERE = {"name": "nowhere", "nodeSelector": {"recaption.dev/test": "no-node-has-this"}, "parallelism": 2}
PACE = Pace(look=0.5, beat=2.0, stuck=90.0, scarce=90.0)
INDEX = "batch.kubernetes.io/job-completion-index"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
OURS = [(CRDS, crd()) for crd in (recaption_crd, schedule_crd)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"))
            if not os.environ.get("KUBECONFIG"):
                item.add_marker(pytest.mark.skip(reason="needs a Kubernetes cluster: KUBECONFIG is not set"))


@dataclass
class Real:
    """A run, and the namespace its Jobs go to."""

    run: Run
    cluster: Cluster
    api: client.ApiClient
    owner: Owner | None = None
    image: str = "registry.example/recaption:1"

    def launch(self, name: str = "index", **options: Any) -> dict[str, dict[str, Any]]:
        target = Target(self.cluster.namespace, self.image, owner=self.owner)
        return launch(self.run, name, self.cluster, target, pace=PACE, **options)

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return self.cluster.find(JOBS)[0]


@pytest.fixture(scope="session")
def api() -> Iterator[client.ApiClient]:
    settings = client.Configuration()
    config.load_kube_config(os.environ["KUBECONFIG"], client_configuration=settings)
    settings.retries = False
    with client.ApiClient(settings) as found:
        yield found


@pytest.fixture(scope="session")
def namespace(api: client.ApiClient) -> Iterator[str]:
    core, name = client.CoreV1Api(api), f"recaption-test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    try:
        for _ in range(50):
            if any(account.metadata.name == "default" for account in core.list_namespaced_service_account(name).items):
                break
            time.sleep(0.2)
        else:  # a cluster without its controller
            core.create_namespaced_service_account(name, {"metadata": {"name": "default"}})
        yield name
    finally:
        core.delete_namespace(name)


@pytest.fixture(scope="module")
def installed(api: client.ApiClient) -> Iterator[None]:
    """Our kinds; those that were not there before go again."""
    cluster = Cluster(api, "default")
    paths = {f"{path}/{thing['metadata']['name']}": (path, thing) for path, thing in OURS}
    made = [path for path in paths if cluster.ask("GET", path) is None]
    for path in made:
        cluster.ask("POST", *paths[path])
    for kind in ("recaptions", "recaptionschedules"):  # served a moment after they are there
        while cluster.ask("GET", f"/apis/recaption.dev/v1alpha1/{kind}") is None:
            time.sleep(0.2)
    yield
    for path in made:
        cluster.ask("DELETE", path)


@pytest.fixture(scope="session")
def granted(api: client.ApiClient, namespace: str) -> Iterator[None]:
    """The manifests' rights, in the namespace of the test."""
    cluster, unique = Cluster(api, namespace), f"recaption-test-{uuid.uuid4().hex[:8]}"
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole")
    base = [thing for thing in render("base") if thing["kind"] in kinds]
    accounts = [{"kind": "ServiceAccount", "metadata": {"name": "pipeline-runner"}}]
    everywhere = {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": unique},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": unique},
        "subjects": [{"kind": "ServiceAccount", "name": "recaption-operator", "namespace": namespace}],
    }
    for thing in [*copy.deepcopy(base), *accounts, everywhere]:
        kind, meta = thing["kind"], thing["metadata"]
        if kind.startswith("Cluster"):
            if meta["name"] in ("recaption-operator", unique):
                cluster.ask("POST", f"{RBAC}/{kind.lower()}s", {**thing, "metadata": {"name": unique}})
            continue
        meta["namespace"] = namespace
        for subject in thing.get("subjects", ()):
            subject["namespace"] = namespace
        group = "/api/v1" if kind == "ServiceAccount" else RBAC
        cluster.ask("POST", f"{group}/namespaces/{namespace}/{kind.lower()}s", thing)
    yield
    for kind in ("clusterrolebindings", "clusterroles"):
        cluster.ask("DELETE", f"{RBAC}/{kind}/{unique}")


@pytest.fixture
def real(api: client.ApiClient, namespace: str, tmp_path: Path) -> Iterator[Real]:
    world = Real(plan(tmp_path, pools=[NOWHERE]), Cluster(api, namespace, outage=30.0), api)
    try:
        yield world
    finally:
        for job in world.jobs:
            world.cluster.delete(JOBS, job["metadata"]["name"])


@dataclass
class Hands:
    """Plays the nodes: gives pods their status, as the work that a test gives it ends."""

    world: Real
    work: Callable[[Pod], tuple[Outcome, str]]
    started: list[Pod] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def loop(self) -> None:
        seen: set[str] = set()
        attempts: Counter[tuple[str, int]] = Counter()
        threads = []
        while not self.stop.wait(0.2):
            for thing in self.world.cluster.find(PODS, "recaption.dev/run")[0]:
                name = thing["metadata"]["name"]
                if name in seen:
                    continue
                seen.add(name)
                job = thing["metadata"]["labels"]["batch.kubernetes.io/job-name"]
                index = int(thing["metadata"]["labels"][INDEX])
                pod = Pod(job, index, attempts[job, index], thing["spec"]["containers"][0]["command"])
                attempts[job, index] += 1
                self.started.append(pod)
                threads.append(threading.Thread(target=self._pod, args=(pod, name), daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join(10)

    def _pod(self, pod: Pod, name: str) -> None:
        ready = [{"type": "Ready", "status": "True"}]
        running = {"running": {"startedAt": now()}}
        self._status(name, {"phase": "Running", "conditions": ready, "containerStatuses": [container(running, True)]})
        code, text = self.work(pod)
        number = 137 if code == DISRUPTED else int(code)
        ended = {"exitCode": number, "reason": "Error" if number else "Completed", "message": text}
        ended |= {"startedAt": now(), "finishedAt": now()}
        conditions = [{"type": "Ready", "status": "False"}]
        if code == DISRUPTED:
            conditions.append({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"})
        phase = "Failed" if number else "Succeeded"
        status = {"phase": phase, "conditions": conditions, "containerStatuses": [container({"terminated": ended})]}
        self._status(name, status)

    def _status(self, name: str, status: dict[str, Any]) -> None:
        core = client.CoreV1Api(self.world.api)
        try:
            core.patch_namespaced_pod_status(name, self.world.cluster.namespace, {"status": status})
        except client.ApiException as error:
            if error.status not in (404, 409):  # deleted meanwhile
                raise


def container(state: dict[str, Any], ready: bool = False) -> dict[str, Any]:
    return {"name": "stage", "image": "x", "imageID": "x", "ready": ready, "restartCount": 0, "state": state}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def hands(world: Real, work: Callable[[Pod], tuple[Outcome, str]]) -> Iterator[Hands]:
    found = Hands(world, work)
    thread = threading.Thread(target=found.loop, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.stop.set()
        thread.join(30)
