"""Training launched: a TrainJob per mixture against a stand-in API server; the nodes are played by the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import PermanentError, TemporaryError
from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from pipelines.execution import run_status
from pipelines.kubernetes.cleanup import cleanup
from pipelines.kubernetes.launcher import keys_of
from pipelines.kubernetes.training import as_job
from pipelines.planning.plan import plan_run
from tests.filled import with_index
from tests.pipelines.execution.test_local import recipe_text
from tests.pipelines.kubernetes.api_server import Api, Refused
from tests.pipelines.kubernetes.conftest import FAST, World, uri
from tests.pipelines.kubernetes.test_trainjobs import validate
from tests.pools import write_shard

MIXTURES = [{"name": name, "rules": [{"text": "raw"}] * (n + 1)} for n, name in enumerate(("a", "b", "c"))]
POOLS = [{"name": "a100", "accelerator": {"count": 8}}]


def plan(root: Path, **train: Any) -> Run:
    """Three mixtures to train on; nothing of them is made but the index."""
    write_shard(root / "shards", 0, 3)
    compute = {"pools": POOLS, "train": train}
    text = recipe_text(root / "out", root / "shards", MIXTURES, columns=[], compute=compute, train={"scale": "small"})
    run = plan_run(parse_recipe(text))
    run.save()
    with_index(run)
    return load_run(uri(run))


@pytest.fixture
def trained(world: World, tmp_path: Path) -> World:
    world.run = plan(tmp_path, nodes=2)
    world.api.kinds.add("trainjobs")
    return world


def finish(world: World, job: dict[str, Any]) -> None:
    """As a training that went well: the model's record, then the condition."""
    name = job["metadata"]["annotations"]["recaption.dev/mixture"]
    (mixture,) = (m for m in world.run.trained if m.name == name)
    world.run.storage.write(f"{world.run.model_folder(mixture)}/model.json", b"{}")
    end(world.api, job, "Complete", "JobsCompleted")


def end(api: Api, job: dict[str, Any], kind: str, reason: str) -> None:
    with api.changed:
        api.put("trainjobs", {**job, "status": {"conditions": [{"type": kind, "status": "True", "reason": reason}]}})


def fail(world: World, job: dict[str, Any], *codes: int) -> None:
    """A pod per exit code, then the condition."""
    for rank, code in enumerate(codes):
        name = f"{job['metadata']['name']}-node-0-{rank}-abcde"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"],
            "batch.kubernetes.io/job-name": f"{job['metadata']['name']}-node-0",
            "batch.kubernetes.io/job-completion-index": str(rank),
        }
        state = {"name": "node", "state": {"terminated": {"exitCode": code, "reason": "Error"}}}
        status = {"phase": "Failed", "containerStatuses": [state]}
        pod = {"metadata": {"name": name, "labels": labels}, "spec": {"nodeName": f"node-{rank}"}, "status": status}
        world.api.put("pods", pod)
        world.api.logs[name] = f"started\nerror: node {rank} ended with {code}\n"
    end(world.api, job, "Failed", "FailedJobs")


@contextmanager
def played(world: World, end_of: Callable[[dict[str, Any]], Any]) -> Iterator[list[int]]:
    """Ends every TrainJob some moments after it was created; how many were open, each time one came."""
    stop, opened, seen = threading.Event(), list[int](), set[str]()

    def play() -> None:
        while not stop.wait(0.02):
            jobs = [job for job in world.api.of("trainjobs") if "conditions" not in job.get("status", {})]
            new = [job for job in jobs if job["metadata"]["uid"] not in seen]
            if new:
                opened.append(len(jobs))
                seen.update(job["metadata"]["uid"] for job in new)
                continue
            for job in jobs:
                end_of(job)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield opened
    finally:
        stop.set()
        thread.join(20)


def test_every_mixture_is_trained_one_after_the_other_and_never_twice(trained: World) -> None:
    assert keys_of(trained.run, "train") == ["train"]
    jobs: list[dict[str, Any]] = []
    with played(trained, lambda job: [jobs.append(job), finish(trained, job)]) as opened:
        counts = trained.launch("train")
    assert opened == [1, 1, 1]
    assert counts["train"]["state"] == "done"
    assert trained.api.of("trainjobs") == [], "Kubeflow Trainer deletes none by itself"
    assert [job["metadata"]["labels"]["recaption.dev/mixture"] for job in jobs] == ["a", "b", "c"]
    for job in jobs:
        validate({key: job[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {}})
        assert (job["spec"]["trainer"]["numNodes"], job["spec"]["trainer"]["numProcPerNode"]) == (2, 8)
        # 8 × (8 GiB + 16 batches of 256 × 602,112 bytes)
        assert job["spec"]["trainer"]["resourcesPerNode"]["limits"]["memory"] == "83Gi"
    before = trained.api.requests["create trainjobs"]
    trained.launch("train")
    assert trained.api.requests["create trainjobs"] == before == 3


def test_an_empty_mixture_gets_no_train_job(trained: World) -> None:
    empty = trained.run.spec.mixtures[1]
    chosen = {"shards": [{"rows": 0}], "warnings": ["empty"]}
    trained.run.storage.write(f"{trained.run.mixture_folder(empty)}/mixture.json", json.dumps(chosen).encode())
    ended: list[str] = []

    def end(job: dict[str, Any]) -> None:
        ended.append(job["metadata"]["labels"]["recaption.dev/mixture"])
        finish(trained, job)

    with played(trained, end):
        assert trained.launch("train")["train"]["state"] == "done"
    assert list(dict.fromkeys(ended)) == ["a", "c"]


def test_progress_counts_all_trainings(trained: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    put = run_status.put

    def spy(run: Run, key: str, value: dict[str, Any]) -> None:
        if "tasks" in value:
            told.append((value["tasks"], value["total"]))
        put(run, key, value)

    monkeypatch.setattr(run_status, "put", spy)
    with played(trained, lambda job: finish(trained, job)):
        trained.launch("train")
    assert list(dict.fromkeys(told))[:3] == [(0, 3), (1, 3), (2, 3)]


def test_as_many_at_a_time_as_the_recipe_says(trained: World, tmp_path: Path) -> None:
    trained.run = plan(tmp_path, parallelism=2)
    with played(trained, lambda job: finish(trained, job)) as opened:
        trained.launch("train")
    assert max(opened) == 2
    assert trained.api.requests["create trainjobs"] == 3


def test_a_training_that_fails_stops_no_other_and_says_why(trained: World, caplog: pytest.LogCaptureFixture) -> None:
    def ends(job: dict[str, Any]) -> None:
        if job["metadata"]["labels"]["recaption.dev/mixture"] == "b":
            fail(trained, job, 75, 42)  # the leader lost its peer, whose input was bad
        else:
            finish(trained, job)

    with (
        played(trained, ends),
        pytest.raises(
            PermanentError, match=r"train: 1 tasks failed \(Job train-b-.*FailedJobs.*node-0-1.*code 42.*ended with 42"
        ),
    ):
        trained.launch("train")
    assert "node-0-1-abcde | error: node 1 ended with 42" in caplog.text
    assert run_status.entry(trained.run, "train")["state"] == "failed"
    with played(trained, lambda job: finish(trained, job)):
        trained.launch("train")
    assert run_status.entry(trained.run, "train")["state"] == "done"


def test_bad_luck_is_worth_another_launch(trained: World) -> None:
    with (
        played(trained, lambda job: fail(trained, job, 75, 143)),
        pytest.raises(TemporaryError, match="1 tasks failed"),
    ):
        trained.launch("train")


def test_the_same_kfp_run_trains_anew_what_failed_by_bad_luck_or_left_no_model(trained: World) -> None:
    trained.workflow()
    first = {
        "a": lambda job: fail(trained, job, 75, 143),
        "b": lambda job: end(trained.api, job, "Complete", "JobsCompleted"),
        "c": lambda job: fail(trained, job, 75, 42),
    }
    with (
        played(trained, lambda job: first[job["metadata"]["labels"]["recaption.dev/mixture"]](job)),
        pytest.raises(TemporaryError, match="1 tasks failed"),
    ):
        trained.launch("train")
    before = {job["metadata"]["labels"]["recaption.dev/mixture"]: job for job in trained.api.of("trainjobs")}
    assert set(before) == {"a", "c"}  # why they failed is told by their pods
    with (
        played(trained, lambda job: finish(trained, job)),
        pytest.raises(PermanentError, match=r"1 tasks failed \(Job train-c-.*code 42"),
    ):
        trained.launch("train")
    (kept,) = trained.api.of("trainjobs")
    assert kept["metadata"]["uid"] == before["c"]["metadata"]["uid"]


def test_a_restarted_launcher_adopts_what_is_there(trained: World) -> None:
    trained.workflow()
    begun: list[dict[str, Any]] = []
    with played(trained, lambda job: [begun.append(job), finish(trained, job)]):
        trained.launch("train")
    first = begun[0]
    trained.run.storage.delete(f"{trained.run.model_folder(trained.run.trained[0])}/model.json")
    trained.api.put("trainjobs", first)  # still running when its launcher was evicted
    listed = trained.api.requests["list trainjobs"]  # once more: it is adopted
    adopted: list[dict[str, Any]] = []

    def ends(job: dict[str, Any]) -> None:
        if trained.api.requests["list trainjobs"] > listed:
            adopted.append(job)
            fail(trained, job, 42)

    with played(trained, ends), pytest.raises(PermanentError):
        trained.launch("train")
    assert adopted[0]["metadata"]["uid"] == first["metadata"]["uid"]
    assert adopted[0]["metadata"]["ownerReferences"][0]["kind"] == "Workflow"
    assert cleanup(trained.cluster, uri(trained.run)) == [f"trainjobs/{first['metadata']['name']}"]


def test_without_kubeflow_trainer_it_is_said_at_once(trained: World) -> None:
    trained.api.kinds.remove("trainjobs")
    with pytest.raises(PermanentError, match=r"trainjobs\.trainer\.kubeflow\.org: this cluster has no such kind"):
        trained.launch("train")


def test_without_our_runtime_it_is_said_how_to_install_it(trained: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'admission webhook denied the request: spec.runtimeRef: ClusterTrainingRuntime "recaption-torch" not found'

    def create(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        raise Refused(403, text)

    monkeypatch.setattr(trained.api, "create", create)
    with pytest.raises(PermanentError, match=r"not found; install it with `kubectl apply -k manifests/training`"):
        trained.launch("train")


def test_gpus_that_do_not_divide_the_batch_start_nothing(trained: World, tmp_path: Path) -> None:
    trained.run = plan(tmp_path, nodes=3, gpusPerNode=8)
    with pytest.raises(
        PermanentError, match=r"batch of 4096 can't be divided among 24 processes, .*; use 16 .*spec\.compute\.tr"
    ):
        trained.launch("train")
    assert trained.api.requests["create trainjobs"] == 0


def test_a_node_that_is_missing_is_told_and_nothing_stays(trained: World) -> None:
    def ends(job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        if trained.api.of("pods"):
            return
        condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes have nvidia.com/gpu"}
        labels = {"jobset.sigs.k8s.io/jobset-name": name, "batch.kubernetes.io/job-name": f"{name}-node-0"}
        status = {"phase": "Pending", "conditions": [condition]}
        trained.api.put("pods", {"metadata": {"name": f"{name}-node-0-0-abcde", "labels": labels}, "status": status})

    with (
        played(trained, ends),
        pytest.raises(TemporaryError, match=r"nothing ran for .* no node for pod train-a-"),
    ):
        trained.launch("train", pace=replace(FAST, scarce=1.0))
    assert trained.api.requests["create trainjobs"] == 1  # the others would find no node either
    assert trained.api.of("trainjobs") == []


def test_a_quota_on_gpus_is_told_by_the_child_jobs_event(trained: World) -> None:
    def ends(job: dict[str, Any]) -> None:
        if not trained.api.of("events"):
            message = 'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8'
            trained.api.event(f"{job['metadata']['name']}-node-0", message)
            event = {"kind": "TrainJob", "name": job["metadata"]["name"]}
            trained.api.put("events", {"metadata": {"name": "k"}, "involvedObject": event, "type": "Normal"})  # Kueue's

    with (
        played(trained, ends),
        pytest.raises(TemporaryError, match=r"nothing ran for .* a quota leaves no room for a pod \(.*gpu=8\)"),
    ):
        trained.launch("train", pace=replace(FAST, stuck=0.5, scarce=1.0))


def test_a_train_job_reads_as_a_job() -> None:
    child = {"name": "node", "ready": 1, "active": 1, "succeeded": 0, "failed": 0, "suspended": 0}
    job = {"spec": {"trainer": {"numNodes": 4}}, "status": {"jobsStatus": [child]}}
    assert as_job(job)["status"] == {"jobsStatus": [child], "ready": 4, "active": 4}
    assert as_job({"spec": job["spec"]})["status"] == {"ready": 0, "active": 0}
    assert json.dumps(as_job(job))  # plain values
