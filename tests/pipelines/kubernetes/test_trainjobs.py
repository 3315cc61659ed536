"""TrainJobs and our training runtime: golden files, Kubeflow Trainer's own schemas, and what the two must agree on.

After a wanted change: `python -m tests.pipelines.kubernetes.test_trainjobs` writes the golden files anew; read the
difference.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from components.base.errors import PermanentError
from components.engine.stage import Needs
from components.recipe.compute import Accelerator, Compute, NodePool, TrainNodes
from components.recipe.nodes import gpus_per_node, train_pool
from components.recipe.training import Train
from components.stages.train import nodes as train_nodes
from components.stages.train.nodes import RESTARTS
from pipelines.kubernetes.jobs import CONTAINER, SCRATCH, USER, Target, build_job
from pipelines.kubernetes.trainjobs import (
    LaunchedTraining,
    build_train_job,
    processes_per_node,
    train_job_name,
    training_needs,
)
from tests.pipelines.kubernetes.test_jobs import A100, AIR_GAPPED, CAPTION, CORES_ONLY, RUN, SPOT, TARGET, WEEK, WHOLE

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "training"
MANIFESTS = HERE.parents[2] / "manifests" / "training"
EIGHT = A100.model_copy(update={"accelerator": Accelerator(count=8)})


def objects() -> dict[str, dict[str, Any]]:
    """By golden file."""

    def made(train: Train, nodes: TrainNodes, pool: NodePool, target: Target) -> dict[str, Any]:
        training = LaunchedTraining(RUN, "raw30-blip2", 2, training_needs(train, nodes, pool))
        return build_train_job(training, nodes, pool, target, WEEK)

    return {
        "one_gpu": made(Train(scale="small"), TrainNodes(), train_pool(Compute()), TARGET),
        "eight_nodes": made(Train(scale="xlarge"), TrainNodes(nodes=8), EIGHT, TARGET),
        "spot_with_everything": made(Train(scale="large"), TrainNodes(nodes=2, gpus_per_node=4), SPOT, WHOLE),
        "air_gapped": made(Train(scale="small"), TrainNodes(), train_pool(Compute()), AIR_GAPPED),
        "two_nodes_without_gpus": made(Train(scale="small"), TrainNodes(nodes=2), CORES_ONLY, WHOLE),
    }


def runtime() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((MANIFESTS / "runtime.yaml").read_text())
    return found


def strict(schema: Any) -> Any:
    """A structural schema as a validator that refuses what the API server would refuse with strict field validation."""
    if isinstance(schema, list):
        return [strict(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        found["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found


def validate(thing: dict[str, Any]) -> None:
    """By the schema of its kind; metadata is Kubernetes' own and checked by hand."""
    schema = strict(json.loads((HERE / "schemas" / f"{thing['kind']}.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(thing, schema)
    assert thing["metadata"].keys() <= {"name", "namespace", "labels", "annotations", "ownerReferences"}


@pytest.mark.parametrize("name", sorted(objects()))
def test_a_train_job_is_its_golden_file(name: str) -> None:
    assert objects()[name] == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(objects())


@pytest.mark.parametrize("thing", [*objects().values(), runtime()], ids=[*objects(), "runtime"])
def test_kubeflow_trainers_schema_accepts_it_strictly(thing: dict[str, Any]) -> None:
    validate(thing)


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job["spec"].update(podSpecOverrides=[]),  # of earlier versions
        lambda job: job["spec"]["trainer"].update(numProcPerNode="auto"),
        lambda job: job["spec"]["trainer"].update(envFrom=[]),
        lambda job: job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"].update(mlPolicy={}),
        lambda job: job["spec"]["runtimePatches"][0].pop("manager"),
        lambda job: job["spec"]["runtimeRef"].pop("name"),
    ],
)
def test_the_validator_refuses_mistakes(change: Any) -> None:
    job = objects()["spot_with_everything"]
    change(job)
    with pytest.raises(jsonschema.ValidationError):
        validate(job)


def test_the_gang_patch_is_valid_on_the_runtime() -> None:
    patch = yaml.safe_load((MANIFESTS.parent / "overlays" / "coscheduling" / "gang.yaml").read_text())
    whole = runtime()
    assert (patch["kind"], patch["metadata"]["name"]) == (whole["kind"], whole["metadata"]["name"])
    whole["spec"] |= patch["spec"]
    validate(whole)


@pytest.mark.parametrize(
    ("scale", "nodes", "pool", "gib"),
    [
        ("small", TrainNodes(), A100, 44.75),  # 16 batches of 4096 × 602,112 bytes are 36.75 GiB
        ("large", TrainNodes(nodes=2), EIGHT, 12.59375),  # 512 per GPU: 4.59375 GiB
    ],
)
def test_memory_grows_with_the_batch_of_a_gpu(scale: Any, nodes: TrainNodes, pool: NodePool, gib: float) -> None:
    assert training_needs(Train(scale=scale), nodes, pool) == Needs(gib, gpu=True)


def test_a_nodes_memory_is_its_gpus_or_the_pools() -> None:
    limits = {name: job["spec"]["trainer"]["resourcesPerNode"]["limits"] for name, job in objects().items()}
    assert limits["one_gpu"]["memory"] == "45Gi"
    assert limits["eight_nodes"]["memory"] == "166Gi"  # 8 × (8 + 16 × 1408 × 602,112 / 2^30)
    assert limits["spot_with_everything"]["memory"] == SPOT.memory


def test_labels_and_names_are_what_kubernetes_takes() -> None:
    for job in objects().values():
        for key, value in job["metadata"]["labels"].items():
            assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value), key
        template = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
        labels = template["template"]["spec"]["template"]["metadata"]["labels"]
        assert labels.items() <= job["metadata"]["labels"].items()


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", fullmatch=True))
def test_pods_of_any_mixture_have_a_name(mixture: str) -> None:
    """JobSet refuses one whose pods' names would exceed 63 characters; Trainer wants RFC 1035."""
    name = train_job_name(LaunchedTraining(RUN, mixture, 0, Needs(16)))
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-1023-abcde") <= 63


def test_names_differ_by_run_and_mixture_only() -> None:
    names = {
        train_job_name(LaunchedTraining(run, m, n, Needs(n + 1)))
        for run in (RUN, f"{RUN}x")
        for m in "ab"
        for n in (0, 1)
    }
    assert len(names) == 4
    assert len({train_job_name(LaunchedTraining(RUN, m, 0, Needs(16))) for m in ("a.b", "a-b")}) == 2


def test_kubeflow_knows_what_the_step_expects() -> None:
    """Processes per node are the GPUs, or a single one; torchrun's own variables are left to Kubeflow Trainer, which
    refuses ours."""
    for job in objects().values():
        trainer = job["spec"]["trainer"]
        gpus = int(trainer["resourcesPerNode"]["limits"].get("nvidia.com/gpu", 0))
        assert trainer["numProcPerNode"] == (gpus or 1)
        assert not [env for env in trainer.get("env", []) if env["name"].startswith("PET_")]
        found = train_nodes.this_node(
            {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(trainer["numNodes"] - 1),
                "PET_MASTER_ADDR": f"{job['metadata']['name']}-node-0-0.{job['metadata']['name']}",
                "PET_MASTER_PORT": "29400",
            }
        )
        assert found.workers(gpus) == trainer["numProcPerNode"]


def test_the_container_calls_what_the_command_line_has() -> None:
    from pipelines.cli import app

    command = objects()["one_gpu"]["spec"]["trainer"]["command"]
    assert command == ["recaption", "stage", "train", RUN, "--mixture", "raw30-blip2", "--launched"]
    result = CliRunner().invoke(app, [*command[1:], "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(option in result.output for option in command if option.startswith("--"))


def test_only_a_queued_training_has_a_queue_and_nothing_is_suspended_by_us() -> None:
    assert objects()["spot_with_everything"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research-gpu"
    assert "kueue.x-k8s.io/queue-name" not in objects()["one_gpu"]["metadata"]["labels"]
    assert not any("suspend" in job["spec"] for job in objects().values())


def test_the_pool_that_trains() -> None:
    cpu = NodePool(name="cpu")
    compute = Compute(pools=[cpu, SPOT, A100], train=TrainNodes(pool="a100"))
    assert train_pool(compute) == A100
    assert train_pool(Compute(pools=[cpu, SPOT, A100])) == SPOT
    assert gpus_per_node(TrainNodes(), SPOT) == 2
    assert gpus_per_node(TrainNodes(gpus_per_node=4), SPOT) == 4
    with pytest.raises(PermanentError, match="cpu is no pool with an accelerator, to train on; there is l4-spot"):
        train_pool(Compute(pools=[cpu, SPOT], train=TrainNodes(pool="cpu")))


@pytest.mark.parametrize(
    ("pools", "asked", "name"),
    [
        ([CORES_ONLY], TrainNodes(), "models"),
        ([CORES_ONLY, A100], TrainNodes(), "a100"),
        ([A100, CORES_ONLY], TrainNodes(pool="models"), "models"),
        ([NodePool(name="small"), CORES_ONLY, A100], TrainNodes(gpus_per_node=0), "models"),
        ([NodePool(name="small"), A100], TrainNodes(gpus_per_node=0), "small"),
        ([A100], TrainNodes(gpus_per_node=0), "cpu"),  # any node
        ([CORES_ONLY], TrainNodes(gpus_per_node=8), "gpu"),  # any node that has them
    ],
)
def test_the_pool_that_trains_where_some_have_no_gpus(pools: list[NodePool], asked: TrainNodes, name: str) -> None:
    pool = train_pool(Compute(pools=pools, train=asked))
    assert pool.name == name
    assert (gpus_per_node(asked, pool) > 0) == (name in ("a100", "gpu"))
    assert processes_per_node(asked, pool) == max(1, gpus_per_node(asked, pool))


def test_a_training_without_gpus_takes_no_pool_that_has_some() -> None:
    with pytest.raises(PermanentError, match="a100 is no pool without an accelerator, to train on; there is models"):
        train_pool(Compute(pools=[A100, CORES_ONLY], train=TrainNodes(gpus_per_node=0)), "a100")


def test_a_training_without_gpus_asks_for_none_and_for_less_shared_memory() -> None:
    trainer = objects()["two_nodes_without_gpus"]["spec"]["trainer"]
    # 8 GiB + 2 loaders × 4 batches of 2048 × 602,112 bytes
    assert trainer["resourcesPerNode"] == {"requests": {"cpu": "6", "memory": "18Gi"}, "limits": {"memory": "18Gi"}}
    (threads,) = (env["valueFrom"] for env in trainer["env"] if env["name"] == "OMP_NUM_THREADS")
    assert threads == {"resourceFieldRef": {"resource": "requests.cpu"}}


# The runtime: what it must have in common with our other pods, and with the step.


def pod() -> dict[str, Any]:
    (job,) = runtime()["spec"]["template"]["spec"]["replicatedJobs"]
    found: dict[str, Any] = job["template"]["spec"]["template"]["spec"]
    return found


def test_the_runtimes_pods_are_as_restricted_as_our_jobs() -> None:
    ours = build_job(CAPTION, A100, TARGET, range(2), WEEK)["spec"]["template"]["spec"]
    for key in ("restartPolicy", "automountServiceAccountToken", "enableServiceLinks", "securityContext"):
        assert pod()[key] == ours[key], key
    (container,), (worker,) = pod()["containers"], ours["containers"]
    assert worker["name"] == CONTAINER
    assert pod()["securityContext"]["runAsUser"] == USER
    for key in ("securityContext", "terminationMessagePolicy", "volumeMounts"):
        assert container[key] == worker[key], key
    *common, restarts = container["env"]
    assert all(env in worker["env"] for env in common)
    assert {env["name"]: env["value"] for env in common} == {"HOME": SCRATCH, "TMPDIR": SCRATCH}
    assert restarts["name"] == RESTARTS
    label = "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"
    assert restarts["valueFrom"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": label}}
    assert [set(volume) - {"name"} for volume in pod()["volumes"]] == [{"emptyDir"}] * 2


def test_only_the_memory_limit_bounds_the_batches_in_shared_memory() -> None:
    """Kubernetes sizes a memory volume without a limit of its own by the pod's: xlarge on 32 GPUs fills 101 GiB."""
    (shm,) = (volume for volume in pod()["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory"}


def test_bad_input_ends_a_training_and_a_disruption_costs_no_restart() -> None:
    """JobSet's rules see only the Job's failure; Kubernetes' messages (pod_failure_policy.go) tell two causes apart."""
    spec = runtime()["spec"]["template"]["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    bad, disrupted = job["podFailurePolicy"]["rules"]
    assert bad["onExitCodes"] == {"containerName": "node", "operator": "In", "values": [PermanentError.exit_code]}
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert job["backoffLimit"] == 0
    messages = {
        "RestartJobSetAndIgnoreMaxRestarts": "Pod research/train-x-node-0-1-abcde has condition DisruptionTarget "
        "matching FailJob rule at index 1",
        "FailJobSet": "Container node for pod research/train-x-node-0-1-abcde failed with exit code 42 matching "
        "FailJob rule at index 0",
    }
    for action, message in messages.items():
        rules = spec["failurePolicy"]["rules"]
        patterns = [rule.get("onJobFailureMessagePatterns", [""]) for rule in rules]
        first = next(r for r, some in zip(rules, patterns, strict=True) if any(re.search(p, message) for p in some))
        assert (first["action"], first["onJobFailureReasons"]) == (action, ["PodFailurePolicy"])
    assert (spec["failurePolicy"]["maxRestarts"], spec["failurePolicy"]["restartStrategy"]) == (10, "BlockingRecreate")


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for golden, thing in objects().items():
        (GOLDEN / f"{golden}.yaml").write_text(yaml.safe_dump(thing, sort_keys=False, width=120))
