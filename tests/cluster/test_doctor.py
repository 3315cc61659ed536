"""The doctor before a real API server: its discovery, its RBAC with the manifests' rules, our CRDs as it keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from kubernetes import client

from pipelines.doctor.diagnosis import CHECKS
from pipelines.doctor.finding import Context, Finding, State, examine, find
from pipelines.kubernetes.cluster import Cluster
from pipelines.operator.runtime.settings import Settings


@pytest.fixture
def context(api: client.ApiClient, namespace: str) -> Context:
    """Operator and runs in the namespace of the test."""
    settings = Settings("http://ml-pipeline.kubeflow:8888", "", watched=(namespace,))
    return Context(Cluster(api, namespace, outage=5.0), settings, namespace, namespace)


def look(context: Context, *names: str) -> dict[str, Finding]:
    return dict(zip(names, examine([CHECKS[name] for name in names], context), strict=True))


def test_a_bare_cluster(context: Context) -> None:
    context = replace(context, namespace="recaption-test-nowhere", operator_namespace="recaption-test-nowhere")
    found = dict(zip(CHECKS, examine(list(CHECKS.values()), context), strict=True))
    ours = {name: found[name].state for name in ("Kubernetes", "operator", "its Lease", "its rights", "Secret")}
    assert ours == {
        "Kubernetes": State.GOOD,
        "operator": State.BROKEN,
        "its Lease": State.OPEN,
        "its rights": State.BROKEN,
        "Secret": State.OPEN,
    }
    assert not any(finding.state is State.AWAY for finding in found.values())
    assert not any("a bug of the doctor" in finding.remedy for finding in found.values())


def test_the_manifests_grant_what_is_needed(context: Context, granted: None) -> None:
    names = ("its rights", "launcher's rights", "service account", "your rights")
    assert {name: f for name, f in look(context, *names).items() if f.state is not State.GOOD} == {}
    context.api.ask("POST", f"/api/v1/namespaces/{context.namespace}/secrets", {"metadata": {"name": "recaption"}})
    assert find(CHECKS["Secret"], context).state is State.GOOD
    nobody = as_account(context, "recaption")
    found = look(nobody, "GPU nodes", "its rights", "Secret", "your rights", "Kueue", "Argo Workflows", "Kubernetes")
    assert {name: f.state for name, f in found.items()} == {
        "GPU nodes": State.OPEN,
        "its rights": State.OPEN,
        "Secret": State.OPEN,
        "your rights": State.OPEN,
        "Kueue": find(CHECKS["Kueue"], context).state,  # everybody may ask which kinds there are
        "Argo Workflows": find(CHECKS["Argo Workflows"], context).state,
        "Kubernetes": State.GOOD,
    }
    who = f"system:serviceaccount:{context.namespace}:recaption"
    assert found["GPU nodes"].what == f"not checked: {who} may not get /api/v1/nodes"


def as_account(context: Context, name: str) -> Context:
    """Who asks is a service account."""
    path = f"/api/v1/namespaces/{context.namespace}/serviceaccounts/{name}/token"
    made: dict[str, Any] = context.api.ask("POST", path, {"spec": {}}) or {}
    theirs = context.api.client.configuration
    settings = client.Configuration(host=theirs.host, api_key={"authorization": f"Bearer {made['status']['token']}"})
    settings.ssl_ca_cert, settings.verify_ssl, settings.retries = theirs.ssl_ca_cert, theirs.verify_ssl, False
    cluster = Cluster(client.ApiClient(settings), context.namespace, outage=5.0)
    return Context(cluster, context.settings, context.namespace, context.operator_namespace)


def test_our_kinds_come_back_as_they_were_sent(context: Context, installed: None) -> None:
    deadline = time.monotonic() + 20
    while (found := find(CHECKS["custom resources"], context)).state is not State.GOOD:  # until it is established
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_what_a_person_sees(namespace: str, installed: None) -> None:
    options = ["--namespace", namespace, "--operator-namespace", namespace]
    command = [sys.executable, "-m", "pipelines.cli", "doctor", *options]
    env = {name: value for name, value in os.environ.items() if name != "KF_PIPELINES_ENDPOINT"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 42, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line[0] != " "]
    assert len(lines) == 1 + len(CHECKS)
    assert lines[0].startswith("✓  API server")
    assert f"namespace {namespace} has no Deployment recaption-operator" in ended.stdout
