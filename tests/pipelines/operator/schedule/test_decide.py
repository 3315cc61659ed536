"""What is decided about a schedule, case by case; and the Recaption it makes, by its golden file.

After a wanted change: `python -m tests.pipelines.operator.schedule.test_decide` writes the golden file anew.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.base.errors import PermanentError
from pipelines.operator.runtime.conditions import Object, condition, parse_time
from pipelines.operator.schedule.decide import (
    OFTEN,
    SOON,
    ScheduleAct,
    ScheduleDecision,
    ScheduleObservation,
    ScheduleProblem,
    decide,
)
from pipelines.operator.schedule.template import claimant, recaption_of, timetable_of

GOLDEN = Path(__file__).parent / "golden" / "recaption_of_a_dump.yaml"
D, OLDER = "CC-MAIN-2026-30", "CC-MAIN-2026-21"
OWN = "weekly-cc-main-2026-30"
NOW = parse_time("2026-08-03T12:00:00Z")
TODAY, YESTERDAY, TOMORROW = "2026-08-03T06:00:00Z", "2026-08-02T06:00:00Z", "2026-08-04T06:00:00Z"
UNREACHABLE = ScheduleProblem("DumpsListed", "Unreachable", "dumps https://index: 503, after 4 attempts")


def schedule(status: Object | None = None, **spec: Any) -> Object:
    """Made two days ago; it ticks each morning at six."""
    template = {
        "storage": "gs://bucket/recaption",
        "pool": {"name": "cc-{dump}", "shards": "gs://bucket/cc/{dump}/shards"},
        "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
    }
    meta = {"name": "weekly", "namespace": "research", "uid": "uid-1", "generation": 1, "resourceVersion": "7"}
    return {
        "apiVersion": "recaption.dev/v1alpha1",
        "kind": "RecaptionSchedule",
        "metadata": {**meta, "creationTimestamp": "2026-08-01T12:00:00Z"},
        "spec": {"schedule": "0 6 * * *", "template": {"spec": template}, **spec},
        **({"status": status} if status is not None else {}),
    }


def edited(thing: Object) -> Object:
    return {**thing, "metadata": {**thing["metadata"], "generation": 2}}


def said(kind: str, true: bool, reason: str, since: str = YESTERDAY) -> Object:
    return {
        "type": kind,
        "status": str(true),
        "reason": reason,
        "message": "as before",
        "observedGeneration": 1,
        "lastTransitionTime": since,
    }


def known(scheduled: Object | None = None, **status: Any) -> Object:
    """A status from yesterday's tick on, when all was well; None takes a key away."""
    conditions = [said("Accepted", True, "Valid"), said("DumpsListed", True, "Listed")]
    conditions.append(scheduled or said("Scheduled", True, "Started"))
    whole = {
        "conditions": conditions,
        "observedGeneration": 1,
        "behind": 1,
        "active": [],
        "lastDump": OLDER,
        "lastScheduleTime": YESTERDAY,
        "nextScheduleTime": TODAY,
        **status,
    }
    return {key: value for key, value in whole.items() if value is not None}


def recaption(name: str, phase: str | None, completed: str = TODAY, **meta: Any) -> Object:
    status = {"phase": phase, "completionTime": completed} if phase else {}
    return {"metadata": {"name": name, "uid": f"of-{name}", "creationTimestamp": YESTERDAY, **meta}, "status": status}


def look(thing: Object, now: datetime = NOW, **seen: Any) -> ScheduleDecision:
    return decide(thing, ScheduleObservation(now, **seen))


def reason(decision: ScheduleDecision, kind: str = "Scheduled") -> str:
    return str(condition(decision.status, kind).get("reason"))


RUNNING = {"recaptions": (recaption("other", "Running"),)}
OURS = {"holder": claimant(schedule())}


@pytest.mark.parametrize(("thing", "seen", "act"), [
    (schedule(), {}, ScheduleAct.LIST),
    (schedule(known()), {}, ScheduleAct.LIST),
    (schedule(known()), {"wanted": (D, OLDER)}, ScheduleAct.PROBE),
    (schedule(known()), {"wanted": (D, OLDER), "ready": OLDER}, ScheduleAct.CLAIM),
    (schedule(known(pending=D)), {}, ScheduleAct.CLAIM),
    (schedule(known(pending=D)), OURS, ScheduleAct.CREATE),
    (schedule(known(pending=D)), {"holder": "kfp-1"}, ScheduleAct.LOOK),
    # A schedule of that name that was there before, or is in another cluster.
    (schedule(known(pending=D)), {"holder": "recaption/research/weekly/uid-0"}, ScheduleAct.LOOK),
    (schedule(known(pending=D)), {**OURS, "created": True}, None),
    (schedule(known(pending=D)), {"recaptions": (recaption(OWN, None),)}, None),
    (schedule(known(pending=D), suspend=True), {"recaptions": (recaption(OWN, "Failed"),)}, None),
    # What was decided is done, however late it is by now.
    (schedule(known(pending=D), startingDeadlineSeconds=60), {}, ScheduleAct.CLAIM),
    (schedule(known(pending=D), suspend=True), {}, None),
    (schedule(known(), suspend=True), {}, None),
    # Nothing is due: the dumps are listed only when there is no list yet, or of another spec.
    (schedule(known(lastScheduleTime=TODAY, nextScheduleTime=TOMORROW)), {}, None),
    (schedule(known(lastScheduleTime=TODAY, nextScheduleTime=TOMORROW, behind=None)), {}, ScheduleAct.LIST),
    (edited(schedule(known(lastScheduleTime=TODAY, nextScheduleTime=TOMORROW))), {}, ScheduleAct.LIST),
    (
        schedule(known(conditions=[said("DumpsListed", False, "Unreachable")], lastScheduleTime=TODAY)),
        {},
        ScheduleAct.LIST,
    ),
    # One runs.
    (schedule(known(), concurrencyPolicy="Allow"), RUNNING, ScheduleAct.LIST),
    (schedule(known(), concurrencyPolicy="Replace"), RUNNING, ScheduleAct.LIST),
    (schedule(known(nextScheduleTime=TOMORROW)), RUNNING, None),
    (schedule(known()), RUNNING, ScheduleAct.LIST),  # how many are behind is told at each tick nevertheless
    (schedule(known()), {**RUNNING, "wanted": (D,)}, None),
    (schedule(known(pending=D, nextScheduleTime=TOMORROW)), RUNNING, None),
    (schedule(known(pending=D), concurrencyPolicy="Allow"), RUNNING, ScheduleAct.CLAIM),
    # The clock: one tick for however many, none before the first.
    (schedule(known(lastScheduleTime="2026-05-01T06:00:00Z")), {"wanted": (D,)}, ScheduleAct.PROBE),
    (schedule(known(lastScheduleTime="2026-08-04T06:00:00Z", nextScheduleTime=TOMORROW)), {}, None),
])  # fmt: skip
def test_what_is_done_next(thing: Object, seen: Object, act: ScheduleAct | None) -> None:
    assert look(thing, **seen).act is act


def test_a_start_and_what_is_said_of_it() -> None:
    decision = look(schedule(known()), newest=D, wanted=(D, OLDER), ready=D)
    assert decision.status["pending"] == D
    assert decision.status["behind"] == 2
    assert decision.status["lastScheduleTime"] == YESTERDAY  # until it is done
    thing = schedule(decision.status)
    assert look(thing, **OURS).status == decision.status
    decision = look(thing, created=True, recaptions=(recaption(OWN, None),))
    assert decision.status == {
        "conditions": [
            {**said("Accepted", True, "Valid"), "message": "the schedule and the recipe of its template are valid"},
            {**said("DumpsListed", True, "Listed"), "message": f"the newest dump is {D}"},
            {**said("Scheduled", True, "Started"), "message": f"Recaption {OWN} runs dump {D}"},
        ],
        "observedGeneration": 1,
        "behind": 1,
        "active": [OWN],
        "lastDump": D,
        "lastScheduleTime": TODAY,
        "nextScheduleTime": TOMORROW,
    }
    assert [(event.reason, event.warning) for event in decision.events] == [("Started", False)]


def test_a_dump_that_another_has_claimed() -> None:
    decision = look(schedule(known(pending=D, behind=2)), holder="kfp-1")
    assert [event.message for event in decision.events] == [f"dump {D} is claimed by kfp-1: it is not run here"]
    assert "pending" not in decision.status
    assert decision.status["behind"] == 1
    assert decision.status["lastScheduleTime"] == YESTERDAY  # the tick is for the next one


@pytest.mark.parametrize(("wanted", "ready", "outcome", "true"), [
    ((), None, "UpToDate", "True"),
    ((D,), "", "NotReady", "False"),
])  # fmt: skip
def test_a_tick_without_a_start_is_over(wanted: tuple[str, ...], ready: str | None, outcome: str, true: str) -> None:
    decision = look(schedule(known()), wanted=wanted, ready=ready, newest=D)
    assert (reason(decision), condition(decision.status, "Scheduled")["status"]) == (outcome, true)
    assert decision.status["lastScheduleTime"] == TODAY
    assert decision.wait == OFTEN
    assert decision.status["behind"] == len(wanted)
    assert not any(event.warning for event in decision.events)
    assert look(schedule(decision.status)).status == decision.status  # and nothing is written twice


def test_one_at_a_time() -> None:
    decision = look(schedule(known()), **RUNNING, wanted=(D,))
    assert reason(decision) == "StillRunning"
    assert decision.status["lastScheduleTime"] == YESTERDAY  # the tick is due until the other one is finished
    assert decision.status["active"] == ["other"]
    assert look(schedule(decision.status)).act is ScheduleAct.LIST
    assert look(schedule(decision.status), **RUNNING).status == decision.status


@pytest.mark.parametrize(("phase", "meta", "status", "blocks"), [
    (None, {}, {}, True),
    ("Pending", {}, {}, True),
    ("Suspended", {}, {}, True),
    ("Ending", {"deletionTimestamp": TODAY}, {}, True),
    ("Succeeded", {}, {}, False),
    ("Failed", {}, {}, False),
    ("Refused", {}, {}, False),
    ("Failed", {"annotations": {"recaption.dev/retry": "2"}}, {"retried": "1"}, True),  # it is about to start again
    ("Failed", {"annotations": {"recaption.dev/retry": "2"}}, {"retried": "2"}, False),
    ("Succeeded", {"annotations": {"recaption.dev/retry": "2"}}, {}, False),
])  # fmt: skip
def test_what_is_finished(phase: str | None, meta: Object, status: Object, blocks: bool) -> None:
    other = recaption("other", phase, **meta)
    other["status"] |= status
    decision = look(schedule(known(nextScheduleTime=TOMORROW)), recaptions=(other,))
    assert decision.act is (None if blocks else ScheduleAct.LIST)


def test_replace_deletes_what_runs_when_the_next_dump_is_claimed() -> None:
    others = recaption("a", "Running"), recaption("b", "Succeeded"), recaption("c", "Running", deletionTimestamp=TODAY)
    thing = schedule(known(), concurrencyPolicy="Replace")
    assert look(thing, recaptions=others, wanted=(D,), ready=D).deleted == ()
    decision = look(schedule(known(pending=D), concurrencyPolicy="Replace"), recaptions=others, **OURS)
    assert [r["metadata"]["name"] for r in decision.deleted] == ["a"]
    assert [event.reason for event in decision.events] == ["Replaced"]
    assert look(schedule(known(pending=D), concurrencyPolicy="Allow"), recaptions=others, **OURS).deleted == ()


@pytest.mark.parametrize(("deadline", "outcome", "last"), [
    (6 * 3600 - 1, "MissedDeadline", TODAY),
    (6 * 3600, "Started", YESTERDAY),
    (None, "Started", YESTERDAY),
])  # fmt: skip
def test_the_deadline_of_a_tick(deadline: int | None, outcome: str, last: str) -> None:
    spec = {} if deadline is None else {"startingDeadlineSeconds": deadline}
    decision = look(schedule(known(), **spec), problem=UNREACHABLE)
    assert reason(decision) == outcome
    assert decision.status["lastScheduleTime"] == last
    missed = [event for event in decision.events if event.reason == "MissedDeadline"]
    assert [event.warning for event in missed] == [True] * (outcome == "MissedDeadline")


def test_a_tick_that_waits_is_looked_at_when_it_is_given_up() -> None:
    spec = {"startingDeadlineSeconds": 6 * 3600 + 100}
    assert look(schedule(known(nextScheduleTime=TOMORROW), **spec), **RUNNING).wait == 101
    assert look(schedule(known(nextScheduleTime=TOMORROW)), **RUNNING).wait == OFTEN


def test_suspended_and_resumed() -> None:
    decision = look(schedule(known(), suspend=True))
    assert (reason(decision), decision.wait, decision.events[0].warning) == ("Suspended", inf, False)
    assert "nextScheduleTime" not in decision.status
    assert decision.status["lastScheduleTime"] == YESTERDAY
    assert look(schedule(decision.status, suspend=True), **RUNNING).wait == OFTEN  # whose end is to be seen
    assert look(schedule(decision.status)).act is ScheduleAct.LIST  # what was missed is made up for, once
    decision = look(schedule(decision.status | {"lastScheduleTime": TODAY}), wanted=(D,))
    assert reason(decision) == "Waiting"


@pytest.mark.parametrize(("minutes", "wait"), [(0, SOON), (1, 60), (3, 180), (9, 540), (600, OFTEN), (-9, SOON)])
def test_what_is_away_is_asked_less_and_less_often(minutes: int, wait: float) -> None:
    first = look(schedule(known()), problem=UNREACHABLE)
    assert (reason(first, "DumpsListed"), first.wait, first.events[0].warning) == ("Unreachable", SOON, True)
    assert first.status["lastScheduleTime"] == YESTERDAY
    again = ScheduleProblem("DumpsListed", "Unreachable", "dumps https://index: timed out, after 4 attempts")
    second = look(schedule(first.status), NOW + timedelta(minutes=minutes), problem=again)
    assert second.wait == wait
    assert second.status == first.status  # the same in other words is no news


def test_other_trouble_is_told_in_its_words() -> None:
    refused = ScheduleProblem("Scheduled", "StorageRefused", "cannot list /x: no permission")
    first = look(schedule(known()), problem=refused)
    assert condition(first.status, "Scheduled")["message"] == refused.message
    assert first.events[-1].warning
    other = ScheduleProblem("Scheduled", "StorageRefused", "cannot list /x: not a folder")
    assert condition(look(schedule(first.status), problem=other).status, "Scheduled")["message"] == other.message


def test_a_time_in_the_future_is_taken_for_now() -> None:
    """Two days ahead was only the clock: the next tick is tomorrow's, not that after the wrong time."""
    status = known(lastScheduleTime="2026-08-05T06:00:00Z", nextScheduleTime=TOMORROW)
    decision = look(schedule(status))
    assert decision.status["lastScheduleTime"] == "2026-08-03T12:00:00Z"
    assert look(schedule(decision.status), parse_time("2026-08-04T06:00:01Z")).act is ScheduleAct.LIST
    skewed = known(lastScheduleTime="2026-08-03T12:00:30Z", nextScheduleTime=TOMORROW)
    assert look(schedule(skewed)).status["lastScheduleTime"] == "2026-08-03T12:00:30Z"


def test_the_history_keeps_the_newest_of_each_kind() -> None:
    made = [
        recaption("s1", "Succeeded", "2026-08-03T09:00:00Z"),
        recaption("s2", "Succeeded", "2026-08-02T09:00:00Z"),
        recaption("s3", "Succeeded", "2026-08-01T09:00:00Z", deletionTimestamp=TODAY),
        recaption("f1", "Failed", "2026-08-03T09:00:00Z"),
        recaption("f2", "Refused", "2026-08-02T09:00:00Z"),
        recaption("f3", "Failed", "2026-08-01T09:00:00Z", annotations={"recaption.dev/retry": "1"}),
        recaption("r", "Running"),
    ]
    status = known(lastScheduleTime=TODAY, nextScheduleTime=TOMORROW)

    def deleted(succeeded: int, failed: int) -> list[str]:
        thing = schedule(status, successfulHistoryLimit=succeeded, failedHistoryLimit=failed)
        return [r["metadata"]["name"] for r in look(thing, recaptions=tuple(made)).deleted]

    assert deleted(3, 3) == []
    assert deleted(1, 1) == ["s2", "f2"]
    assert deleted(0, 5) == ["s2", "s1"]
    assert deleted(2, 0) == ["f2", "f1"]


BAD = [
    ({"schedule": "0 6 31 2 *"}, {}, "spec.schedule: found '0 6 31 2 *': Bad day-of-month"),
    ({"timeZone": "Mars/Olympus"}, {}, "spec.timeZone: found 'Mars/Olympus'; expected an IANA name"),
    ({"dumps": "since 2026"}, {}, 'spec.dumps: found "since 2026"'),
    ({"concurrencyPolicy": "Never"}, {}, 'spec.concurrencyPolicy: found "Never"'),
    ({"schedul": "0 6 * * *"}, {}, "spec.schedul: unknown key; allowed are schedule, timeZone, dumps"),
    ({}, {"storage": "gs://bucket/{dump}"}, "spec.template.spec.storage: found {dump} in it"),
    ({}, {"pool": {"name": "cc", "shards": "gs://b/{dump}"}}, "spec.template.spec.pool.name: found cc, without {dump}"),
    ({}, {"pool": {"name": "{dump}", "shards": "gs://b/c"}}, "spec.template.spec.pool.shards: found gs://b/c, without"),
    ({}, {"pool": {"name": "{dump}", "urls": "gs://b/c"}}, "spec.template.spec.pool.urls: found gs://b/c, without"),
    (
        {},
        {"pool": {"name": "{dump}", "commonCrawl": {"dump": "latest"}}},
        "spec.template.spec.pool.commonCrawl.dump: found \"latest\": Input should be '{dump}'",
    ),
    ({}, {"pool": {"name": "{dump}"}}, 'spec.template.spec.pool: found {"name": "{dump}"}: give exactly one of'),
    ({}, {"pool": {"name": "{dump}", "shards": "{dump}", "x": 1}}, "spec.template.spec.pool.x: unknown key"),
    ({}, {"mixtures": []}, "spec.template.spec.mixtures: found []"),
    (
        {},
        {"mixtures": [{"name": "m", "rules": [{"text": "blip2"}]}]},
        "spec.template.spec.mixtures[0].rules[0].text: blip2 is no text; there is raw",
    ),
    ({}, {"pool": {"name": f"{'p' * 49}{{dump}}", "shards": "{dump}"}}, "spec.template.spec.pool.name: found"),
]


@pytest.mark.parametrize(("spec", "template", "message"), BAD)
def test_what_is_invalid_is_said_and_nothing_is_done(spec: Object, template: Object, message: str) -> None:
    thing = schedule(known(pending=D), **spec)
    thing["spec"]["template"]["spec"] |= template
    decision = look(thing)
    assert (decision.act, decision.wait, reason(decision, "Accepted")) == (None, inf, "Invalid")
    assert condition(decision.status, "Accepted")["message"].startswith(message)
    assert [(event.reason, event.warning) for event in decision.events] == [("Invalid", True)]
    assert decision.status["pending"] == D
    assert "nextScheduleTime" not in decision.status


def test_the_longest_name() -> None:
    thing = schedule()
    thing["metadata"]["name"] = "n" * 47
    assert len(recaption_of(thing, D)["metadata"]["name"]) == 63
    timetable_of(thing)
    thing["metadata"]["name"] += "n"
    with pytest.raises(
        PermanentError, match=r"metadata\.name: found 48 characters; expected at most 47, for Recaptions"
    ):
        timetable_of(thing)


def golden() -> str:
    thing = schedule()
    thing["spec"]["template"]["metadata"] = {
        "labels": {"team": "vision", "recaption.dev/schedule": "not-this"},
        "annotations": {"note": "of {dump}"},
    }
    thing["spec"]["template"]["spec"]["suspend"] = True
    thing["spec"]["template"]["spec"]["columns"] = [
        {"name": "l14", "import": {"from": "gs://bucket/{dump}/metadata", "field": "clip", "as": "score"}}
    ]
    return yaml.safe_dump(recaption_of(thing, D), sort_keys=False)


def test_the_recaption_is_its_golden_file() -> None:
    assert GOLDEN.read_text() == golden()


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden())
