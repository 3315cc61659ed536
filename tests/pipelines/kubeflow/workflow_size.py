"""Computes how large the Argo Workflow gets that KFP 2.17 makes of a package, when all of its tasks have run.

The rule, from KFP's source (backend/src/v2: compiler/argocompiler and driver). Of each task that is a container, the
Workflow holds these as JSON text within its JSON, several times each: in its arguments and templates, as inputs of the
nodes of the task's driver, as the driver's output, and as inputs of the nodes that execute it:

- the component, the task, the container and its platform's settings, as they stand in the package;
- the patch of the task's pod: the launcher's command with all inputs and outputs and with the component again, our
  command, and the variables, volumes and resources that the container and the platform's settings come to.

A task that is a graph has a driver, too, whose inputs are the task and the whole graph as its component. Such a task
has 4 nodes, one that is a container has 6: a driver and an executor with a node for retries each.

How often each text is there, and the bytes of a node without them (names, times, children, templates, managed fields),
are measured: of the run of the miniature on a cluster, with 96 nodes, 655 kB were 214 of patches, 60 of components and
32 of tasks. `COPIES` and `NODE` make the package of that run as large as that.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

COPIES = {"components": 2.8, "tasks": 2.3, "settings": 2.5, "patches": 3.4}
NODE = 3_150  # bytes
NODES_OF_CONTAINER, NODES_OF_GRAPH = 6, 4
UUID = "5f0c3f0e-6d3b-4c52-9d8e-0123456789ab"
LAUNCHER = [
    *("/kfp-launcher/launch", "--executor_type", "container", "--pipeline_name", "recaption", "--run_id", UUID),
    *("--execution_id", "123", "--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"),
    *("--ml_pipeline_server_address", "ml-pipeline.kubeflow", "--ml_pipeline_server_port", "8887"),
    *("--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local", "--mlmd_server_port", "8080"),
    *("--publish_logs", "true", "--ml_pipeline_tls_enabled=false", "--metadata_tls_enabled=false"),
    *("--cache_disabled=false", "--log_level", "1"),
]

Json = dict[str, Any]


def workflow_size(package: str, values: dict[str, str]) -> int:
    """Return the bytes of the Workflow.

    Args:
        values: the run's parameters, and what `plan` puts out, by name.
    """
    specification, platform = yaml.safe_load_all(package)
    executors = specification["deploymentSpec"]["executors"]
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    size, nodes = dict.fromkeys(COPIES, 0), NODES_OF_GRAPH
    size["components"] += _within(specification["root"]) + _within(values)
    for name, task in tasks(specification):
        component = specification["components"][task["componentRef"]["name"]]
        size["tasks"] += _within(task)
        size["components"] += _within(component)
        if "dag" in component:
            nodes += NODES_OF_GRAPH
            continue
        nodes += NODES_OF_CONTAINER
        container, placed = executors[f"exec-{name}"]["container"], settings[f"exec-{name}"]
        size["settings"] += _within(container) + _within(placed)
        size["patches"] += _within(_patch(name, task, component, container, placed, values))
    return round(sum(COPIES[kind] * found for kind, found in size.items()) + NODE * nodes)


def tasks(specification: Json) -> list[tuple[str, Json]]:
    """List the names and specifications of all tasks, however deep."""
    dags = [specification["root"], *specification["components"].values()]
    return [item for dag in dags for item in dag.get("dag", {}).get("tasks", {}).items()]


def _patch(name: str, task: Json, component: Json, container: Json, placed: Json, values: dict[str, str]) -> Json:
    """Build the patch that KFP's driver writes for a task's pod."""
    given = {key: _value(source, values) for key, source in task["inputs"]["parameters"].items()}
    executor_input = {"inputs": {"parameterValues": given}, "outputs": _outputs(name, component)}

    def resolved(text: str) -> str:
        inputs = re.sub(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}", lambda found: given[found[1]], text)
        return _compact(executor_input) if text == "{{$}}" else inputs

    command = [*LAUNCHER, "--executor_input", _compact(executor_input), "--component_spec", _compact(component), "--"]
    volumes, mounts, variables = _placed(placed)
    main = {
        "name": "main",
        "image": resolved(container["image"]),
        "command": command,
        "args": [resolved(text) for text in [*container["command"], *container["args"]]],
        "env": variables,
        "resources": {half: {"cpu": "500m", "memory": "1Gi"} for half in ("limits", "requests")},
        "volumeMounts": mounts,
        "securityContext": placed["securityContext"],
    }
    return {"containers": [main], "volumes": volumes}


def _outputs(name: str, component: Json) -> Json:
    declared = component.get("outputDefinitions", {})
    folder = f"mlpipeline/v2/artifacts/recaption/{UUID}/{name}/{UUID}"
    kinds = {key: artifact["artifactType"] for key, artifact in declared.get("artifacts", {}).items()}
    return {
        "parameters": {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in declared.get("parameters", {})},
        "artifacts": {
            key: {"artifacts": [{"name": key, "uri": f"minio://{folder}/{key}", "type": kind}]}
            for key, kind in {**kinds, "executor-logs": {"schemaTitle": "system.Artifact"}}.items()
        },
        "outputFile": f"/minio/{folder}/output_metadata.json",
    }


def _placed(placed: Json) -> tuple[list[Json], list[Json], list[Json]]:
    """Return the volumes, their mounts and the variables that a task's platform's settings come to."""
    secret = {"name": "recaption", "optional": True}
    empty, whole, single = (placed.get(kind, []) for kind in ("emptyDirMounts", "secretAsVolume", "secretAsEnv"))
    volumes: list[Json] = [{"name": m["volumeName"], "emptyDir": {"sizeLimit": m["sizeLimit"]}} for m in empty]
    volumes += [{"name": "recaption", "secret": secret} for _ in whole]
    mounts = [{"name": "recaption", "mountPath": mount["mountPath"]} for mount in [*empty, *whole]]
    keys = [key for mapping in single for key in mapping["keyToEnv"]]
    variables = [
        {"name": key["envVar"], "valueFrom": {"secretKeyRef": {"key": key["secretKey"], **secret}}} for key in keys
    ]
    return volumes, mounts, variables


def _value(source: Json, values: dict[str, str]) -> str:
    """Return the value of a task's input, which names a parameter of the run or an output of `plan`."""
    constant = source.get("runtimeValue", {}).get("constant")
    if constant == "{{$.pipeline_job_uuid}}":
        return UUID
    reference = constant or source.get("componentInputParameter") or source["taskOutputParameter"]["outputParameterKey"]
    found = re.search(r"pipelinechannel--(?:plan-)?(\w+)", reference)
    return values[found[1] if found else reference]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _within(value: Any) -> int:
    """Return the bytes of a value as JSON text within the Workflow's JSON."""
    return len(json.dumps(_compact(value)))
