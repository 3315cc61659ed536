"""The compiled pipeline: its golden file, what kfp says of it, and what every task of it must have."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from components.storage.secret import FOLDER
from pipelines.kubeflow.graph import EVICTIONS
from pipelines.kubeflow.naming import version_name
from pipelines.kubeflow.package import compile_manifests, compile_package
from pipelines.kubeflow.parameters import parameters
from pipelines.kubernetes.pod_settings import PodSettings
from pipelines.planning.graph_nodes import GROUPS, NODES
from tests.pipelines.kubeflow.workflow_size import UUID, workflow_size

GOLDEN = Path(__file__).with_name("golden") / "pipeline.yaml"


@pytest.fixture(scope="module")
def package() -> str:
    return compile_package("registry.example/recaption", "1.2.3")


@pytest.fixture(scope="module")
def parts(package: str) -> tuple[dict[str, Any], dict[str, Any]]:
    specification, platform = yaml.safe_load_all(package)
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks_in(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → task, of all tasks that are containers, however deep."""
    dags = [specification["root"], *specification["components"].values()]
    found = {name: task for dag in dags for name, task in dag.get("dag", {}).get("tasks", {}).items()}
    return {n: t for n, t in found.items() if "executorLabel" in specification["components"][t["componentRef"]["name"]]}


def test_it_is_the_golden_file(package: str) -> None:
    """After a wanted change: recaption pipeline compile --images registry.example/recaption --tag 1.2.3 --output …"""
    assert _without_version(package) == _without_version(GOLDEN.read_text())


def _without_version(package: str) -> str:
    return "\n".join(line for line in package.splitlines() if not line.startswith("sdkVersion: "))


def test_it_passes_kfps_own_loader_and_schema(package: str, parts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    loaded = components.load_component_from_text(package)
    assert loaded.name == "recaption"
    assert set(loaded.pipeline_spec.root.input_definitions.parameters) == {p.name for p in parameters()}
    parsed = json_format.ParseDict(parts[0], pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    assert parsed == loaded.pipeline_spec


def test_the_graph_has_every_group_in_order_and_ends_with_cleanup(parts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    tasks = tasks_in(parts[0])
    assert [group for groups in NODES.values() for group in groups] == list(GROUPS)
    assert set(tasks) == {"plan", *NODES, "cleanup"}
    assert tasks["cleanup"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    for before, after in pairwise(NODES):
        assert tasks[after]["dependentTasks"] == [before]


def test_the_workflow_stays_far_below_its_limit(package: str) -> None:
    """Argo keeps up to 1 MB of a Workflow's nodes, and what comes with a long recipe has to fit, too."""
    values = {p.name: p.default for p in parameters("registry.example/recaption", "1.2.3")}
    values |= {"run": "s3://bucket/recaption/runs/small-0123456789ab", "claimant": UUID, "mine": "true"}
    small = workflow_size(package, values | {"recipe": Path("manifests/samples/small.yaml").read_text()})
    assert small < 400_000
    assert workflow_size(package, values | {"recipe": "x" * 20_000}) < 800_000


def test_every_task_is_fit_for_a_cluster(parts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    specification, platform = parts
    executors = specification["deploymentSpec"]["executors"]
    for name, task in tasks_in(specification).items():
        container = executors[f"exec-{name}"]["container"]
        assert not task["cachingOptions"].get("enableCache"), name
        assert container["command"][0] == "recaption", name
        assert container["image"] in ("{{$.inputs.parameters['image']}}", "{{$.inputs.parameters['operator_image']}}")
        assert {"resourceCpuRequest", "resourceCpuLimit"} < set(container["resources"]), name
        assert {"resourceMemoryRequest", "resourceMemoryLimit"} < set(container["resources"]), name
        assert task["retryPolicy"]["maxRetryCount"] == EVICTIONS, name
        most = int(task["retryPolicy"]["backoffMaxDuration"].removesuffix("s"))
        assert most >= 365 * 24 * 3600, "Argo ends what it started again at this time after its first start"
        assert platform[f"exec-{name}"]["securityContext"] == {
            "runAsUser": "65532", "runAsGroup": "65532", "runAsNonRoot": True,
        }, name  # fmt: skip
        (mounted,) = platform[f"exec-{name}"]["secretAsVolume"]
        assert (mounted["mountPath"], mounted["optional"]) == (FOLDER, True), name
        assert platform[f"exec-{name}"]["emptyDirMounts"][0]["mountPath"] == "/scratch", name


def test_only_the_runs_address_travels_between_tasks(parts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for name in NODES:
        inputs = parts[0]["components"][f"comp-{name}"]["inputDefinitions"]
        assert "artifacts" not in inputs
        assert set(inputs["parameters"]) <= {"run", "claimant", "image", "account", "secret", "cpu", "gpu"}
        assert not parts[0]["components"][f"comp-{name}"].get("outputDefinitions", {}).get("parameters")


def test_the_run_id_is_a_whole_input(parts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """KFP's backend replaces the placeholder only where it is all of an input's value."""
    for name in ("plan", "cleanup"):
        given = tasks_in(parts[0])[name]["inputs"]["parameters"]["kfp_run"]
        assert given == {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}


def test_every_parameter_has_a_default_and_a_description(parts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for name, given in parts[0]["root"]["inputDefinitions"]["parameters"].items():
        assert "defaultValue" in given, name
        assert len(given["description"]) > 10, name


def test_compiling_again_gives_the_same_bytes_and_another_image_another_version(package: str) -> None:
    assert compile_package("registry.example/recaption", "1.2.3") == package
    other = compile_package("registry.example/recaption", "1.2.4")
    assert version_name(other) != version_name(package) == version_name(package.replace("kfp-2.17.3", "kfp-2.17.9"))


def test_every_step_has_what_all_pods_get() -> None:
    """And a launcher reads the same settings from its environment, to hand them on."""
    pods = PodSettings((("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", ".svc")), ("registry",), "models")
    specification, platform = yaml.safe_load_all(compile_package(pods=pods))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, executor in specification["deploymentSpec"]["executors"].items():
        env = {variable["name"]: variable["value"] for variable in executor["container"]["env"]}
        assert PodSettings.from_environment(env) == pods
        assert [secret["secretName"] for secret in executors[name]["imagePullSecret"]] == ["registry"]


def test_the_kubernetes_objects_are_the_same_pipeline(parts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    pipeline, version = yaml.safe_load_all(compile_manifests("registry.example/recaption", "1.2.3", "kubeflow"))
    assert {o["apiVersion"] for o in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert [o["kind"] for o in (pipeline, version)] == ["Pipeline", "PipelineVersion"]
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "recaption"
    assert version["spec"]["pipelineSpec"] == parts[0]
    assert version["spec"]["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] == parts[1]
    assert {o["metadata"]["namespace"] for o in (pipeline, version)} == {"kubeflow"}
    assert len(version["metadata"]["name"]) <= 63
    assert len(json.dumps(version)) < 200_000  # etcd's limit is 1.5 MB
