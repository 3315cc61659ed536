"""Every pod of the manifests and of the fan-out is a restricted one, and the check can say no."""

from __future__ import annotations

import pytest

from tests.manifests.bad_pods import GOOD, bad_pods
from tests.manifests.pod_security import violations
from tests.manifests.rendering import folders, pods, render
from tests.pipelines.kubernetes import test_jobs


@pytest.mark.parametrize("folder", folders("Kustomization") + folders("Component"))
def test_rendered_pods_are_restricted(folder: str) -> None:
    for value in render(folder):
        for where, metadata, spec in pods(value):
            assert violations(metadata, spec) == set(), f"{value['kind']} {value['metadata']['name']}{where}"
            assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in spec["containers"])


def test_pods_are_found_wherever_they_are() -> None:
    """Also inside custom resources, so that the test above can't pass by finding none."""
    kinds = [v["kind"] for folder in ("base", "training") for v in render(folder) if list(pods(v))]
    assert kinds == ["Deployment", "ClusterTrainingRuntime"]


@pytest.mark.parametrize("name", sorted(test_jobs.objects()))
def test_launched_pods_are_restricted(name: str) -> None:
    ((_, metadata, spec),) = pods(test_jobs.objects()[name]["spec"])
    assert violations(metadata, spec) == set()


def test_a_good_pod_breaks_nothing() -> None:
    assert violations({}, GOOD) == set()


@pytest.mark.parametrize("name", sorted(bad_pods()))
def test_a_bad_pod_breaks_its_control(name: str) -> None:
    control, spec = bad_pods()[name]
    assert violations({}, spec) == {control}


def test_what_only_some_pods_have_is_looked_at() -> None:
    """Controls whose pods the API server refuses before it asks for their security."""
    container = {**GOOD["containers"][0]}
    container["securityContext"] = {"privileged": True, "procMount": "Unmasked"}
    assert {"privileged containers", "/proc mount type"} <= violations({}, {**GOOD, "containers": [container]})
    host_process = {**GOOD, "securityContext": {**GOOD["securityContext"], "windowsOptions": {"hostProcess": True}}}
    assert violations({}, host_process) == {"host process"}
    annotation = {"container.apparmor.security.beta.kubernetes.io/main": "unconfined"}
    assert violations({"annotations": annotation}, GOOD) == {"AppArmor"}
