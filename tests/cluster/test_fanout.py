"""The fan-out on a real API server and its Job controller; the nodes are played by the test (see conftest)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from kubernetes import client

from components.base.errors import PermanentError, TemporaryError
from pipelines.execution import run_status
from pipelines.kubernetes.cleanup import cleanup
from pipelines.kubernetes.cluster import JOBS, PODS, WORKFLOWS, Cluster
from pipelines.kubernetes.diagnosis import workflow_ended
from pipelines.kubernetes.jobs import Owner
from tests.cluster.conftest import Real, hands
from tests.pipelines.kubernetes.conftest import TASKS, Work, uri
from tests.pipelines.kubernetes.controller import DISRUPTED
from tests.pipelines.kubernetes.test_jobs import objects
from tests.pipelines.kubernetes.test_launcher import body_of

pytestmark = pytest.mark.timeout(300)


def eventually(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.2)


@pytest.mark.parametrize("name", sorted(objects()))
def test_the_api_server_accepts_the_golden_jobs(real: Real, name: str) -> None:
    body = objects()[name]
    body["metadata"]["namespace"] = real.cluster.namespace
    batch = client.BatchV1Api(real.api)
    batch.create_namespaced_job(real.cluster.namespace, body, dry_run="All", field_validation="Strict")


def test_start_progress_and_end(real: Real, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), hands(real, Work(lambda pod: time.sleep(1.5))) as nodes:  # type: ignore[func-returns-value]
        counts = real.launch()
    assert counts["index"] | {"seconds": 0, "work_seconds": 0} == {
        "shards": TASKS, "total": TASKS, "samples": 3 * TASKS, "failures": {}, "state": "done",
        "seconds": 0, "work_seconds": 0,
    }  # fmt: skip
    assert sorted((pod.index, pod.attempt) for pod in nodes.started) == [(i, 0) for i in range(TASKS)]
    assert "2 pods run" in caplog.text
    with hands(real, Work()) as nodes:
        real.launch()
    assert not nodes.started


def test_an_index_is_tried_again_and_a_disruption_costs_nothing(real: Real) -> None:
    ends = {(1, 0): (75, "error: storage away\n"), (2, 0): (DISRUPTED, ""), (2, 1): (DISRUPTED, "")}
    with hands(real, Work(lambda pod: ends.get((pod.index, pod.attempt)))) as nodes:
        real.launch()
    assert {(pod.index, pod.attempt) for pod in nodes.started} >= {(1, 1), (2, 2)}
    (job,) = real.jobs
    assert job["status"]["succeeded"] == TASKS


def test_bad_input_is_not_tried_again_and_is_told(real: Real) -> None:
    said = "INFO index\nerror: shard 00000002.tar: not a tar\n"
    with (
        hands(real, Work(lambda pod: (42, said) if pod.index == 2 else None)) as nodes,
        pytest.raises(PermanentError, match=r"task 2: pod .* exit code 42 \(Error\): shard 00000002.tar: not a tar$"),
    ):
        real.launch()
    assert [pod.attempt for pod in nodes.started if pod.index == 2] == [0]
    assert len(run_status.unfinished(real.run, real.run.nodes["index"])) == 1


def command(real: Real) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "pipelines.cli", "launch", "index", uri(real.run), "--image", real.image]
    environment = {**os.environ, "POD_NAMESPACE": real.cluster.namespace}
    return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_launcher_that_is_gone_is_followed_by_one_that_adopts(real: Real, end: signal.Signals) -> None:
    work = Work()
    work.free.clear()
    with hands(real, work) as nodes:
        gone = command(real)
        eventually("pods", lambda: len(nodes.started) == 2)
        before = [job["metadata"]["uid"] for job in real.jobs]
        gone.send_signal(end)
        gone.communicate()
        assert gone.returncode == (-9 if end == signal.SIGKILL else 143)
        work.free.set()
        real.launch()
    assert [job["metadata"]["uid"] for job in real.jobs] == before
    assert sorted((pod.index, pod.attempt) for pod in nodes.started) == [(i, 0) for i in range(TASKS)]


def test_cancel_leaves_nothing_behind(real: Real) -> None:
    work = Work()
    work.free.clear()
    with hands(real, work) as nodes:
        child = command(real)
        eventually("pods", lambda: len(nodes.started) == 2)
        assert len(cleanup(real.cluster, uri(real.run))) == 1
        _, said = child.communicate(timeout=60)
        assert child.returncode == TemporaryError.exit_code
        assert "was deleted by someone; run again to go on" in said
        work.free.set()
    assert real.jobs == []
    eventually("end of the pods", lambda: real.cluster.find(PODS, "recaption.dev/run")[0] == [])


def test_deleting_the_workflow_deletes_its_jobs(real: Real) -> None:
    custom, place = client.CustomObjectsApi(real.api), ("argoproj.io", "v1alpha1", real.cluster.namespace, "workflows")
    try:
        made = custom.create_namespaced_custom_object(*place, workflow())
    except client.ApiException as error:
        pytest.skip(f"this cluster has no Argo Workflows: {error.status}")
    real.owner = Owner(made["metadata"]["name"], made["metadata"]["uid"])
    real.cluster.create(JOBS, body_of(real, owner=real.owner))  # type: ignore[arg-type]
    eventually("pods", lambda: len(real.cluster.find(PODS, "recaption.dev/run")[0]) == 2)
    custom.patch_namespaced_custom_object(*place, real.owner.name, {"spec": {"activeDeadlineSeconds": 0}})
    assert workflow_ended(real.cluster.get(WORKFLOWS, real.owner.name), real.owner.uid)
    custom.delete_namespaced_custom_object(*place, real.owner.name)
    eventually("end of the Job", lambda: real.jobs == [])
    eventually("end of the pods", lambda: real.cluster.find(PODS, "recaption.dev/run")[0] == [])
    assert real.cluster.get(WORKFLOWS, real.owner.name) is None


def workflow() -> dict[str, object]:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "recaption-test-"},
        "spec": {"suspend": True, "entrypoint": "none", "templates": [{"name": "none", "suspend": {}}]},
    }


def test_a_missing_permission_is_named(real: Real) -> None:
    settings = real.api.configuration
    with client.ApiClient(settings) as nobody:
        nobody.set_default_header("Impersonate-User", f"system:serviceaccount:{real.cluster.namespace}:nobody")
        real.cluster = Cluster(nobody, real.cluster.namespace)
        with pytest.raises(
            PermanentError, match=r"nobody may not create jobs.batch; give it a Role with verb create on"
        ):
            real.launch()
        with pytest.raises(PermanentError, match=r"nobody may not watch jobs.batch"):
            real.cluster.wait(JOBS, "", "", 1)
    real.cluster = Cluster(real.api, real.cluster.namespace)


def test_a_namespace_that_isnt_there_is_named(real: Real) -> None:
    elsewhere = Cluster(real.api, "recaption-test-nowhere")
    with pytest.raises(PermanentError, match="namespace recaption-test-nowhere does not exist"):
        elsewhere.create(JOBS, {**objects()["default_cpu"], "metadata": {"name": "x"}})


def test_a_watch_ends_when_something_changes_and_by_itself(real: Real) -> None:
    _, version = real.cluster.find(JOBS)
    began = time.monotonic()
    real.cluster.wait(JOBS, "", version, 2.0)
    assert 1.0 < time.monotonic() - began < 4.0
    began = time.monotonic()
    real.cluster.wait(JOBS, "", "1", 5.0)  # compacted or long past: 410, or old events at once
    assert time.monotonic() - began < 6.0
