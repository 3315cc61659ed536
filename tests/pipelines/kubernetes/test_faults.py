"""What goes wrong around a launch: one clear line, a bounded wait, nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from urllib3.exceptions import InsecureRequestWarning

from components.base.errors import PermanentError, TemporaryError, Terminated, stop_on_sigterm
from components.pool.run import Run
from pipelines.execution import run_status
from pipelines.kubernetes import cluster as cluster_module
from pipelines.kubernetes.cleanup import cleanup
from pipelines.kubernetes.cluster import JOBS, OUTAGE, TIMEOUT, connect
from pipelines.kubernetes.watching import Pace
from pipelines.kubernetes.worker import followed, own_task
from tests.pipelines.kubernetes.conftest import FAST, HASTY, Work, World, plan, uri
from tests.pipelines.kubernetes.controller import controlled
from tests.pipelines.kubernetes.test_launcher import body_of, names


@pytest.mark.parametrize("watching", ["deaf", "gone", "refused"])
def test_a_watch_that_says_nothing_is_listed_over(world: World, watching: str) -> None:
    world.api.watching = watching
    with controlled(world.api, Work(lambda pod: time.sleep(0.2))):  # type: ignore[func-returns-value]
        world.launch()
    assert run_status.unfinished(world.run, world.run.nodes["index"]) == []


def test_a_watch_that_is_refused_at_once_doesnt_spin(world: World) -> None:
    world.api.watching = "refused"
    began = time.monotonic()
    for _ in range(3):
        world.cluster.wait(JOBS, "", "", 0.2)
    assert time.monotonic() - began >= 0.6


@contextmanager
def away(world: World, how: str | None, seconds: float) -> Iterator[None]:
    def back() -> None:
        world.api.away = None

    world.api.away = how
    timer = threading.Timer(seconds, back)
    timer.start()
    yield
    timer.join()


@pytest.mark.parametrize("how", ["reset", "unavailable"])
def test_an_api_server_that_is_away_for_a_while_costs_nothing(world: World, how: str) -> None:
    assert OUTAGE > 4 * 120  # two minutes, with room
    work = Work()
    work.free.clear()
    with controlled(world.api, work) as controller:
        launched = threading.Thread(target=world.launch)
        launched.start()
        world.api.wait_for("pod", lambda: len(controller.started) == 2)
        with away(world, how, 1.5):
            work.free.set()
        launched.join(20)
        assert not launched.is_alive()
    assert run_status.entry(world.run, "index")["state"] == "done"
    assert world.api.requests["create jobs"] == 1


def test_an_api_server_that_stays_away_ends_the_launcher_and_not_the_job(world: World) -> None:
    world.cluster.outage = 0.5
    world.api.put("jobs", body_of(world))
    world.api.away = "reset"
    with pytest.raises(TemporaryError, match=r"the API server is away since 0 s \(.*\); run again to go on"):
        world.launch()
    world.api.away = None
    assert len(names(world)) == 1
    with controlled(world.api, Work()):
        world.launch()


def test_a_lost_answer_doesnt_start_a_second_job(world: World) -> None:
    world.api.away = "lost"
    with controlled(world.api, Work(lambda pod: time.sleep(1))):  # type: ignore[func-returns-value]
        world.launch()
    assert world.api.requests["create jobs"] == 2
    assert len(names(world)) == 1


def test_a_quota_on_jobs_is_waited_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.api.quota = "exceeded quota: team, requested: count/jobs.batch=1, used: count/jobs.batch=9, limited: 9"

    def free() -> None:
        world.api.quota = None

    timer = threading.Timer(0.5, free)
    timer.start()
    with controlled(world.api, Work()):
        world.launch()
    timer.join()
    assert caplog.text.count("exceeded quota: team, requested: count/jobs.batch=1") == 1  # said once


def test_a_quota_on_jobs_is_not_waited_for_forever(world: World) -> None:
    world.api.quota = "exceeded quota: team"
    with pytest.raises(TemporaryError, match=r"index: Job index-cpu-\w+ can't be created since 2 s: .*exceeded quota"):
        world.launch(pace=HASTY)
    assert names(world) == []


def waiting(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "stage", "image": "example/x:1", "state": state}]}


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


@pytest.mark.parametrize(
    ("pod", "event", "kind", "message"),
    [
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "example/x:1"'),
            None,
            PermanentError,
            r'image example/x:1 can\'t be pulled \(ImagePullBackOff: Back-off pulling image "example/x:1"\)',
        ),
        (
            waiting("CreateContainerConfigError", 'secret "recaption" not found'),
            None,
            PermanentError,
            r'pod .* can\'t start \(CreateContainerConfigError: secret "recaption" not found\)',
        ),
        (
            unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            None,
            TemporaryError,
            r"no node for pod .* \(0/3 nodes are available: 3 Insufficient nvidia.com/gpu.\)",
        ),
        (
            None,
            'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1',
            TemporaryError,
            r"a quota leaves no room for a pod \(Error creating: .*gpu=1\)",
        ),
        (
            None,
            'Error creating: pods "x" is forbidden: error looking up service account research/worker: not found',
            PermanentError,
            r"no pod can be created \(Error creating: .*service account research/worker: not found\)",
        ),
        (None, None, TemporaryError, "its Jobs start no pod, and no event says why; is the Job controller there"),
    ],
)
def test_what_keeps_pods_from_running_is_said_and_ends(
    world: World,
    caplog: pytest.LogCaptureFixture,
    pod: dict[str, Any] | None,
    event: str | None,
    kind: type[Exception],
    message: str,
) -> None:
    job = body_of(world)["metadata"]["name"]
    if pod:
        world.api.pod(job, 0, **pod)
    if event:
        world.api.event(job, event)
    with pytest.raises(kind, match=f"index: nothing ran for [0-9]+ s: {message}.*; its Jobs are deleted"):
        world.launch(pace=HASTY)
    assert names(world) == []
    if pod or event:
        assert len(re.findall(message, caplog.text)) == 1  # warned early, and once
        assert re.search(message, run_status.entry(world.run, "index")["waits_for"])
    assert run_status.entry(world.run, "index")["state"] == "failed"


def test_a_pool_that_waits_beside_one_that_runs_is_only_said(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.run = plan(tmp_path, pools=[{"name": "here", "parallelism": 1}, {"name": "gone"}])
    with controlled(world.api, Work(lambda pod: time.sleep(0.8))) as controller:  # type: ignore[func-returns-value]
        controller.held.add("gone")
        launched = threading.Thread(
            target=world.launch, kwargs={"pace": dataclasses.replace(FAST, stuck=1.0, scarce=1.0)}
        )
        launched.start()
        world.api.wait_for("Job", lambda: len(names(world)) == 2)
        job = next(name for name in names(world) if "gone" in name)
        world.api.pod(job, 0, **unscheduled("0/3 nodes are available"))
        world.api.wait_for("second pod", lambda: len(controller.started) == 2)
        time.sleep(0.5)
        controller.held.clear()
        launched.join(20)
        assert not launched.is_alive()
    assert "no node for pod" in caplog.text
    assert run_status.entry(world.run, "index")["state"] == "done"


@pytest.mark.parametrize("well", [True, False])
def test_a_finished_job_may_be_cleared_away_while_another_runs(world: World, tmp_path: Path, well: bool) -> None:
    world.run = plan(tmp_path, pools=[{"name": "fast", "parallelism": 2}, {"name": "slow", "parallelism": 2}])
    raised: list[Exception] = []

    def launch() -> None:
        try:
            world.launch()
        except TemporaryError as error:
            raised.append(error)

    def finished() -> list[str]:
        return [job["metadata"]["name"] for job in world.api.of("jobs") if "conditions" in job.get("status", {})]

    work = Work(lambda pod: None if well or "slow" in pod.job else (75, "error: storage away\n"))
    with controlled(world.api, work) as controller:
        controller.held.add("slow")
        launched = threading.Thread(target=launch)
        launched.start()
        world.api.wait_for("finished Job", lambda: len(names(world)) == 2 and finished())
        time.sleep(0.5)  # some looks of the launcher
        (fast,) = finished()
        world.cluster.delete(JOBS, fast)  # as the TTL controller does
        time.sleep(0.5)
        controller.held.clear()
        launched.join(20)
        assert not launched.is_alive()
    assert run_status.entry(world.run, "index")["state"] == ("done" if well else "failed")
    assert [f"index: 2 tasks failed (Job {fast}: " in str(error) for error in raised] == ([] if well else [True])


def test_a_queued_job_waits_until_kueue_starts_it(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.run = plan(tmp_path, pools=[{"name": "cpu", "queue": "research"}])

    def admit() -> None:
        with world.api.changed:
            (job,) = world.api.of("jobs")
            job["spec"]["suspend"] = False
            world.api.put("jobs", job)

    timer = threading.Timer(3, admit)  # longer than what is called stuck: a queue is no trouble
    timer.start()
    with controlled(world.api, Work()):
        world.launch(pace=dataclasses.replace(FAST, stuck=2.0))
    timer.join()
    assert "is queued until Kueue lets it start" in caplog.text


def test_a_queue_is_not_waited_for_forever(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.kubernetes import launcher

    whole = launcher.FanOut

    def hasty(cluster: Any, target: Any, work: Any, pace: Pace, deadline: float) -> Any:
        return whole(cluster, target, work, pace, 0.5)

    monkeypatch.setattr(launcher, "FanOut", hasty)
    world.run = plan(tmp_path, pools=[{"name": "cpu", "queue": "research"}])
    with pytest.raises(
        PermanentError,
        match=r"waits in its queue for [0-9]+ s, which is spec.compute.deadlineHours; look at its Kueue ",
    ):
        world.launch()
    assert names(world) == []


def test_a_deadline_is_named(world: World) -> None:
    body = world.api.put("jobs", body_of(world))
    watcher = threading.Timer(
        0.3, lambda: world.api.status(body["metadata"]["name"], conditions={"Failed": "DeadlineExceeded"})
    )
    watcher.start()
    said = r"index: .*DeadlineExceeded.*; its time is up, spec.compute.deadlineHours: raise it"
    with pytest.raises(PermanentError, match=said):  # bad luck would be tried again, for twice the time and more
        world.launch()
    watcher.join()


@pytest.mark.parametrize(
    ("verb", "resource", "said"),
    [
        ("create", "jobs", "create jobs.batch"),
        ("list", "jobs", "list jobs.batch"),
        ("watch", "jobs", "watch jobs.batch"),
        ("list", "pods", "list pods"),
        ("list", "events", "list events"),
    ],
)
def test_a_missing_permission_is_named(world: World, verb: str, resource: str, said: str) -> None:
    world.api.forbidden.add((verb, resource))
    with pytest.raises(PermanentError) as caught:
        world.launch()
    assert str(caught.value) == (
        f"namespace research: system:serviceaccount:research:default may not {said}; give it a Role with verb {verb} "
        f"on {said.partition(' ')[2]}"
    )


def test_a_missing_permission_in_all_namespaces_is_named(world: World) -> None:
    world.api.forbidden.add(("list", "jobs"))
    with pytest.raises(PermanentError, match=r"^all namespaces: .* give it a ClusterRole with verb list on jobs.batch"):
        world.cluster.within("").find(JOBS)


def test_a_missing_permission_to_delete_is_named(world: World) -> None:
    world.api.put("jobs", body_of(world))
    world.api.forbidden.add(("delete", "jobs"))
    with pytest.raises(PermanentError, match=r"may not delete jobs.batch"):
        cleanup(world.cluster, uri(world.run))


def test_a_namespace_that_isnt_there_is_named(world: World) -> None:
    world.cluster.namespace = "elsewhere"
    with pytest.raises(PermanentError, match=r"^jobs.batch: namespace elsewhere does not exist$"):
        world.launch()


def test_what_kubernetes_finds_invalid_is_one_line(world: World) -> None:
    body = body_of(world)
    body["spec"]["paralelism"] = 3
    with pytest.raises(PermanentError, match=r"namespace research: can't create jobs.batch: .*paralelism"):
        world.cluster.create(JOBS, body)


def test_no_cluster_is_one_line(tmp_path: Path, world: World) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KUBE")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pipelines.cli", "launch", "index", uri(world.run), "--image", "x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 42
    assert done.stderr.startswith("error: no cluster: this is no pod, and there is no kubeconfig (")
    assert done.stderr.count("\n") == 1


def test_a_pod_finds_the_workflow_it_belongs_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_module.own_workflow(world.cluster) is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("HOSTNAME", "launcher-1")
    owners = [{"kind": "Workflow", "name": "recaption-abcde", "uid": "u"}]
    world.api.put("pods", {"metadata": {"name": "launcher-1", "ownerReferences": owners}})
    found = cluster_module.own_workflow(world.cluster)
    assert found is not None
    assert (found.name, found.uid) == ("recaption-abcde", "u")


def test_a_request_that_hangs_is_given_up() -> None:
    assert TIMEOUT == (5.0, 30.0)  # every request but the watch, which has its own


def test_a_kubeconfig_that_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import kube_config

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(PermanentError, match="no cluster"):
        connect()


def test_a_kubeconfig_that_verifies_no_certificate_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from kubernetes.config import kube_config

    path = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "https://localhost:1", "insecure-skip-tls-verify": True}}
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    known = {"clusters": [cluster], "contexts": [context], "users": [{"name": "c", "user": {"token": "t"}}]}
    path.write_text(json.dumps({**known, "current-context": "c"}))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    with warnings.catch_warnings(record=True) as told:
        connect()
        warnings.warn("a request", InsecureRequestWarning, stacklevel=1)
    assert not told
    assert caplog.text.count("https://localhost:1: its certificate isn't verified") == 1


def test_a_worker_stops_when_its_launcher_has_gone(world: World) -> None:
    run_status.put(world.run, "index", {"state": "running", "heartbeat": time.time()})
    with followed(world.run, "index", every=0.05, stale=60):
        time.sleep(0.2)
    run_status.put(world.run, "index", {"state": "running", "heartbeat": time.time() - 61})
    with pytest.raises(TemporaryError, match="its launcher is silent for 61 s"), followed(world.run, "index", stale=60):
        pass
    run_status.put(world.run, "index", {"state": "running", "heartbeat": time.time() - 59})
    before = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    try:
        with pytest.raises(Terminated), followed(world.run, "index", every=0.05, stale=60):
            time.sleep(10)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_without_a_heartbeat_works(world: World) -> None:
    with followed(world.run, "index", every=0.05, stale=0.1):
        time.sleep(0.3)


def test_a_pods_task_is_the_one_of_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    assert own_task("3,17,200-202") == 200
    with pytest.raises(PermanentError, match="--tasks 3: has 1 tasks, and JOB_COMPLETION_INDEX is 2"):
        own_task("3")
    monkeypatch.delenv("JOB_COMPLETION_INDEX")
    with pytest.raises(PermanentError, match="JOB_COMPLETION_INDEX is not set; use --task"):
        own_task("0-3")


def test_a_write_over_the_status_is_noticed_and_mended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"stages": {"filter:a": {"state": "running", "shards": 9}}}
    save, calls = Run.save_status, []

    def overtaken(run: Run, status: dict[str, Any]) -> None:
        save(run, status)
        calls.append(status)
        if len(calls) == 1:  # another launcher read the file before, and writes it now
            save(run, other)

    monkeypatch.setattr(Run, "save_status", overtaken)
    run_status.put(world.run, "embed", {"state": "running", "shards": 3})
    stages = world.run.status()["stages"]
    assert stages == {**other["stages"], "embed": {"state": "running", "shards": 3}}
