"""The decision itself, over whatever may be seen: it always ends, asks for nothing twice, and never the wrong thing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.kubeflow.client import KfpRun
from pipelines.operator.crd.status_schema import PHASES
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.recaption.decide import BAD_NEWS, Act, Decision, decide, is_settled
from pipelines.operator.recaption.observation import STOPPED, Observation, Problem
from pipelines.operator.runtime.conditions import Object, condition, events, is_true
from pipelines.operator.runtime.patches import FINALIZER

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPECS: list[Object] = [
    {},
    {"mixtures": [{"name": "other", "rules": [{"text": "raw"}]}]},
    {"mixtures": [{"name": "bad", "rules": [{"text": "nobody"}]}]},
    {"compute": {"shardsPerTask": 2}},
]
STATES = ("PENDING", "RUNNING", "CANCELING", *STOPPED)


def thing(spec: Object, suspend: bool = False, retry: str = "", deleting: bool = False, **status: Any) -> Object:
    base = {
        "storage": "gs://bucket/recaption",
        "pool": {"name": "pool", "shards": "gs://bucket/shards"},
        "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
    }
    meta: Object = {
        "name": "test",
        "namespace": "research",
        "uid": "01234567-89ab",
        "generation": 3,
        "finalizers": [FINALIZER],
        "annotations": {RETRY: retry} if retry else {},
    }
    if deleting:
        meta["deletionTimestamp"] = "2026-11-24T11:59:00Z"
    return {
        "apiVersion": "recaption.dev/v1alpha1",
        "kind": "Recaption",
        "metadata": meta,
        "spec": {**base, **spec, "suspend": suspend},
        "status": status,
    }


things = st.builds(
    thing,
    st.sampled_from(SPECS),
    suspend=st.booleans(),
    retry=st.sampled_from(["", "1", "2"]),
    deleting=st.booleans(),
)
runs = st.builds(KfpRun, st.sampled_from(["a", "b"]), st.sampled_from(STATES), st.just("2026-11-24T11:00:00Z"))
seens = st.builds(
    Observation,
    st.sampled_from([NOW, NOW + timedelta(days=2), NOW - timedelta(days=2)]),
    runs=st.lists(runs, max_size=2, unique_by=lambda run: run.id).map(tuple),
    run=st.sampled_from(["", "gs://bucket/recaption/runs/test-1"]),
    holder=st.sampled_from([None, "a", "b", "c"]),
    progress=st.sampled_from(
        [
            {},
            {"stages": {"embed": {"state": "running", "shards": 1, "total": 4, "waits_for": "no GPU"}}},
            {"stages": {"embed": {"state": "failed"}}},
            {"stages": {"report": {"state": "done"}}},
        ]
    ),
    results=st.just({"rows": [{"mixture": "raw", "classification": 0.5}], "datasets": []}),
    problem=st.sampled_from([None, None, None, Problem("NoAnswer", "KFP is away")]),
)


def after(value: Object, decision: Decision) -> Object:
    return {**value, "status": decision.status}


@st.composite
def lived(draw: st.DrawFn) -> Object:
    """An object whose status came of earlier decisions over other sights and edits."""
    value = draw(things.filter(lambda value: "deletionTimestamp" not in value["metadata"]))
    for _ in range(draw(st.integers(0, 5))):
        if "deletionTimestamp" in value["metadata"]:  # there is no way back
            break
        decision = decide(value, draw(seens))
        value = after(draw(things), decision)
        if decision.act is Act.CLEAN_UP and draw(st.booleans()):
            value["status"]["cleaned"] = True
    return value


@settings(max_examples=600, deadline=None)
@given(lived(), seens)
def test_whatever_is_seen(value: Object, seen: Observation) -> None:
    decision = decide(value, seen)
    status, act, deleting = decision.status, decision.act, "deletionTimestamp" in value["metadata"]
    assert status.get("phase") in (*PHASES, None)
    kinds = [c["type"] for c in status.get("conditions", ())]
    assert len(kinds) == len(set(kinds))
    assert not (is_true(status, "Complete") and is_true(status, "Failed") and not deleting)
    assert (act is Act.REMOVE_FINALIZER) <= deleting
    assert (act is Act.ADD_FINALIZER) <= (not deleting)
    if act in (Act.SUBMIT, Act.RESUME):
        assert not deleting
        assert not value["spec"]["suspend"]
        assert condition(status, "Accepted")["status"] == "True" or value["status"].get("kfp")
        assert not seen.problem
    if act is Act.SUBMIT:
        assert not seen.runs, "what is there already is not made again"
        assert status["kfp"] == value["status"]["kfp"], "only what was written down before is made"
        assert not status["kfp"].get("runId")
    if act is Act.TERMINATE:
        assert any(run.state not in STOPPED for run in seen.runs)
    if act is Act.CLEAN_UP:
        assert all(run.state in STOPPED for run in seen.runs)
    if act is None and decision.wait == inf and not deleting:
        assert status.get("phase") in ("Suspended", "Succeeded", "Failed", "Refused")


@settings(max_examples=400, deadline=None)
@given(lived(), seens)
def test_the_same_sight_again_changes_nothing(value: Object, seen: Observation) -> None:
    """So that an object at rest costs no write."""
    first = decide(value, seen)
    assume(first.act is None)
    while first.wait == 0:  # an attempt is written down: now its runs would be looked for
        value = after(value, first)
        first = decide(value, seen)
    assume(first.act is None)
    second = decide(after(value, first), seen)
    assert second.act is None
    assert second.status == first.status
    assert not events(first.status, second.status, BAD_NEWS)


@given(lived(), seens, st.sampled_from(["Succeeded", "Refused"]))
def test_what_is_settled_is_left_alone(value: Object, seen: Observation, phase: str) -> None:
    meta, status = value["metadata"], value["status"]
    meta.pop("deletionTimestamp", None)
    status |= {"observedGeneration": meta["generation"], "retried": meta["annotations"].get(RETRY, ""), "phase": phase}
    status |= {"cleaned": True, "completionTime": "2026-11-24T12:00:00Z"}
    assert is_settled(value)
    assert decide(value, seen) == Decision(status)


def test_an_end_that_was_written_stands() -> None:
    """Killed before it was put away, and KFP has lost the run since."""
    value = after(thing({}), decide(thing({}), Observation(NOW)))
    run, uri = KfpRun("a", "SUCCEEDED", "2026-11-24T11:00:00Z"), "gs://bucket/recaption/runs/test-1"
    done = decide(
        value, Observation(NOW, runs=(run,), run=uri, holder="a", progress={"stages": {"report": {"state": "done"}}})
    )
    assert (done.act, done.status["phase"]) == (Act.CLEAN_UP, "Succeeded")
    later = decide(after(value, done), Observation(NOW, run=uri))
    assert (later.act, later.status["phase"]) == (Act.CLEAN_UP, "Succeeded")
    assert not condition(later.status, "Failed")
    twin = decide(after(value, done), Observation(NOW, runs=(run, KfpRun("b", "RUNNING")), run=uri, holder="a"))
    assert (twin.act, twin.status["phase"]) == (Act.TERMINATE, "Succeeded")


def test_what_an_edit_ended_is_suspended_when_the_edit_is_taken_back() -> None:
    """Though KFP has forgotten its run by then."""
    value = after(thing({}), decide(thing({}), Observation(NOW)))
    value["status"]["kfp"] |= {"runId": "a", "refused": True}
    value["status"]["cleaned"] = True
    value["spec"]["suspend"] = True
    decision = decide(value, Observation(NOW))
    assert (decision.act, decision.status["phase"]) == (None, "Suspended")
    assert not condition(decision.status, "Failed")
    value["spec"]["mixtures"] = SPECS[2]["mixtures"]  # or what it has become is invalid
    decision = decide(value, Observation(NOW, runs=(KfpRun("a", "SUCCEEDED"),)))
    assert (decision.act, decision.status["phase"]) == (None, "Refused")


def test_an_attempt_is_counted_and_never_named_twice() -> None:
    names = set()
    value = thing({})
    for i in range(6):
        decision = decide(value, Observation(NOW))
        assert decision.wait == 0
        names.add(decision.status["kfp"]["name"])
        status = {**decision.status, "cleaned": True, "completionTime": "2026-11-24T12:00:00Z", "phase": "Failed"}
        value = thing(SPECS[i % 2], **status, retry=str(i))
    assert len(names) == 6
