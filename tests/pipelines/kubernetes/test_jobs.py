"""Jobs from values: whole objects against golden files, and the arithmetic of names, shares and lists of tasks.

After a wanted change, `python -m tests.pipelines.kubernetes.test_jobs` writes the golden files anew; read the diff.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.base.cores import CORES
from components.base.errors import PermanentError
from components.engine.images import MAX_BYTES
from components.engine.stage import DECODER_GIB, Needs
from components.recipe.compute import Accelerator, Compute, NodePool, Toleration
from components.recipe.nodes import cut, pools_for
from pipelines.kubernetes.jobs import (
    LaunchedStage,
    Owner,
    Target,
    build_job,
    job_name,
    label_value,
    parse_ranges,
    ranges,
    run_label,
)
from pipelines.kubernetes.pod_settings import PodSettings

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("1.33", "1.35", "1.37")
RUN = "gs://bucket/recaption/runs/medium-blip2-0123abcd"
CAPTION = LaunchedStage(RUN, "caption:blip2", Needs(24, gpu=True, decoders=None))
INDEX = LaunchedStage(RUN, "index", Needs(1))
TARGET = Target("research", "registry.example/recaption-gpu@sha256:0000")
A100 = NodePool(name="a100", accelerator=Accelerator(), parallelism=64)
CORES_ONLY = NodePool(name="models", accelerator=Accelerator(count=0), cpu="6", parallelism=2)
SPOT = NodePool(
    name="l4-spot",
    node_selector={"cloud.google.com/gke-accelerator": "nvidia-l4"},
    tolerations=[Toleration(key="team", value="vision", effect="NoSchedule")],
    accelerator=Accelerator(count=2),
    parallelism=200,
    spot=True,
    share=3,
    cpu="8",
    memory="48Gi",
    priority_class="low",
    queue="research-gpu",
)
OWNER = Owner("recaption-abcde", "0b1f3c1e-0000-4000-8000-000000000001")
WHOLE = Target("research", TARGET.image, "recaption-worker", "recaption", OWNER)
WEEK = 7 * 24 * 3600
ALOOF = PodSettings(
    (("HF_HUB_OFFLINE", "1"), ("HTTPS_PROXY", "http://proxy.example:3128"), ("NO_PROXY", ".svc,.kubeflow")),
    ("registry", "mirror"),
    "recaption-models",
)
AIR_GAPPED = Target("research", TARGET.image, pods=ALOOF)


def objects() -> dict[str, dict[str, Any]]:
    """By golden file."""
    return {
        "default_gpu": build_job(CAPTION, pools_for(Compute(), gpu=True)[0], TARGET, range(4), WEEK),
        "default_cpu": build_job(INDEX, pools_for(Compute(), gpu=False)[0], TARGET, range(1600), WEEK),
        "spot_with_everything": build_job(CAPTION, SPOT, WHOLE, range(400, 1600), WEEK),
        "what_is_left": build_job(CAPTION, A100, TARGET, [3, 17, 200, 201, 202], WEEK),
        "gpu_stage_without_gpus": build_job(CAPTION, CORES_ONLY, TARGET, range(4), WEEK),
        "air_gapped": build_job(CAPTION, A100, AIR_GAPPED, range(4), WEEK),
        "step": build_job(LaunchedStage(RUN, "reshard", Needs(2)), NodePool(name="cpu"), TARGET, range(160), WEEK),
    }


@pytest.mark.parametrize("name", sorted(objects()))
def test_a_job_is_its_golden_file(name: str) -> None:
    assert objects()[name] == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("decoders", "cpu", "memory"),
    [(0, "16", "8Gi"), (1, "16", "9Gi"), (None, None, "9Gi"), (None, "2500m", "10Gi"), (None, "16", "18Gi")],
)
def test_the_memory_follows_from_the_decoders(decoders: int | None, cpu: str | None, memory: str) -> None:
    work = LaunchedStage(RUN, "faces", Needs(8, decoders=decoders))
    job = build_job(work, NodePool(name="cpu", cpu=cpu), TARGET, [0], WEEK)
    resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == memory


def test_a_decoder_has_room_for_the_largest_image() -> None:
    assert DECODER_GIB * (1 << 30) >= MAX_BYTES + (100 << 20)


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(objects())


@pytest.mark.parametrize(("name", "version"), list(itertools.product(sorted(objects()), VERSIONS)))
def test_kubernetes_accepts_it_strictly(name: str, version: str) -> None:
    kubernetes_validate.validate(objects()[name], version, strict=True)


@pytest.mark.parametrize("name", sorted(objects()))
def test_pods_are_restricted(name: str) -> None:
    """Pod Security Standards, level restricted, rule by rule; and no more of the cluster than a worker needs."""
    pod = objects()[name]["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    kinds = {kind for volume in pod["volumes"] for kind in set(volume) - {"name"}}
    assert kinds <= {"emptyDir", "persistentVolumeClaim"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert all(value == container["resources"]["requests"][key] for key, value in _limits(container).items())


@pytest.mark.parametrize("name", sorted(objects()))
def test_a_worker_is_told_the_cores_it_asked_for(name: str) -> None:
    """Without a limit a container sees all of its node's."""
    (container,) = objects()[name]["spec"]["template"]["spec"]["containers"]
    (told,) = (env["valueFrom"] for env in container["env"] if env["name"] == CORES)
    assert told == {"resourceFieldRef": {"containerName": container["name"], "resource": "requests.cpu"}}


def test_a_gpu_stage_without_a_gpu_asks_for_none_and_has_a_thread_per_core_that_it_asked_for() -> None:
    """Torch would start one for each core of the node, in every pod there."""
    pod = objects()["gpu_stage_without_gpus"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {"requests": {"cpu": "6", "memory": "28Gi"}, "limits": {"memory": "28Gi"}}
    assert "tolerations" not in pod
    (threads,) = (env["valueFrom"] for env in container["env"] if env["name"] == "OMP_NUM_THREADS")
    assert threads == {"resourceFieldRef": {"resource": "requests.cpu"}}


def test_a_nodes_own_folder_can_be_the_cache() -> None:
    target = Target("research", TARGET.image, pods=PodSettings(volume="/var/cache/recaption"))
    pod = build_job(CAPTION, A100, target, [0], WEEK)["spec"]["template"]["spec"]
    assert pod["volumes"][-1]["hostPath"] == {"path": "/var/cache/recaption", "type": "DirectoryOrCreate"}
    assert {"name": "RECAPTION_CACHE", "value": pod["containers"][0]["volumeMounts"][-1]["mountPath"]} in (
        pod["containers"][0]["env"]
    )


def test_what_all_pods_get_is_handed_on_whole() -> None:
    assert PodSettings.from_environment({"HOME": "/", "HTTP_PROXY": "", **ALOOF.as_environment()}) == ALOOF
    assert PodSettings.from_environment({}).as_environment() == {}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"RECAPTION_PULL_SECRETS": "registry,My Secret"},
            "RECAPTION_PULL_SECRETS: found My Secret; expected names of",
        ),
        ({"RECAPTION_CACHE_VOLUME": "./cache"}, "RECAPTION_CACHE_VOLUME: found ./cache; expected the name of a Persis"),
    ],
)
def test_a_setting_that_kubernetes_would_refuse_is_said_at_once(variables: dict[str, str], expected: str) -> None:
    with pytest.raises(PermanentError, match=re.escape(expected)):
        PodSettings.from_environment(variables)


def test_a_pool_without_an_accelerator_serves_gpu_stages_if_it_says_so() -> None:
    cpu = NodePool(name="cpu")
    compute = Compute(pools=[cpu, CORES_ONLY, A100])
    assert pools_for(compute, gpu=True) == [CORES_ONLY, A100]
    assert pools_for(compute, gpu=False) == [cpu]


def _limits(container: Mapping[str, Any]) -> dict[str, str]:
    limits: dict[str, str] = container["resources"]["limits"]
    return limits


def test_bad_input_is_not_tried_again_and_a_disruption_costs_nothing() -> None:
    spec = objects()["default_gpu"]["spec"]
    bad, disrupted = spec["podFailurePolicy"]["rules"]  # the first that matches counts
    assert (bad["action"], bad["onExitCodes"]["values"]) == ("FailIndex", [42])
    assert bad["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else there is no pod failure policy
    assert spec["podReplacementPolicy"] == "Failed"  # nor with another one


def test_the_container_calls_what_the_command_line_has() -> None:
    from typer.testing import CliRunner

    from pipelines.cli import app

    command = objects()["default_gpu"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command == ["recaption", "stage", "caption:blip2", RUN, "--tasks", "0-3", "--launched"]
    result = CliRunner().invoke(app, [*command[1:], "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(option in result.output for option in command if option.startswith("--"))


def test_only_a_queued_job_waits_and_only_one_of_many_pods_starts_smaller() -> None:
    assert "suspend" not in objects()["default_gpu"]["spec"]
    queued = objects()["spot_with_everything"]
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["annotations"]["kueue.x-k8s.io/job-min-parallelism"] == "1"
    alone = build_job(CAPTION, SPOT, TARGET, [7], WEEK)  # Kueue wants the minimum below the parallelism
    assert "kueue.x-k8s.io/job-min-parallelism" not in alone["metadata"]["annotations"]


def test_the_specs_hash_says_what_a_pod_would_be_and_not_which_tasks_are_left() -> None:
    def spec_hash(pool: NodePool = A100, target: Target = TARGET, tasks: range = range(4)) -> str:
        found: str = build_job(CAPTION, pool, target, tasks, WEEK)["metadata"]["annotations"]["recaption.dev/spec-hash"]
        return found

    assert spec_hash(tasks=range(2, 3)) == spec_hash()
    assert spec_hash(target=Target("research", TARGET.image, owner=OWNER)) == spec_hash()
    others = [
        spec_hash(A100.model_copy(update={"memory": "32Gi"})),
        spec_hash(A100.model_copy(update={"parallelism": 2})),
        spec_hash(target=Target("research", "registry.example/recaption-gpu@sha256:1111")),
    ]
    assert len({spec_hash(), *others}) == 4


def test_names_are_labels_and_leave_room_for_an_index() -> None:
    work = LaunchedStage(f"gs://bucket/runs/{'r' * 63}-01234567", f"caption:{'c' * 60}.x", Needs(24, gpu=True))
    pool = NodePool(name="p" * 60 + ".p", accelerator=Accelerator())
    job = build_job(work, pool, TARGET, range(100_000), WEEK)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", job["metadata"]["name"])
    assert len(f"{job['metadata']['name']}-99999") <= 63
    values = list(job["metadata"]["labels"].values())
    assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value) for value in values), values
    kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_names_differ_with_run_stage_and_pool_and_nothing_else() -> None:
    works = [
        LaunchedStage(RUN, "caption:a-b", CAPTION.needs),
        LaunchedStage(RUN, "caption:a.b", CAPTION.needs),
        CAPTION,
    ]
    works += [LaunchedStage(RUN.replace("bucket", "other"), "caption:blip2", CAPTION.needs)]
    assert len({job_name(work, pool) for work in works for pool in (A100, SPOT)}) == 8
    assert job_name(CAPTION, A100) == job_name(LaunchedStage(RUN, "caption:blip2", Needs(1)), A100.model_copy())
    assert run_label(RUN) == run_label(RUN + "/") != run_label(RUN.replace("bucket", "other"))


@given(st.text(min_size=1, max_size=90).filter(lambda text: text[0].isalnum() and text[-1].isalnum()))
def test_label_values_are_short(text: str) -> None:
    assert len(label_value(text)) <= 63


@given(st.integers(1, 20_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=16))
def test_shares_cut_all_tasks_without_gap_or_overlap(tasks: int, shares: list[float]) -> None:
    pools = [NodePool(name=f"p{i}", share=share) for i, share in enumerate(shares)]
    parts = cut(tasks, pools)
    assert [task for part in parts for task in part] == list(range(tasks))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - tasks * share / sum(shares)) <= 1


def test_shares_by_hand() -> None:
    assert cut(10, [A100, SPOT]) == [range(0, 2), range(2, 10)]  # 1 : 3 of 10 is 2.5 : 7.5; a half rounds to even


@given(st.sets(st.integers(0, 3000)).map(sorted))
def test_lists_of_tasks_come_back(tasks: list[int]) -> None:
    assert parse_ranges(ranges(tasks, longest=10**6)) == tasks


def test_lists_of_tasks_by_hand() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert parse_ranges("") == []
    assert ranges(range(0, 4000, 2)) == "0-3998"  # too long to carry in every pod: workers skip what is done
    with pytest.raises(PermanentError, match="tasks 1-x: expected numbers and ranges"):
        parse_ranges("1-x")


def test_gpu_stages_go_to_pools_with_an_accelerator_and_the_others_elsewhere() -> None:
    compute = Compute(pools=[A100, NodePool(name="big", memory="64Gi"), SPOT])
    assert pools_for(compute, gpu=True) == [A100, SPOT]
    assert [pool.name for pool in pools_for(compute, gpu=False)] == ["big"]
    assert pools_for(compute, gpu=True, only="a100") == [A100]
    default = pools_for(Compute(pools=[A100]), gpu=False)
    assert [(pool.name, pool.accelerator, pool.node_selector) for pool in default] == [("cpu", None, {})]
    (default,) = pools_for(Compute(), gpu=True)
    assert default.accelerator == Accelerator(resource="nvidia.com/gpu", count=1)


def test_a_pool_that_isnt_there_is_named() -> None:
    with pytest.raises(PermanentError, match=r"spec.compute.pools: no GPU pool h100; of that kind there is a100, l4-"):
        pools_for(Compute(pools=[A100, SPOT, NodePool(name="cpu")]), gpu=True, only="h100")
    with pytest.raises(PermanentError, match="no CPU pool a100; of that kind there is none"):
        pools_for(Compute(pools=[A100]), gpu=False, only="a100")


def test_more_tasks_than_a_job_may_have_are_refused() -> None:
    with pytest.raises(PermanentError, match=r"100,001 tasks for pool a100, .* raise spec.compute.shardsPerTask"):
        build_job(CAPTION, A100, TARGET, range(100_001), WEEK)


def _walk(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, dict):
        for part in value.values():
            yield from _walk(part)
    elif isinstance(value, list):
        for part in value:
            yield from _walk(part)


@pytest.mark.parametrize("name", sorted(objects()))
def test_a_secret_is_only_referred_to(name: str) -> None:
    secrets = [value for value in _walk(objects()[name]) if isinstance(value, dict) and "secretRef" in value]
    assert secrets == (
        [{"secretRef": {"name": "recaption", "optional": True}}] if name == "spot_with_everything" else []
    )


if __name__ == "__main__":
    for stem, value in objects().items():
        (GOLDEN / f"{stem}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
