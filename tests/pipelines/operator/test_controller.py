"""The controller without kopf: what is told to it, and what its threads then do against the stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from pipelines.kubernetes.cluster import RECAPTIONS, SCHEDULES
from pipelines.operator import controller as module
from pipelines.operator.controller import Controller, slim
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.lease import Lease
from tests.pipelines.operator.place import Place, until


@pytest.fixture
def controller(here: Place) -> Iterator[Controller]:
    """Acting, with its threads."""
    lease = Lease(here.deps.cluster, "pod", duration=5, renew=0.2)
    lease.start()
    made = Controller(here.deps, lease)
    with made.working():
        until(lambda: lease.acts and not made.unready())
        yield made
    lease.stop()


def watch(here: Place, controller: Controller, name: str = "test") -> None:
    """What kopf would tell."""
    found = here.object(name)
    if found is None:
        return
    controller.update(RECAPTIONS, json.loads(json.dumps(found)))


def test_what_is_seen_is_done(here: Place, controller: Controller) -> None:
    here.apply()
    watch(here, controller)
    until(lambda: here.runs() and here.status().get("kfp", {}).get("runId"))
    here.play()
    until(lambda: watch(here, controller) or here.phase() == "Running")
    assert 'recaption_runs{phase="Running"} 1.0' in _metrics(controller)
    assert controller.unhealthy() == []


def _metrics(controller: Controller) -> str:
    from prometheus_client import generate_latest

    return generate_latest(controller.metrics.registry).decode()


def test_our_own_writes_are_no_reason_to_look_again(here: Place, controller: Controller) -> None:
    here.apply(suspend=True)
    watch(here, controller)
    until(lambda: here.status().get("phase") == "Suspended")
    watch(here, controller)
    time.sleep(0.2)
    before = here.api.requests.total() - here.api.requests["get leases"] - here.api.requests["patch leases"]
    for _ in range(5):
        watch(here, controller)
        time.sleep(0.05)
    after = here.api.requests.total() - here.api.requests["get leases"] - here.api.requests["patch leases"]
    assert after == before


def test_a_deaf_watch_is_made_up_for(here: Place, controller: Controller) -> None:
    here.apply()
    controller.list_all()
    until(here.runs)
    here.apply("other", mixtures=[{"name": "b", "rules": [{"text": "raw"}]}])
    with here.api.changed:
        here.api.remove("recaptions", "test")
    controller.list_all()
    assert [thing["metadata"]["name"] for thing in controller.objects_of(RECAPTIONS)] == ["other"]


def test_who_does_not_hold_the_lease_does_nothing(here: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rival = Lease(here.deps.cluster, "rival", duration=30, renew=0.2)
    rival.start()
    until(lambda: rival.acts)
    lease = Lease(here.deps.cluster, "pod", duration=30, renew=0.1)
    lease.start()
    made = Controller(here.deps, lease)
    with made.working():
        here.apply()
        until(lambda: not made.unready())
        watch(here, made)
        time.sleep(1)
        assert not here.runs()
        assert made.unready() == [], "it is ready to take over"
        assert caplog.text.count("rival acts, this operator waits") == 1
        rival.stop()
        until(here.runs)
    lease.stop()


def test_a_bug_is_told_and_tried_again(
    here: Place, controller: Controller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def buggy(thing: Object, deps: Any) -> float:
        calls.append(thing["metadata"]["name"])
        if len(calls) == 1:
            raise KeyError("oh")
        return inf

    monkeypatch.setitem(module.KINDS, RECAPTIONS, ("Recaption", buggy))
    here.apply()
    watch(here, controller)
    until(lambda: len(calls) == 2)
    assert "research/test: a bug" in caplog.text
    assert 'recaption_reconcile_errors_total{kind="Recaption"} 1.0' in _metrics(controller)


def test_a_schedule_is_looked_at_when_its_recaption_gets_on(here: Place) -> None:
    made = Controller(here.deps, Lease(here.deps.cluster, "pod"))
    thing: Object = {
        "metadata": {
            "name": "a",
            "namespace": "research",
            "uid": "1",
            "generation": 1,
            "labels": {"recaption.dev/schedule": "weekly"},
        },
        "status": {"phase": "Running"},
    }
    made.update(RECAPTIONS, thing)
    assert {made.queue.take(), made.queue.take()} == {
        (RECAPTIONS, "research", "a"),
        (SCHEDULES, "research", "weekly"),
    }
    made.queue.done((SCHEDULES, "research", "weekly"), inf)
    made.update(RECAPTIONS, {**thing, "status": {"phase": "Running", "progress": "1/2"}})
    assert made.queue.overdue == 0
    made.remove(RECAPTIONS, thing)
    assert made.queue.take() == (SCHEDULES, "research", "weekly")


def test_what_stands_still_is_unhealthy(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(here.deps.cluster, "pod", duration=30)
    made = Controller(here.deps, lease)
    assert made.unready() == ["the objects are not listed yet"]
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(module, "LONGEST_LOOK", 0.05)
    made.queue.add((RECAPTIONS, "research", "a"))
    time.sleep(0.1)
    assert made.unhealthy() == [], "another one acts"
    lease._take()
    assert "has been due" in made.unhealthy()[0]
    made.queue.take()
    time.sleep(0.1)
    assert "one reconciliation takes" in made.unhealthy()[0]


def test_the_cache_is_slim() -> None:
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    thing = {"metadata": {"name": "a", "managedFields": [1], "annotations": {applied: "{}", "mine": "1"}}, "spec": {}}
    assert slim(thing) == {"metadata": {"name": "a", "annotations": {"mine": "1"}}, "spec": {}}


def test_the_operator_loads_nothing_heavy() -> None:
    heavy = "[m for m in ('pyarrow', 'numpy', 'torch', 'pandas', 'PIL') if m in sys.modules]"
    code = f"import sys; import pipelines.cli, pipelines.operator.controller; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_its_environment_is_checked() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "operator"], capture_output=True, text=True, env={}, check=False
    )
    assert done.returncode == 42
    assert "KF_PIPELINES_ENDPOINT: found nothing; expected KFP's API server" in done.stderr
