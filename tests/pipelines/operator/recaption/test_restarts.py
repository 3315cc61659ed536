"""How a run's end is told, and which ends the operator starts anew by itself: bad luck, never a mistake."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from math import inf

import pytest

from components.base.errors import PermanentError, TemporaryError, Terminated
from pipelines.kubernetes.cluster import RECAPTIONS
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.recaption.decide import FOLLOW
from pipelines.operator.recaption.endings import PAUSES, STEADY
from pipelines.operator.runtime.conditions import timestamp
from tests.pipelines.operator.place import Place
from tests.pipelines.operator.recaption.test_reconcile import start
from tests.pipelines.operator.test_faults import refusing


class Clock:
    """The operator's time, which a test moves."""

    def __init__(self, here: Place) -> None:
        self.moment = datetime(2026, 11, 24, tzinfo=UTC)  # as the stand-in for KFP dates its runs
        here.deps.now = lambda: self.moment

    def later(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock(here: Place) -> Clock:
    return Clock(here)


def message(here: Place, kind: str) -> str:
    return next(str(c["message"]) for c in here.status()["conditions"] if c["type"] == kind)


def have_bad_luck(here: Place) -> float:
    here.ends("embed", TemporaryError("cannot read gs://bucket/x: gave up after 120 s"))
    here.finish("FAILED")
    return here.look()


def test_bad_luck_is_started_anew_after_a_pause_and_shown(here: Place, clock: Clock) -> None:
    start(here)
    here.left_over()
    wait = have_bad_luck(here)
    assert wait == pytest.approx(PAUSES[0])
    assert here.phase() == "Pending"
    assert here.reason("Running") == "False BadLuck"
    said = message(here, "Running")
    assert (
        "stage embed: cannot read gs://bucket/x: gave up after 120 s (KFP run runs-1); bad luck: restart 1 of" in said
    )
    assert said.endswith(f"restart 1 of {len(PAUSES)} at {here.status()['restartTime']}")
    assert "BadLuck" in here.events()
    assert here.jobs() == [], "what the attempt left is put away at once"
    assert here.run().claim("another") == "another"
    here.run().storage.delete(f"{here.run().folder}/claim.json")
    clock.later(PAUSES[0] - 2)
    assert here.look() == pytest.approx(2)
    assert len(here.runs()) == 1
    clock.later(2)
    here.look()
    here.play()
    assert here.look() == FOLLOW
    assert [run["state"] for run in here.runs()] == ["FAILED", "RUNNING"]
    status = here.status()
    assert (status["phase"], status["attempts"], status["restarts"]) == ("Running", 2, 1)
    assert "restartTime" not in status
    assert status["stage"] == "", "the stage that failed waits again"
    here.finish()
    here.look()
    assert here.phase() == "Succeeded"


def test_bad_luck_that_stays_ends_as_failed(here: Place, clock: Clock) -> None:
    start(here)
    for pause in PAUSES:
        assert have_bad_luck(here) == pytest.approx(pause)
        clock.later(pause)
        here.look()
        here.play()
        here.look()
        assert here.phase() == "Running"
    assert have_bad_luck(here) == inf
    assert here.reason("Failed") == "True BadLuck"
    assert f"it was restarted {len(PAUSES)} times in a row; to start it again: kubectl" in message(here, "Failed")
    assert len(here.runs()) == len(PAUSES) + 1
    here.apply(annotations={RETRY: "1"})
    here.look()
    here.play()
    here.look()
    assert "restarts" not in here.status(), "who asks for it has all restarts again"


def test_a_long_attempt_starts_the_count_anew(here: Place, clock: Clock) -> None:
    start(here)
    for _ in range(len(PAUSES) + 2):
        clock.later(STEADY.total_seconds() + 60)
        assert have_bad_luck(here) == pytest.approx(PAUSES[0])
        clock.later(PAUSES[0])
        here.look()
        here.play()
        here.look()
        assert here.status()["restarts"] == 1
        began = {"status": {"startTime": timestamp(clock.moment)}}  # the stand-in dates all its runs alike
        here.deps.cluster.patch(RECAPTIONS, "test", began, "status")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermanentError("spec.train.scale.model: /models/x does not exist"), "Mistake"),
        (KeyError("uid"), "Bug"),
    ],
)
def test_what_would_fail_again_is_not_started_anew(here: Place, clock: Clock, error: Exception, reason: str) -> None:
    start(here)
    here.ends("train", error)
    here.finish("FAILED")
    assert here.look() == inf
    assert here.reason("Failed") == f"True {reason}"
    assert f"stage train: {'KeyError: ' if reason == 'Bug' else ''}{error} (KFP run runs-1)" in message(here, "Failed")
    clock.later(24 * 3600)
    assert here.look() == inf
    assert len(here.runs()) == 1


def test_a_mistake_that_the_plan_step_finds_is_in_the_condition_and_an_event(here: Place) -> None:
    train = {"scale": {"model": "/models/x.json", "batchSize": 8, "learningRate": 0.001, "warmup": 1, "samples": 8}}
    here.apply(train=train)
    here.look()
    here.play()
    assert here.runs()[0]["state"] == "FAILED"
    assert here.look() == inf
    assert here.reason("Failed") == "True Mistake"
    assert message(here, "Failed").startswith("plan: spec.train.scale.model: /models/x.json does not exist")
    told = [event for event in here.api.of("events") if event["reason"] == "Mistake"]
    said = f"{message(here, 'Failed')}; see https://kfp.example/#/runs/details/runs-1"
    assert [(event["type"], event["message"]) for event in told] == [("Warning", said)]


@pytest.mark.parametrize("last_words", [None, Terminated()])
def test_a_launcher_that_was_deleted_or_evicted_is_named_and_started_anew(
    here: Place, clock: Clock, last_words: BaseException | None
) -> None:
    start(here)
    here.progress("embed", state="done", shards=1, total=1)
    if last_words:
        here.ends("score:raw", last_words)
    else:
        here.progress("score:raw", state="running", shards=2, total=12)
    here.finish("FAILED")
    assert here.look() == pytest.approx(PAUSES[0])
    assert "stage score:raw: its pod was evicted, deleted or killed before it could say" in message(here, "Running")
    clock.later(PAUSES[0])
    here.look()
    assert len(here.runs()) == 2


def test_an_old_mistake_is_not_taken_for_what_ended_a_later_attempt(here: Place, clock: Clock) -> None:
    start(here)
    here.ends("embed", PermanentError("spec.compute.pools: no GPU pool a"))
    here.finish("FAILED")
    here.look()
    here.apply(annotations={RETRY: "1"})
    here.look()
    here.play()
    here.look()
    assert here.status()["stages"][0]["state"] == "waiting"
    here.finish("FAILED")
    here.look()
    assert here.reason("Failed") == "True KFPRunFailed"
    assert "no step recorded why the run ended" in message(here, "Failed")


@pytest.mark.parametrize("error", ["odd", None, ["a"], {"kind": 7, "message": None}])
def test_what_anybody_may_have_written_into_the_runs_folder_stops_no_operator(here: Place, error: object) -> None:
    start(here)
    here.progress("embed", state="failed", error=error)
    path = here.folder / "storage" / "claims" / "runs-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "failure": error if error != "odd" else 5}))
    here.finish("FAILED")
    assert here.look() == inf
    assert here.phase() == "Failed"


def test_a_run_that_somebody_terminated_in_kfp_is_not_started_anew(here: Place, clock: Clock) -> None:
    start(here)
    here.ends("embed", Terminated())
    here.runs()[0]["state"] = "CANCELING"
    here.play()
    assert here.look() == inf
    assert here.reason("Failed") == "True Canceled"


def test_while_it_waits_for_its_restart_the_user_decides(here: Place, clock: Clock) -> None:
    start(here)
    have_bad_luck(here)
    here.apply(suspend=True)
    assert here.look() == inf
    assert here.phase() == "Suspended"
    assert "restartTime" not in here.status()
    here.apply(suspend=False)
    here.look()
    here.look()
    assert [run["state"] for run in here.runs()] == ["RUNNING"], "KFP lets the same run go on"
    assert here.phase() == "Running"
    have_bad_luck(here)
    here.apply(annotations={RETRY: "now"})
    here.look()
    assert [run["state"] for run in here.runs()] == ["FAILED", "PENDING"], "at once"
    here.play()
    here.look()
    have_bad_luck(here)
    here.delete()
    here.look()
    assert here.object() is None


def test_a_run_that_somebody_retries_in_kfp_meanwhile_is_followed(here: Place, clock: Clock) -> None:
    start(here)
    have_bad_luck(here)
    here.runs()[0]["state"] = "RUNNING"
    clock.later(PAUSES[0])
    assert here.look() == FOLLOW
    assert here.phase() == "Running"
    assert "restartTime" not in here.status()
    assert len(here.runs()) == 1


def test_a_resumed_run_that_fails_at_once_has_failed(here: Place) -> None:
    start(here)
    here.apply(suspend=True)
    here.look()
    here.play()
    here.look()
    here.apply(suspend=False)
    here.look()
    here.ends("embed", PermanentError("no such model"))
    here.finish("FAILED")
    here.look()
    here.look()
    assert here.phase() == "Failed"
    assert here.reason("Suspended") == "False Resumed"


def test_a_run_that_fails_while_it_is_being_suspended_is_suspended(here: Place) -> None:
    start(here)
    here.ends("embed", TemporaryError("the network is down"))
    here.finish("FAILED")
    here.apply(suspend=True)
    assert here.look() == inf
    assert here.phase() == "Suspended"
    assert {c["type"]: c["status"] for c in here.status()["conditions"]}.get("Failed", "False") == "False"


def test_there_is_no_link_without_an_address_of_the_ui(here: Place) -> None:
    here.deps.settings = type(here.deps.settings)(here.deps.settings.endpoint, "", kfp_namespace="research")
    start(here)
    assert here.status()["kfp"]["runId"] == "runs-1"
    assert "link" not in here.status()["kfp"]


def test_kfp_and_storage_answer_only_when_both_have(here: Place) -> None:
    here.kfp.status = 503
    here.apply()
    here.look()
    assert here.reason("Reachable") == "False NoAnswer"
    here.deps.storage(here.spec()["storage"])
    with refusing(here):
        here.kfp.status = None
        here.deps.kfp._down_until = 0.0
        here.look()
        assert here.runs(), "KFP answers"
        assert here.reason("Reachable") == "False Refused"
        assert "Answered" not in here.events()
    here.look()
    assert here.reason("Reachable") == "True Answered"


def test_another_price_starts_nothing_again(here: Place, clock: Clock) -> None:
    def pools(**more: object) -> dict[str, object]:
        return {"pools": [{"name": "a100", "accelerator": {"count": 1}, **more}]}

    here.apply(compute=pools())
    here.look()
    here.play()
    here.look()
    here.ends("embed", PermanentError("spec.scorer: wrong"))
    here.finish("FAILED")
    assert here.look() == inf
    here.apply(compute=pools(price=2.5))
    assert here.look() == inf
    assert (here.phase(), len(here.runs())) == ("Failed", 1)
    here.apply(compute=pools(spot=True))
    here.look()
    assert len(here.runs()) == 2
