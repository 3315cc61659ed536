"""What is rare, and must neither stop the operator nor let it go wrong: late listings, foreign files, odd answers."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.base.errors import PermanentError, TemporaryError
from pipelines.kubeflow.client import KfpRun
from pipelines.kubernetes.cluster import EVENTS, RECAPTIONS, Cluster
from pipelines.operator import controller as module
from pipelines.operator.controller import WORKERS, Controller
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.recaption.decide import LATER, decide
from pipelines.operator.recaption.observation import Observation
from pipelines.operator.runtime import dump_lists
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.dump_lists import DumpLists
from pipelines.operator.runtime.kfp import SHORTEST, Kfp
from pipelines.operator.runtime.last_resort import BOUND
from pipelines.operator.runtime.lease import NAME, Lease
from pipelines.operator.runtime.settings import Settings
from tests.pipelines.kubernetes.api_server import Refused
from tests.pipelines.operator.place import Place, until
from tests.pipelines.operator.recaption.test_reconcile import start
from tests.pipelines.operator.test_faults import at

UNDER_WAY = Path(__file__).parent / "golden" / "under_way.yaml"


def test_an_operator_goes_on_with_what_an_earlier_version_began() -> None:
    """The golden file is never written anew: another hash would end the runs of all clusters that are upgraded."""
    thing = yaml.safe_load(UNDER_WAY.read_text())
    run = KfpRun("run-1", "RUNNING", "2026-11-24T12:00:01Z")
    decision = decide(thing, Observation(datetime(2026, 11, 24, 13, tzinfo=UTC), runs=(run,)))
    assert (decision.act, decision.status["phase"]) == (None, "Running")
    assert decision.status["kfp"]["name"] == thing["status"]["kfp"]["name"]
    failed = {**thing, "status": {**thing["status"], "phase": "Failed", "cleaned": True}}
    failed["status"]["completionTime"] = "2026-11-24T12:30:00Z"
    decision = decide(failed, Observation(datetime(2026, 11, 24, 13, tzinfo=UTC)))
    assert (decision.act, decision.status["phase"]) == (None, "Failed"), "nor does one start again that has failed"


def idle(here: Place) -> Controller:
    """One without threads."""
    return Controller(here.deps, Lease(here.deps.cluster, "pod"))


def refuse(here: Place, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, message: str) -> None:
    """The API server creates nothing of this kind."""
    create = here.api.create

    def refused(what: str, body: Object) -> Object:
        if what == kind:
            raise Refused(code, message)
        return create(what, body)

    monkeypatch.setattr(here.api, "create", refused)


class During:
    """Something happens, and the watch tells it, between a listing and what is made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
        find = Cluster.find

        def late(cluster: Cluster, resource: str, *arguments: Any) -> Any:
            found = find(cluster, resource, *arguments)
            if resource == RECAPTIONS:
                happens()
            return found

        monkeypatch.setattr(Cluster, "find", late)


def test_what_is_made_during_a_listing_is_not_taken_for_gone(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made = idle(here)

    def happens() -> None:
        here.apply("late")
        made.update(RECAPTIONS, json.loads(json.dumps(here.object("late"))))

    During(monkeypatch, happens)
    made.list_all()
    assert [thing["metadata"]["name"] for thing in made.objects_of(RECAPTIONS)] == ["late"]
    assert made.queue.take() == (RECAPTIONS, "research", "late")


def test_what_is_made_anew_during_a_listing_is_not_taken_for_gone(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here.apply()
    made = idle(here)
    made.list_all()
    with here.api.changed:
        here.api.remove("recaptions", "test")

    def happens() -> None:
        here.apply()
        made.update(RECAPTIONS, json.loads(json.dumps(here.object())))

    During(monkeypatch, happens)
    made.list_all()
    assert len(made.objects_of(RECAPTIONS)) == 1


def test_an_edit_during_a_listing_stands(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here.apply()
    made = idle(here)
    made.list_all()

    def happens() -> None:
        here.apply(suspend=True)
        made.update(RECAPTIONS, json.loads(json.dumps(here.object())))

    During(monkeypatch, happens)
    made.list_all()
    assert [thing["spec"]["suspend"] for thing in made.objects_of(RECAPTIONS)] == [True]


def test_another_object_of_the_same_name_outlives_the_news_of_the_first_ones_end(here: Place) -> None:
    """kopf tells each uid's news in a thread of its own."""
    here.apply()
    made, old = idle(here), json.loads(json.dumps(here.object()))
    made.update(RECAPTIONS, old)
    with here.api.changed:
        here.api.remove("recaptions", "test")
    here.apply()
    made.update(RECAPTIONS, json.loads(json.dumps(here.object())))
    made.remove(RECAPTIONS, old)
    assert len(made.objects_of(RECAPTIONS)) == 1
    assert made.queue.take() == (RECAPTIONS, "research", "test")


def test_a_listing_finds_what_is_due_no_more(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API server that is just starting says 404 of what it will have in a moment."""
    monkeypatch.setattr(module, "LIST_EVERY", 0.05)
    here.apply()
    made = idle(here)
    made.list_all()
    key = made.queue.take()
    assert key
    made.queue.done(key, inf)
    made.list_all()
    until(lambda: made.queue.overdue > 0)
    assert made.queue.take() == key


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("runs/{run}/status.json", '{"stages": {"embed": {"sta'),
        ("runs/{run}/status.json", "[]"),
        ("runs/{run}/status.json", '{"stages": ["embed"]}'),
        ("runs/{run}/status.json", '{"stages": {"embed": {"state": "running", "total": 3, "shards": "many"}}}'),
        ("runs/{run}/status.json", '{"stages": {"report": "done"}}'),
        ("runs/{run}/status.json", "\x00\x00"),
        ("claims/{kfp}.json", ""),
        ("claims/{kfp}.json", "{}"),
    ],
)
def test_a_file_that_nobody_can_read(here: Place, path: str, content: str) -> None:
    """It is told, it is waited for, and it keeps nobody from deleting the object."""
    start(here)
    whole = here.status()
    folder = here.folder / "storage"
    odd = folder / path.format(run=whole["run"].rpartition("/")[2], kfp=whole["kfp"]["runId"])
    before = odd.read_text() if odd.exists() else None
    if path.startswith("claims/"):
        here.deps.cluster.patch(RECAPTIONS, "test", {"status": {"run": None}}, "status")
    odd.write_text(content)
    assert here.look() == LATER
    assert here.reason("Reachable") == "False Refused"
    assert odd.name in next(c["message"] for c in here.status()["conditions"] if c["type"] == "Reachable")
    if before is not None:
        odd.write_text(before)
        here.look()
        assert here.reason("Reachable") == "True Answered"
        odd.write_text(content)
    here.delete()
    here.look(deps=at(here, seconds=BOUND.seconds + 60))
    assert here.object() is None


@pytest.mark.parametrize("content", ["", "{}", '{"by": '])
def test_a_claim_that_nobody_can_read(here: Place, content: str) -> None:
    start(here)
    (Path(here.status()["run"]) / "claim.json").write_text(content)
    here.finish("FAILED")
    assert here.look() == LATER
    assert here.reason("Reachable") == "False Refused"
    here.delete()
    here.look(deps=at(here, seconds=BOUND.seconds + 60))
    assert here.object() is None


def test_results_that_nobody_can_read(here: Place) -> None:
    start(here)
    run = here.run()
    here.finish()
    run.storage.write(f"{run.folder}/results.json", b'{"rows": [{"average": 1}]}')
    assert here.look() == LATER
    assert here.reason("Reachable") == "False Refused"


def test_a_kfp_run_that_is_deleted_before_its_plan_was_seen_leaves_no_claim(here: Place) -> None:
    here.apply()
    here.look()
    here.play()
    here.kfp.held["runs"].clear()
    here.look()
    assert here.reason("Failed") == "True KFPRunDeleted"
    here.apply(annotations={RETRY: "1"})
    here.look()
    here.play()
    here.look()
    assert here.phase() == "Running"


@pytest.mark.parametrize("suspended", [False, True])
def test_an_edit_that_is_taken_back_while_the_run_is_being_ended(here: Place, suspended: bool) -> None:
    start(here)
    mixtures = [{"name": "raw", "rules": [{"text": "raw"}]}]
    here.apply(mixtures=[{**mixtures[0], "name": "other"}])
    here.look()
    here.apply(mixtures=mixtures, suspend=suspended)
    here.look()
    here.play()
    here.look()
    assert here.phase() == ("Suspended" if suspended else "Running")
    here.apply(suspend=False)
    here.look()
    here.play()
    here.look()
    assert here.phase() == "Running"
    assert sorted(run["state"] for run in here.runs()) == ["FAILED", "RUNNING"]


def test_a_suspension_that_is_taken_back_while_the_run_is_being_ended(here: Place) -> None:
    start(here)
    here.apply(suspend=True)
    here.look()
    here.apply(suspend=False)
    here.look()
    here.play()
    for _ in range(2):
        here.look()
    assert here.phase() == "Running"
    assert here.reason("Suspended") == "False Resumed"
    assert [run["state"] for run in here.runs()] == ["RUNNING"]


def test_in_a_kfp_of_several_users_a_namespace_has_more_than_one_run(here: Place) -> None:
    here.kfp.multi_user = True
    start(here)
    here.apply("second", mixtures=[{"name": "b", "rules": [{"text": "raw"}]}])
    here.look("second")
    assert len(here.runs()) == 2
    assert [pipeline["namespace"] for pipeline in here.kfp.held["pipelines"]] == ["research"]


def test_a_page_in_kfps_place_is_no_answer(here: Place) -> None:
    """A proxy that says 200 to everything."""
    start(here)
    before = here.status()["kfp"]
    here.apply("second", mixtures=[{"name": "b", "rules": [{"text": "raw"}]}])
    here.kfp.status = 200
    for name in ("test", "second"):
        assert here.look(name) == LATER
    assert here.status()["kfp"] == before
    assert "runId" not in here.status("second")["kfp"]
    here.kfp.status = None
    for name in ("test", "second"):
        here.look(name)
    assert len(here.runs()) == 2
    assert here.reason("Reachable") == "True Answered"


def test_a_token_that_is_not_there(here: Place, tmp_path: Path) -> None:
    settings = dataclasses.replace(here.deps.settings, token_file=tmp_path / "token")
    deps = dataclasses.replace(here.deps, settings=settings, kfp=Kfp(settings, here.deps.kfp.package))
    here.apply()
    assert here.look(deps=deps) == LATER
    assert here.reason("Reachable") == "False NoAnswer"
    (tmp_path / "token").write_text("secret\n")
    deps.kfp._down_until = 0.0
    here.look(deps=deps)
    assert len(here.runs()) == 1


def test_many_that_find_kfp_away_at_once_wait_as_one(here: Place) -> None:
    here.kfp.status, here.kfp.delay = 503, 0.1
    failed: list[TemporaryError] = []

    def ask() -> None:
        try:
            here.deps.kfp.find("research", "x")
        except TemporaryError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(failed) == WORKERS
    assert here.deps.kfp._down_until - time.monotonic() <= SHORTEST
    assert len(here.kfp.asked) < WORKERS, "those that come later do not ask"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (403, 'events "x" is forbidden: exceeded quota: few'),
        (409, 'Operation cannot be fulfilled on resourcequotas "few": the object has been modified'),
        (503, "busy"),
    ],
)
def test_an_event_that_can_not_be_told_stops_nothing(
    here: Place, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    refuse(here, monkeypatch, "events", code, message)
    start(here)
    assert here.phase() == "Running"


def test_a_creation_that_is_in_somebodys_way_is_tried_again(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(here, monkeypatch, "events", 409, 'Operation cannot be fulfilled on resourcequotas "few"')
    with pytest.raises(TemporaryError, match="resourcequotas"):
        here.deps.cluster.create(EVENTS, {"metadata": {"name": "x"}})


def test_a_lease_that_says_nothing_is_taken(here: Place) -> None:
    here.api.put("leases", {"metadata": {"name": NAME, "namespace": "research"}})
    lease = Lease(here.deps.cluster, "pod", duration=5, renew=0.1)
    lease.start()
    until(lambda: lease.acts)
    lease.stop()


def test_the_lease_outlives_a_bug(
    here: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease, get, calls = Lease(here.deps.cluster, "pod", duration=5, renew=0.05), Cluster.get, []

    def buggy(*arguments: Any) -> Object | None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("oh")
        return get(*arguments)

    monkeypatch.setattr(Cluster, "get", buggy)
    lease.start()
    until(lambda: lease.acts)
    assert "a bug" in caplog.text
    lease.stop()


class Holder:
    """A Lease that a test takes away."""

    acts = True


def test_who_loses_the_lease_while_waiting_does_nothing(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def note(thing: Object, _: Any) -> float:
        looked.append(thing["metadata"]["name"])
        return inf

    monkeypatch.setitem(module.KINDS, RECAPTIONS, ("Recaption", note))
    holder = Holder()
    made = Controller(here.deps, holder)  # type: ignore[arg-type]
    with made.working():
        until(lambda: not made.unready())
        time.sleep(0.2)  # all wait for something to do
        holder.acts = False
        here.apply()
        made.update(RECAPTIONS, json.loads(json.dumps(here.object())))
        time.sleep(0.5)
        assert looked == []
        holder.acts = True
        until(lambda: looked == ["test"])


def test_slow_looks_are_no_reason_to_restart(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that is away takes two minutes to say so; that everybody waits for it a restart doesn't mend."""
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    holder = Holder()
    made = Controller(here.deps, holder)  # type: ignore[arg-type]
    for i in range(WORKERS + 1):
        made.queue.add((RECAPTIONS, str(i), "test"))  # a namespace has a share of the workers only
    for _ in range(WORKERS - 1):
        made.queue.take()
    time.sleep(0.1)
    assert "has been due" in made.unhealthy()[0], "somebody has nothing to do"
    made.queue.take()
    assert made.unhealthy() == []


def test_a_slow_look_does_not_keep_the_process_from_ending(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUTDOWN", 0.3)
    go = threading.Event()

    def slow(*_: Any) -> float:
        go.wait(20)
        return inf

    monkeypatch.setitem(module.KINDS, RECAPTIONS, ("Recaption", slow))
    for name in ("a", "b", "c"):
        here.apply(name)
    made = Controller(here.deps, Holder())  # type: ignore[arg-type]
    with made.working():
        until(lambda: made.queue.busy == 3)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    go.set()


def test_an_index_without_an_end_keeps_nobody_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(dump_lists, "list_dumps", lambda _: end.wait(20) and ["CC-MAIN-2026-30"])
    lists, before = DumpLists(patience=0.05), threading.active_count()
    assert [lists.get(str(i)) for i in range(dump_lists.MOST + 1)] == [None] * (dump_lists.MOST + 1)
    assert threading.active_count() - before <= dump_lists.MOST
    monkeypatch.setattr(dump_lists, "LONGEST", 0.0)
    with pytest.raises(TemporaryError, match="no end"):
        lists.get("0")
    monkeypatch.setattr(dump_lists, "LONGEST", 300.0)
    end.set()
    until(lambda: lists.get("0") == ["CC-MAIN-2026-30"])


def test_an_index_that_is_no_address() -> None:
    with pytest.raises(PermanentError, match=r"dumps http://\[x/collinfo\.json: .* is not a valid host"):
        DumpLists().get("http://[x")


def test_a_port_that_there_can_not_be() -> None:
    with pytest.raises(PermanentError, match="RECAPTION_PORT: found 99999"):
        Settings.from_environment({"KF_PIPELINES_ENDPOINT": "http://kfp", "RECAPTION_PORT": "99999"})


def test_lists_of_dumps_nobody_asks_for_are_forgotten(tmp_path: Path) -> None:
    lists = DumpLists(kept=0.0)
    for i in range(20):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "collinfo.json").write_text('[{"id": "CC-MAIN-2026-30"}]')
        assert lists.get(str(folder)) == ["CC-MAIN-2026-30"]
    assert len(lists._answers) <= 2
