"""The launcher against a stand-in API server, with Kubernetes' own client: from the start to every way to end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import PermanentError, TemporaryError, Terminated
from components.recipe.recipe import parse_recipe
from components.stages.reshard.stage import ReshardStep
from pipelines.execution import run_status
from pipelines.kubernetes import launcher
from pipelines.kubernetes.cleanup import cleanup
from pipelines.kubernetes.diagnosis import workflow_ended
from pipelines.kubernetes.pod_settings import HANDED_ON
from pipelines.planning.plan import plan_run
from tests.pipelines.execution.test_local import recipe_text
from tests.pipelines.kubernetes.api_server import kubeconfig
from tests.pipelines.kubernetes.conftest import FAST, TASKS, Work, World, plan, uri
from tests.pipelines.kubernetes.controller import DISRUPTED, Pod, controlled
from tests.pools import write_shard

BUSY = 30.0  # seconds for another process on a busy machine


def names(world: World) -> list[str]:
    return [job["metadata"]["name"] for job in world.api.of("jobs")]


@pytest.mark.slow
def test_a_stage_is_done_by_pods_that_run_our_own_command(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pools = [{"name": "few", "parallelism": 1}, {"name": "many", "parallelism": 3, "share": 3}]
    world.run = plan(tmp_path, pools=pools)
    with caplog.at_level(logging.INFO), controlled(world.api) as controller:
        counts = world.launch()
    assert counts["index"]["shards"] == counts["index"]["total"] == TASKS
    assert counts["index"]["samples"] == 3 * TASKS
    assert counts["index"]["state"] == "done"
    jobs = {job["metadata"]["labels"]["recaption.dev/pool"]: job for job in world.api.of("jobs")}
    assert {pool: job["spec"]["completions"] for pool, job in jobs.items()} == {"few": 1, "many": 3}
    assert len(controller.started) == TASKS
    assert "index: 4 of 4 shards, 12 samples" in caplog.text
    with controlled(world.api) as controller:
        world.launch()
    assert not controller.started  # all is done: nothing is launched


def test_only_what_is_missing_is_launched(world: World) -> None:
    with controlled(world.api, Work()):
        world.launch()
    node = world.run.nodes["index"]
    for shard in world.run.pool.shards[1], world.run.pool.shards[3]:
        world.run.storage.delete(f"pools/pool/columns/{node.spec.folder}/{shard.name}.{shard.state}.all.done.json")
    with controlled(world.api, Work()) as controller:
        world.launch()
    (job,) = world.api.of("jobs")
    assert job["metadata"]["annotations"]["recaption.dev/tasks"] == "1,3"
    assert sorted(pod.index for pod in controller.started) == [0, 1]
    assert run_status.unfinished(world.run, node) == []


def test_bad_luck_of_an_index_is_tried_again(world: World) -> None:
    work = Work(lambda pod: (75, "error: storage away\n") if pod.index == 1 and pod.attempt < 2 else None)
    with controlled(world.api, work) as controller:
        world.launch()
    assert [pod.attempt for pod in controller.started if pod.index == 1] == [0, 1, 2]
    assert len(controller.started) == TASKS + 2


def test_bad_luck_that_stays_ends_and_can_be_launched_again(world: World) -> None:
    with (
        controlled(world.api, Work(lambda pod: (75, "error: the disk is full\n") if pod.index == 1 else None)),
        pytest.raises(TemporaryError, match=r"index: 1 tasks failed .*FailedIndexes.*task 1: .*code 75.*disk is full"),
    ):
        world.launch()
    assert run_status.entry(world.run, "index")["state"] == "failed"
    with controlled(world.api, Work()) as controller:
        assert world.launch()["index"]["state"] == "done"
    assert [pod.command[5] for pod in controller.started] == ["1"]


def test_bad_input_fails_its_index_at_once_and_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    said = "2026-11-24 INFO index\nerror: shard 00000002.tar: not a tar\n"
    with (
        controlled(world.api, Work(lambda pod: (42, said) if pod.index == 2 else None)) as controller,
        pytest.raises(PermanentError) as caught,
    ):
        world.launch()
    assert [pod.attempt for pod in controller.started if pod.index == 2] == [0]
    (name,) = names(world)
    assert str(caught.value) == (
        f"index: 1 tasks failed (Job {name}: FailedIndexes); task 2: pod {name}-2-0 on node-1 ended with exit code 42 "
        "(Error): shard 00000002.tar: not a tar"
    )
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"{name}-2-0 | 2026-11-24 INFO index",
        f"{name}-2-0 | error: shard 00000002.tar: not a tar",
    ]
    assert len(run_status.unfinished(world.run, world.run.nodes["index"])) == 1  # the others went on


def test_what_a_log_no_longer_has_the_pod_still_says(world: World) -> None:
    world.api.forbidden.add(("get", "pods/log"))
    with (
        controlled(world.api, Work(lambda pod: (42, "") if pod.index == 0 else None)),
        pytest.raises(PermanentError, match="ended with exit code 42"),
    ):
        world.launch()


def test_a_disruption_costs_no_attempt(world: World) -> None:
    work = Work(lambda pod: (DISRUPTED, "") if pod.index == 0 and pod.attempt < 6 else None)
    with controlled(world.api, work) as controller:
        world.launch()
    assert len([pod for pod in controller.started if pod.index == 0]) == 7


def command(world: World, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    """The launcher as a process of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in HANDED_ON},  # as World.launch has it
        "KUBECONFIG": str(kubeconfig(tmp_path / "kubeconfig", world.address, world.api.namespace)),
    }
    line = [sys.executable, "-m", "pipelines.cli", "launch", "index", uri(world.run), "--image", world.image, *more]
    return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_launcher_that_was_killed_is_followed_by_one_that_adopts(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work()
    work.free.clear()
    with controlled(world.api, work) as controller:
        killed = command(world, tmp_path)
        world.api.wait_for("pod", lambda: len(controller.started) == 2, BUSY)
        killed.kill()
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        work.free.set()
        with caplog.at_level(logging.INFO):
            world.launch()
    assert "is there already; following it" in caplog.text
    assert world.api.requests["create jobs"] == 2  # the second was answered: it is there
    assert sorted((pod.index, pod.attempt) for pod in controller.started) == [(i, 0) for i in range(TASKS)]


@pytest.mark.slow
@pytest.mark.parametrize("terminated", [False, True])
def test_an_evicted_launcher_leaves_its_job_and_a_terminated_run_ends_it(
    world: World, tmp_path: Path, terminated: bool
) -> None:
    world.workflow()
    work = Work()
    work.free.clear()
    with controlled(world.api, work) as controller:
        child = command(world, tmp_path, "--workflow", f"{world.owner.name}/{world.owner.uid}")  # type: ignore[union-attr]
        world.api.wait_for("pod", lambda: len(controller.started) == 2, BUSY)
        if terminated:
            world.workflow(activeDeadlineSeconds=0)  # what KFP's terminate does
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=BUSY)
        assert child.returncode == 143
        assert (names(world) == []) == terminated, said
        assert ("its Jobs are deleted" in said) == terminated
        assert ("its Jobs go on" in said) != terminated
        work.free.set()


def test_a_terminated_run_is_noticed_without_a_signal(world: World) -> None:
    world.workflow()
    work = Work(lambda pod: (world.workflow(activeDeadlineSeconds=0), time.sleep(1), (0, ""))[2])  # type: ignore[func-returns-value]
    with controlled(world.api, work), pytest.raises(Terminated):
        world.launch()
    assert names(world) == []
    assert run_status.entry(world.run, "index")["state"] == "stopped"


def test_who_may_not_see_workflows_goes_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.workflow()
    world.api.forbidden.add(("get", "workflows"))
    with controlled(world.api, Work(lambda pod: time.sleep(0.3))):  # type: ignore[func-returns-value]
        world.launch()
    assert caplog.text.count("may not get workflows.argoproj.io; give it a Role with verb get") == 1


def test_an_owner_is_set_and_a_later_run_takes_over(world: World) -> None:
    work = Work()
    work.free.clear()
    with controlled(world.api, work):
        world.cluster.create("jobs.batch", body_of(world))
        world.workflow()
        work.free.set()
        world.launch()
    (job,) = world.api.of("jobs")
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [world.owner.uid]  # type: ignore[union-attr]


def body_of(world: World, **changed: Any) -> dict[str, Any]:
    """The Job that `launch` makes of this run's index."""
    from components.engine.registry import column_stage
    from components.recipe.nodes import pools_for
    from pipelines.kubernetes.jobs import LaunchedStage, Target, build_job

    compute = world.run.spec.compute
    target = Target(world.cluster.namespace, changed.get("image", world.image), owner=changed.get("owner"))
    work = LaunchedStage(uri(world.run), "index", column_stage("index").needs)
    return build_job(work, pools_for(compute, gpu=False)[0], target, range(TASKS), compute.deadline_hours * 3600)


def test_another_specification_under_the_name_is_one_clear_error(world: World) -> None:
    world.api.put("jobs", body_of(world, image="registry.example/recaption:0"))
    with pytest.raises(PermanentError, match=r"is there with another image .* end it with `recaption cleanup /.*`"):
        world.launch()
    assert len(names(world)) == 1


@pytest.mark.parametrize(
    ("owned", "condition", "code", "replaced"),
    [
        (True, "Failed", 42, False),  # what was bad input stays so: the reason is told again
        (True, "Failed", 75, True),
        (True, "Failed", None, True),  # its pod is gone with its node
        (True, "Complete", None, True),  # its files were lost since
        (False, "Failed", 42, True),  # of another KFP run
    ],
)
def test_a_finished_job_that_is_still_there_is_replaced_unless_its_input_is_bad(
    world: World, owned: bool, condition: str, code: int | None, replaced: bool
) -> None:
    world.workflow()
    body = world.api.put("jobs", body_of(world, owner=world.owner if owned else None))
    name = body["metadata"]["name"]
    world.api.status(name, failedIndexes="0" if condition == "Failed" else "", conditions={condition: "Because"})
    if code is not None:
        ended = {"name": "stage", "state": {"terminated": {"exitCode": code, "reason": "Error"}}}
        world.api.pod(name, 0, phase="Failed", containerStatuses=[ended])
    with controlled(world.api, Work()):
        if replaced:
            assert world.launch()["index"]["state"] == "done"
        else:
            with pytest.raises(PermanentError, match=r"index: 1 tasks failed .* ended with exit code 42"):
                world.launch()
    (job,) = world.api.of("jobs")
    assert (job["metadata"]["uid"] != body["metadata"]["uid"]) == replaced


def test_a_job_that_somebody_deletes_is_said(world: World) -> None:
    def delete(pod: Pod) -> None:
        cleanup(world.cluster, uri(world.run))

    with controlled(world.api, Work(delete)), pytest.raises(TemporaryError, match="was deleted by someone; run again"):  # type: ignore[arg-type]
        world.launch()


def test_progress_is_told_and_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Also of a stage that is over long before the first regular beat."""
    seen = []
    beat = run_status.put

    def spy(run: Any, key: str, value: Any) -> None:
        seen.append(value)
        beat(run, key, value)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(run_status, "put", spy)
        with controlled(world.api, Work(lambda pod: time.sleep(0.4))):  # type: ignore[func-returns-value]
            world.launch(pace=replace(FAST, beat=600.0))
    beats = [value for value in seen if "heartbeat" in value and value["state"] == "running"]
    assert beats[0]["shards"] == 0
    assert 0 < beats[-1]["shards"] <= beats[-1]["total"] == TASKS
    assert beats[-1]["samples"] == 3 * beats[-1]["shards"]
    assert beats[-1]["samples_per_second"] > 0
    assert "2 pods run" in caplog.text
    assert "heartbeat" not in run_status.entry(world.run, "index")


class Divisible(ReshardStep):
    """A step that counts its tasks."""

    runs = 0

    def count_tasks(self, run: object) -> int:
        return 3

    def run(self, run: object) -> None:
        type(self).runs += 1


def test_a_divisible_step_is_shared_and_then_finished_here(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launcher, "step", lambda name: Divisible())
    work = Work(lambda pod: (0, ""))
    with caplog.at_level(logging.INFO), controlled(world.api, work) as controller:
        assert world.launch("reshard")["reshard"]["state"] == "done"
        world.launch("reshard")
    assert sorted(pod.index for pod in controller.started) == [0, 1, 2]  # the second time, only what is missing
    assert Divisible.runs == 2
    assert controller.started[0].command[1:3] == ["stage", "reshard"]
    assert "reshard: 3 of 3 tasks" in caplog.text


def test_names_of_what_can_be_launched(world: World) -> None:
    assert launcher.keys_of(world.run, "index") == ["index"]
    assert launcher.keys_of(world.run, "score") == launcher.keys_of(world.run, "score:raw") == ["score:raw"]
    assert launcher.keys_of(world.run, "caption") == []  # a group without work in this recipe
    with pytest.raises(PermanentError, match=r"launch blip: run test-.* has ingest, index, embed, score, caption"):
        launcher.keys_of(world.run, "blip")
    with pytest.raises(PermanentError, match="launch mix: mix has no tasks to share; use `recaption stage mix RUN`"):
        launcher.keys_of(world.run, "mix")


def test_a_group_without_work_is_not_the_stage_of_its_name(tmp_path: Path) -> None:
    """Cosines of captions are of the stage `score`, and wait for the captions in a group of their own."""
    write_shard(tmp_path / "shards", 0, 1)
    mixtures = [{"name": "close", "rules": [{"text": "blip", "where": [{"score": "blip", "atLeast": 0.2}]}]}]
    run = plan_run(parse_recipe(recipe_text(tmp_path / "out", tmp_path / "shards", mixtures)))
    assert launcher.keys_of(run, "score") == []
    assert launcher.keys_of(run, "score-captions") == launcher.keys_of(run, "score:blip") == ["score:blip"]


def test_a_pool_that_isnt_there(world: World) -> None:
    with pytest.raises(PermanentError, match="no CPU pool h100; of that kind there is cpu"):
        world.launch(only="h100")
    assert names(world) == []


def test_cleanup_ends_a_runs_jobs_and_no_others(world: World, tmp_path: Path) -> None:
    world.api.kinds.add("trainjobs")
    mine = world.api.put("jobs", body_of(world))
    train = {"metadata": {"name": "train", "labels": mine["metadata"]["labels"]}}
    world.api.put("trainjobs", train)
    other = body_of(world)
    other["metadata"] |= {"name": "other", "labels": {**other["metadata"]["labels"], "recaption.dev/run": "other"}}
    world.api.put("jobs", other)
    assert cleanup(world.cluster, uri(world.run)) == [f"jobs/{mine['metadata']['name']}", "trainjobs/train"]
    assert names(world) == ["other"]
    assert cleanup(world.cluster, uri(world.run)) == []


@pytest.mark.parametrize(
    ("spec", "status", "ended"),
    [
        ({}, {"phase": "Running"}, False),
        ({"activeDeadlineSeconds": 0}, {"phase": "Running"}, True),
        ({"activeDeadlineSeconds": 3600}, {"phase": "Running"}, False),
        ({"shutdown": "Terminate"}, {}, True),
        ({}, {"phase": "Failed"}, True),
        ({}, {"phase": "Succeeded"}, True),
    ],
)
def test_whether_a_workflow_is_ended(spec: dict[str, Any], status: dict[str, Any], ended: bool) -> None:
    """A launcher that gets SIGTERM deletes its Jobs if so, and lets them go on if not."""
    found = {"metadata": {"uid": "1"}, "spec": spec, "status": status}
    assert workflow_ended(found, "1") == ended
    assert workflow_ended(found, "2"), "it is another one of that name"
    assert workflow_ended(None, "1"), "it is gone, and the garbage collector hasn't come by yet"
