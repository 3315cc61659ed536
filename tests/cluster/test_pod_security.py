"""Our reading of the restricted Pod Security Standard is the API server's: the same pods are refused."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config

from tests.manifests.bad_pods import GOOD, bad_pods
from tests.manifests.rendering import one, render


@pytest.fixture(scope="module")
def restricted() -> Iterator[tuple[client.CoreV1Api, str]]:
    config.load_kube_config()
    api = client.CoreV1Api()
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = f"recaption-restricted-{uuid.uuid4().hex[:8]}"
    api.create_namespace({"metadata": {"name": name, "labels": labels}})
    api.create_namespaced_service_account(name, {"metadata": {"name": "recaption-operator"}})
    yield api, name
    api.delete_namespace(name)


def refusal(place: tuple[client.CoreV1Api, str], spec: dict[str, Any]) -> str:
    """What the API server says against a pod, which is not really made; empty when it admits it."""
    api, namespace = place
    spec = {"automountServiceAccountToken": False, **spec}
    try:
        api.create_namespaced_pod(namespace, {"metadata": {"name": "pod"}, "spec": spec}, dry_run="All")
    except client.ApiException as error:
        return str(error.body)
    return ""


def test_the_operators_pod_is_admitted(restricted: tuple[client.CoreV1Api, str]) -> None:
    template = one(render("base"), "Deployment", "recaption-operator")["spec"]["template"]
    assert refusal(restricted, template["spec"]) == ""


def test_a_good_pod_is_admitted(restricted: tuple[client.CoreV1Api, str]) -> None:
    assert refusal(restricted, GOOD) == ""


@pytest.mark.parametrize("name", sorted(bad_pods()))
def test_a_bad_pod_is_refused(restricted: tuple[client.CoreV1Api, str], name: str) -> None:
    assert "violates PodSecurity" in refusal(restricted, bad_pods()[name][1])
