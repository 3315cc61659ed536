"""What goes wrong around the operator, and that it ends well."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import inf

import pytest

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from pipelines.kubernetes.cluster import RECAPTIONS, Conflict
from pipelines.operator.recaption import reconcile
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.recaption.decide import LATER
from pipelines.operator.runtime import kfp as kfp_module
from pipelines.operator.runtime.dependencies import Dependencies
from pipelines.operator.runtime.last_resort import BOUND
from pipelines.operator.runtime.lease import Lease
from tests.pipelines.operator.place import Place, until
from tests.pipelines.operator.recaption.test_reconcile import start


def at(here: Place, **ahead: float) -> Dependencies:
    """The same, so much later."""
    moment = datetime.now(UTC) + timedelta(**ahead)
    return dataclasses.replace(here.deps, now=lambda: moment)


def test_kfp_is_down_for_ten_minutes(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    start(here)
    here.kfp.status = 503
    assert here.look() == LATER
    written, asked = here.api.requests.total(), len(here.kfp.asked)
    for minutes in range(1, 10):
        here.look(deps=at(here, minutes=minutes))
    assert here.reason("Reachable") == "False NoAnswer"
    assert here.phase() == "Running"
    assert here.api.requests.total() == written, "an outage is written once"
    assert len(here.kfp.asked) - asked <= 4, "and KFP is not asked while it is known to be down"
    here.kfp.status = None
    here.deps.kfp._down_until = 0.0  # a minute later
    here.finish()
    here.look()
    assert here.phase() == "Succeeded"
    assert here.reason("Reachable") == "True Answered"
    assert len(here.runs()) == 1


def test_kfp_is_asked_again_later_and_later(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(kfp_module.time, "monotonic", lambda: now[0])
    here.kfp.status = 503
    waits = []
    for _ in range(6):
        with pytest.raises(TemporaryError, match="503"):
            here.deps.kfp.find("research", "x")
        waits.append(here.deps.kfp._down_until - now[0])
        now[0] = here.deps.kfp._down_until + 0.1
    assert waits == [5, 10, 20, 40, 60, 60]
    assert not here.deps.kfp.reachable


def test_kfp_refuses(here: Place) -> None:
    here.kfp.token = "secret"
    here.apply()
    assert here.look() == LATER
    assert here.reason("Reachable") == "False Refused"
    here.kfp.token = None
    here.look()
    assert len(here.runs()) == 1


@pytest.mark.parametrize("error", [TemporaryError("cannot read"), PermanentError("no bucket")])
def test_the_storage_is_away(here: Place, error: RecaptionError) -> None:
    start(here)
    whole = here.deps.storages.pop(next(iter(here.deps.storages)))

    class Away:
        def __getattr__(self, name: str) -> object:
            raise error

    here.deps.storages[whole.uri] = Away()  # type: ignore[assignment]
    assert here.look() == LATER
    assert here.reason("Reachable") == ("False NoAnswer" if isinstance(error, TemporaryError) else "False Refused")
    here.deps.storages[whole.uri] = whole
    here.look()
    assert here.phase() == "Running"
    assert here.reason("Reachable") == "True Answered"


@contextmanager
def refusing(here: Place) -> Iterator[None]:
    """The storage lets the operator not in."""
    whole = here.deps.storages.pop(next(iter(here.deps.storages)))

    class Refuses:
        def __getattr__(self, name: str) -> object:
            raise PermanentError("no bucket")

    here.deps.storages[whole.uri] = Refuses()  # type: ignore[assignment]
    yield
    here.deps.storages[whole.uri] = whole


def test_a_run_is_suspended_also_while_the_storage_refuses(here: Place) -> None:
    start(here)
    with refusing(here):
        here.apply(suspend=True)
        here.look()
        assert here.runs()[0]["state"] == "CANCELING"
        here.play()
        here.look()
        assert here.status()["kfp"]["state"] == "FAILED"
        assert here.phase() == "Suspended"
    here.look()
    assert here.phase() == "Suspended"
    here.apply(suspend=False)
    here.look()
    here.play()
    here.look()
    assert here.phase() == "Running"
    assert len(here.runs()) == 1


def test_a_deleted_one_ends_its_run_also_while_the_storage_refuses(here: Place) -> None:
    start(here)
    with refusing(here):
        here.delete()
        here.look()
        assert here.runs()[0]["state"] == "CANCELING"
        assert here.phase() == "Ending"
        assert here.reason("Running") == "True Ending"
        here.play()
        assert here.look() == LATER, "its Jobs are to be put away once the storage is there"
    here.look()
    assert here.object() is None


def test_one_whose_storage_always_refused_is_let_go_when_its_run_has_ended(here: Place) -> None:
    here.apply(suspend=True)
    here.look()
    here.deps.storage(here.spec()["storage"])
    with refusing(here):
        here.apply(suspend=False)
        here.look()
        here.runs()[0]["state"] = "FAILED"
        here.look()
        assert here.phase() == "Pending"
        assert here.status()["kfp"]["state"] == "FAILED", "what KFP says is shown"
        assert here.status()["kfp"]["link"].endswith(here.runs()[0]["run_id"])
        here.delete()
        here.look()
    assert here.object() is None
    assert here.events()[-1] == "GaveUp"


def test_the_api_server_restarts(here: Place) -> None:
    here.apply()
    here.look(turns=1)
    thing = here.object()
    assert thing is not None
    here.api.away = "reset"
    with pytest.raises(TemporaryError):
        reconcile.reconcile(json.loads(json.dumps({**thing, "status": {}})), here.deps)
    here.api.away = None
    here.look()
    assert len(here.runs()) == 1


@pytest.mark.parametrize("lost", range(1, 6))
def test_answers_that_are_lost(here: Place, lost: int) -> None:
    """The write is done, its answer is not heard."""
    here.apply()
    for _ in range(lost):
        thing = here.object()
        here.api.away = "lost"
        try:
            reconcile.reconcile(json.loads(json.dumps(thing)), here.deps)
        except (TemporaryError, Conflict):
            continue
    here.api.away = None
    here.look()
    here.play()
    here.look()
    assert here.phase() == "Running"
    assert len(here.runs()) == 1


def test_an_object_that_has_changed_meanwhile_is_decided_anew(here: Place) -> None:
    here.apply()
    here.look(turns=1)
    old = json.loads(json.dumps(here.object()))
    here.apply(annotations={"somebody": "else"})
    with pytest.raises(Conflict):
        reconcile.reconcile({**old, "status": {}}, here.deps)
    here.look()
    assert len(here.runs()) == 1


def test_of_two_operators_that_both_believe_to_act_one_is_followed(here: Place) -> None:
    """The Lease ran out while the first one stood still, between its look for a KFP run and making one."""
    here.apply()
    submit, entered, go = here.deps.kfp.submit, threading.Event(), threading.Event()

    def slow(*arguments: object) -> str:
        entered.set()
        go.wait(10)
        return submit(*arguments)  # type: ignore[arg-type]

    first = dataclasses.replace(here.deps, kfp=dataclasses.replace(here.deps.kfp))
    first.kfp.submit = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: here.look(deps=first))
    thread.start()
    assert entered.wait(10)
    here.look()
    go.set()
    thread.join(10)
    assert len(here.runs()) == 2
    here.play()
    for _ in range(3):
        here.look()
    assert sorted(run["state"] for run in here.runs()) == ["RUNNING", "SUCCEEDED"]
    assert here.phase() == "Running"
    holder = here.run().claim("nobody")
    assert here.status()["kfp"]["runId"] == holder
    here.finish()
    here.look()
    assert here.phase() == "Succeeded"


def test_one_operator_holds_the_lease(here: Place) -> None:
    cluster = here.deps.cluster
    leases = [Lease(cluster, f"pod-{i}", duration=1, renew=0.1) for i in range(3)]
    for lease in leases:
        lease.start()
    until(lambda: any(lease.acts for lease in leases))
    for _ in range(10):
        assert sum(lease.acts for lease in leases) == 1
        time.sleep(0.05)
    holder = next(lease for lease in leases if lease.acts)
    holder._stop.set()  # it is killed: it neither renews nor gives up
    holder._thread.join(5)
    others = [lease for lease in leases if lease is not holder]
    until(lambda: any(lease.acts for lease in others))
    assert not holder.acts, "it stops before another begins"
    second = next(lease for lease in others if lease.acts)
    second.stop()
    third = next(lease for lease in others if lease is not second)
    began = time.monotonic()
    until(lambda: third.acts)
    assert time.monotonic() - began < 0.8, "what is given up is taken at once"
    third.stop()


def test_an_edit_that_is_invalid_leaves_the_run_alone(here: Place) -> None:
    start(here)
    here.apply(mixtures=[{"name": "m", "rules": [{"text": "nobody"}]}])
    here.look()
    assert here.reason("Accepted") == "False Invalid"
    assert here.phase() == "Running"
    here.finish()
    here.look()
    assert here.runs()[0]["state"] == "SUCCEEDED"
    here.look()
    assert here.look() == inf


def test_the_namespace_is_being_deleted(here: Place) -> None:
    start(here)
    here.left_over()
    here.api.forbidden.add(("create", "events"))
    here.delete()
    here.look()
    here.play()
    here.look()
    assert here.object() is None
    assert here.jobs() == []


@pytest.mark.parametrize("stuck", ["KFP is away", "the run does not end"])
def test_a_deletion_is_bounded(here: Place, stuck: str) -> None:
    start(here)
    if stuck == "KFP is away":
        here.kfp.status = 503
    here.delete()
    here.look()
    assert here.phase() == "Ending"
    assert here.look(deps=at(here, seconds=BOUND.seconds - 60)) < inf
    assert here.object() is not None
    here.look(deps=at(here, seconds=BOUND.seconds + 60))
    assert here.object() is None
    assert "GaveUp" in here.events()


def test_the_clock_jumps(here: Place) -> None:
    start(here)
    for days in (-2, 2, -1):
        here.look(deps=at(here, days=days))
    assert here.phase() == "Running"
    here.finish()
    here.look(deps=at(here, days=-2))
    assert here.phase() == "Succeeded"
    assert len(here.runs()) == 1


def test_two_hundred_mixtures(here: Place) -> None:
    mixtures = [
        {"name": f"top{i}", "rules": [{"text": "raw", "where": [{"score": "raw", "top": i / 201}]}]}
        for i in range(1, 201)
    ]
    here.apply(mixtures=mixtures)
    here.look()
    here.play()
    here.look()
    here.finish()
    here.look()
    status = here.status()
    assert status["phase"] == "Succeeded"
    assert len(status["datasets"]) == 200
    assert len(json.dumps(status)) < 200_000, "an object has 1.5 MB"


def test_an_object_of_an_older_crd(here: Place) -> None:
    """It lacks what has become required, or has what is no longer known: refused in words, not with a crash."""
    here.apply(columns=[{"name": "old", "caption": {}}], colour="green")
    assert here.look() == inf
    assert here.phase() == "Refused"
    message = here.status()["conditions"][0]["message"]
    assert "spec.columns[0].caption.model: missing" in message
    assert "spec.colour: unknown key" in message
    here.delete()
    here.look()
    assert here.object() is None


def test_defaults_that_a_newer_crd_fills_in_are_no_edit(here: Place) -> None:
    start(here)
    here.apply(scorer={"model": "ViT-L-14", "weights": "openai"}, columns=[], drop=[], suspend=False)
    here.look()
    assert [run["state"] for run in here.runs()] == ["RUNNING"]


def test_the_annotation_of_a_run_that_goes_on_starts_nothing_later(here: Place) -> None:
    start(here)
    here.apply(annotations={RETRY: "early"})
    here.look()
    here.finish("FAILED")
    here.look()
    here.look()
    assert here.phase() == "Failed"
    assert len(here.runs()) == 1


def test_a_deleted_object_of_which_the_watch_is_late(here: Place) -> None:
    start(here)
    old = json.loads(json.dumps(here.object()))
    here.delete()
    here.look()
    here.play()
    here.look()
    assert reconcile.reconcile({**old, "status": {**old["status"], "phase": "Pending"}}, here.deps) == inf
    assert here.deps.cluster.get(RECAPTIONS, "test") is None
    assert len(here.runs()) == 1
