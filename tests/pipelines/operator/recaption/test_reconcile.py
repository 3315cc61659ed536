"""A Recaption's life, as a user sees it: real KFP client, real plan step, stand-in servers."""

from __future__ import annotations

import json
import re
from math import inf

import pytest

from components.base.errors import PermanentError
from components.pool.run import load_run
from pipelines.kubeflow.parameters import NOT_HERE
from pipelines.kubernetes.cluster import RECAPTIONS
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.recaption.decide import FOLLOW
from tests.pipelines.operator.place import Place


def start(here: Place) -> None:
    here.apply()
    here.look()
    here.play()
    here.look()


def test_from_apply_to_its_results(here: Place) -> None:
    here.apply()
    here.look()
    assert here.phase() == "Pending" or here.phase() == "Running"
    run = here.runs()[0]
    assert re.fullmatch(r"research\.test-[0-9a-f]{8}-[0-9a-f]{12}-1", run["display_name"])
    assert run["runtime_config"]["parameters"]["job_service_account"] == "recaption"
    here.play()
    here.look()
    here.progress("caption:blip2", state="running", shards=3, total=8, samples=300, samples_per_second=7.5, pods=2)
    assert here.look() == FOLLOW
    status = here.status()
    assert (status["phase"], status["stage"], status["progress"], status["rate"]) == (
        "Running",
        "caption:blip2",
        "3/8 shards",
        "7.5/s",
    )
    assert status["stages"][0]["samples"] == 300
    assert status["kfp"]["link"] == f"https://kfp.example/#/runs/details/{run['run_id']}"
    here.finish()
    assert here.look() == inf
    status = here.status()
    assert status["phase"] == "Succeeded"
    assert status["report"] == f"{status['run']}/report.html"
    assert [dataset["mixture"] for dataset in status["datasets"]] == ["raw"]
    assert here.reason("Complete") == "True Finished"
    assert here.reason("Running") == "False Finished"
    assert {"Valid", "Pending", "KFPRun", "Finished"} <= set(here.events())
    assert len(here.runs()) == 1


def test_an_empty_mixture_is_in_the_status_with_why(here: Place) -> None:
    start(here)
    here.finish()
    run = load_run(here.status()["run"])
    path = f"{run.folder}/results.json"
    empty = [{"mixture": "nobody", "why": "rule 1: \x1b[31m" + "no pair, " * 1000}]
    run.storage.write(path, json.dumps(json.loads(run.storage.read(path)) | {"empty": empty}).encode())
    here.look()
    [found] = here.status()["empty"]
    assert (found["mixture"], found["why"][:24]) == ("nobody", "rule 1: [31mno pair, no ")
    assert len(found["why"]) < 600


def test_what_waits_is_said(here: Place) -> None:
    start(here)
    here.progress("embed", state="running", shards=0, total=8, waits_for="0/3 nodes are available: Insufficient GPU")
    here.look()
    assert here.reason("Running") == "True Waiting"
    assert "0/3 nodes" in here.status()["conditions"][1]["message"]


def test_nothing_is_written_when_nothing_changes(here: Place) -> None:
    start(here)
    here.progress("embed", state="running", shards=1, total=8)
    here.look()
    before = here.api.requests["patch recaptions"]
    for _ in range(5):
        here.look()
    assert here.api.requests["patch recaptions"] == before
    here.finish()
    here.look()
    asked, before = len(here.kfp.asked), here.api.requests.total()
    here.look()
    assert len(here.kfp.asked) == asked
    assert here.api.requests.total() == before


def test_an_invalid_one_is_refused_with_the_words_of_the_command_line(here: Place) -> None:
    here.apply(mixtures=[{"name": "m", "rules": [{"text": "blip2"}]}])
    assert here.look() == inf
    assert here.phase() == "Refused"
    message = here.status()["conditions"][0]["message"]
    assert "spec.mixtures[0].rules[0].text: blip2 is no text; there is raw" in message
    assert not here.runs()
    here.apply(mixtures=[{"name": "m", "rules": [{"text": "raw"}]}])
    here.look()
    assert here.reason("Accepted") == "True Valid"
    assert len(here.runs()) == 1


def test_private_networks_are_refused_whatever_the_crd_says(here: Place) -> None:
    pool = {"name": "pool", "urls": str(here.folder / "urls.csv")}
    here.apply(pool=pool, download={"allowNetworks": ["10.0.0.0/8"]})
    assert here.look() == inf
    assert here.phase() == "Refused"
    assert here.status()["conditions"][0]["message"] == f"recipe: spec.download.allowNetworks: {NOT_HERE}"
    assert not here.runs()


def test_suspend_and_resume_are_one_kfp_run(here: Place) -> None:
    start(here)
    here.left_over()
    here.apply(suspend=True)
    here.look()
    assert here.phase() == "Suspended"
    assert here.runs()[0]["state"] == "CANCELING"
    here.play()
    assert here.look() == inf
    assert here.jobs() == []
    assert here.run().claim("another") == "another"
    here.run().storage.delete(f"{here.run().folder}/claim.json")
    here.apply(suspend=False)
    here.look()
    assert here.runs()[0]["state"] == "RUNNING"
    here.look()
    assert here.phase() == "Running"
    assert here.reason("Suspended") == "False Resumed"
    here.finish()
    here.look()
    assert here.phase() == "Succeeded"
    assert len(here.runs()) == 1


def test_what_kfp_cannot_resume_a_new_run_goes_on_with(here: Place) -> None:
    start(here)
    here.apply(suspend=True)
    here.look()
    here.play()
    here.look()
    here.kfp.refuses = {"retry"}
    here.apply(suspend=False)
    here.look()
    assert [run["state"] for run in here.runs()] == ["FAILED", "PENDING"]
    here.play()
    here.look()
    assert here.phase() == "Running"
    assert here.status()["attempts"] == 2
    assert here.run().claim("x") == here.runs()[1]["run_id"]


def test_one_that_is_suspended_from_the_start_starts_nothing(here: Place) -> None:
    here.apply(suspend=True)
    assert here.look() == inf
    assert here.phase() == "Suspended"
    assert not here.runs()
    here.apply(suspend=False)
    here.look()
    assert len(here.runs()) == 1


def test_a_failed_run_starts_again_by_annotation_once(here: Place) -> None:
    start(here)
    here.ends("embed", PermanentError("spec.scorer.model: /models/x does not exist"))
    here.left_over()
    here.finish("FAILED")
    assert here.look() == inf
    assert here.phase() == "Failed"
    assert here.jobs() == []
    failed = here.status()["conditions"][-1]
    assert failed["reason"] == "Mistake"
    assert "stage embed: spec.scorer.model: /models/x does not exist (KFP run runs-1)" in failed["message"]
    assert f"kubectl annotate --overwrite recaption test -n research {RETRY}=" in failed["message"]
    assert [e["type"] for e in here.api.of("events") if e["reason"] == "Mistake"] == ["Warning"], "told once"
    for _ in range(2):
        here.apply(annotations={RETRY: "1"})
        here.look()
        here.play()
        here.look()
    assert [run["state"] for run in here.runs()] == ["FAILED", "RUNNING"]
    assert here.phase() == "Running"
    assert here.reason("Failed") == "False Pending"
    assert "completionTime" not in here.status()


def test_a_failed_run_starts_again_when_its_nodes_are_changed(here: Place) -> None:
    start(here)
    here.apply(compute={"pools": [{"name": "a", "parallelism": 2}]})
    here.look()
    assert len(here.runs()) == 1, "of a run that goes on, compute counts from its next attempt"
    here.finish("FAILED")
    here.look()
    here.look()
    assert len(here.runs()) == 2


def test_an_edit_ends_the_run_and_starts_another(here: Place) -> None:
    start(here)
    first = here.status()["run"]
    here.left_over()
    here.apply(mixtures=[{"name": "other", "rules": [{"text": "raw"}]}])
    here.look()
    assert [run["state"] for run in here.runs()] == ["CANCELING"]
    here.play()
    here.look()
    assert [run["state"] for run in here.runs()] == ["FAILED", "PENDING"]
    assert here.jobs() == []
    here.play()
    here.look()
    assert here.status()["run"] != first
    here.apply(mixtures=here.spec()["mixtures"])
    for _ in range(3):
        here.look()
        here.play()
    here.look()
    assert here.status()["run"] == first
    assert here.phase() == "Running"
    assert [run["state"] for run in here.runs()] == ["FAILED", "FAILED", "RUNNING"]


def test_a_deleted_one_ends_its_run_and_what_that_left(here: Place) -> None:
    start(here)
    here.left_over()
    run = here.run()
    here.delete()
    here.look()
    assert here.object() is not None
    here.play()
    assert here.look() == inf
    assert here.object() is None
    assert here.jobs() == []
    assert here.runs()[0]["state"] == "FAILED"
    assert run.claim("next") == "next"


def test_one_that_is_done_is_let_go_at_once(here: Place) -> None:
    start(here)
    here.finish()
    here.look()
    asked = len(here.kfp.asked)
    here.delete()
    here.look()
    assert here.object() is None
    assert len(here.kfp.asked) == asked


def test_two_of_the_same_recipe_run_it_once(here: Place) -> None:
    start(here)
    here.left_over()
    here.apply("test2", mixtures=[{"name": "raw", "rules": [{"text": "raw"}]}])
    # the run's name has the recipe's in it, so that only an object of the same name elsewhere can be the same run
    other = here.runs()[0]["runtime_config"]["parameters"]
    here.look("test2")
    here.runs()[1]["runtime_config"]["parameters"] = other
    here.play()
    here.look("test2")
    assert here.phase("test2") == "Failed"
    assert "of another object that asks for the same" in here.status("test2")["conditions"][-1]["message"]
    assert here.jobs() == ["left"], "the other one's Jobs are left alone"
    here.delete("test2")
    here.look("test2")
    assert here.run().claim("x") == here.runs()[0]["run_id"]


def test_a_run_that_was_done_before_is_done(here: Place) -> None:
    start(here)
    here.finish()
    here.look()
    here.delete()
    here.look()
    here.apply()
    here.look()
    here.play()
    here.look()
    assert here.runs()[1]["state"] == "SUCCEEDED"
    assert here.phase() == "Succeeded"


@pytest.mark.parametrize("gone", ["deleted", "canceled"])
def test_a_kfp_run_that_somebody_ended(here: Place, gone: str) -> None:
    start(here)
    here.left_over()
    if gone == "deleted":
        here.kfp.held["runs"].clear()
    else:
        here.runs()[0]["state"] = "CANCELING"
        here.runs()[0]["state"] = "FAILED"
    here.look()
    assert here.reason("Failed") == ("True KFPRunDeleted" if gone == "deleted" else "True Canceled")
    assert here.look() == inf
    here.apply(annotations={RETRY: "now"})
    here.look()
    here.play()
    here.look()
    assert here.phase() == "Running"


def test_several_users_each_have_their_namespace(here: Place) -> None:
    here.kfp.multi_user = True
    start(here)
    assert here.phase() == "Running"
    assert here.deps.kfp.namespace_of("research") == "research"


def test_a_status_that_was_wiped_is_found_again(here: Place) -> None:
    start(here)
    name = here.status()["kfp"]["name"]
    here.deps.cluster.patch(RECAPTIONS, "test", {"status": None}, "status")
    here.look()
    assert here.status()["kfp"]["name"] == name
    assert len(here.runs()) == 1


def test_costs_are_told_by_the_prices_that_the_object_has_now(here: Place) -> None:
    here.apply(compute={"pools": [{"name": "a100", "accelerator": {"count": 2}, "price": 2}]})
    here.look()
    here.play()
    here.look()
    work = {"a100": {"seconds": 5400, "samples": 90, "devices": 2, "unit": "GPU"}}
    here.progress("embed", state="running", shards=3, total=8, work=work, retries=4, reused={})
    here.progress("train", state="running", tasks=0, total=1, checkpoints=3, checkpoints_total=5)
    run = here.run()
    run.save_status({**run.status(), "predicted": {"embed": {**work, "cpu": {**work["a100"], "unit": "core"}}}})
    here.look()
    status = here.status()
    assert status["costs"] == {
        **{"spentGpuHours": 3.0, "spentCoreHours": 0.0, "spentMoney": 6.0},
        **{"predictedGpuHours": 3.0, "predictedCoreHours": 3.0, "predictedMoney": 6.0},
    }
    embed, train = status["stages"]
    assert (embed["gpuSeconds"], embed["retries"]) == (10_800, 4)
    assert (train["checkpoints"], train["checkpointsTotal"]) == (3, 5)
    here.apply(compute={"pools": [{"name": "a100", "accelerator": {"count": 2}, "price": 3}]})
    here.look()
    assert here.status()["costs"]["spentMoney"] == 9.0
    assert len(here.runs()) == 1


@pytest.mark.parametrize("work", [{"a": 5}, {"a": {"seconds": 1e400}}, {"a": {"seconds": -1, "samples": 0}}])
def test_work_that_somebody_else_wrote_is_refused_in_one_line(here: Place, work: object) -> None:
    start(here)
    here.progress("embed", state="running", work=work)
    here.look()
    assert here.reason("Reachable") == "False Refused"


def test_events_link_the_kfp_run_however_long_their_message_is(here: Place) -> None:
    start(here)
    here.ends("embed", PermanentError(f"spec.scorer: {'wrong ' * 500}"))
    here.runs()[0]["state"] = "FAILED"
    here.look()
    messages = {event["reason"]: event["message"] for event in here.api.of("events")}
    link = f"; see https://kfp.example/#/runs/details/{here.runs()[0]['run_id']}"
    assert messages["Mistake"].endswith(link)
    assert messages["Mistake"].startswith("stage embed: spec.scorer: wrong")
    assert len(messages["Mistake"]) <= 1024
    assert link not in messages["Valid"]  # there was no run yet
