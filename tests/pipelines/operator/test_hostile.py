"""A tenant who may write anything into his storage and his objects, and stops nobody's operator by that."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from math import inf
from typing import Any

import pytest

from components.base.guard import Guard
from pipelines.kubernetes.cluster import RECAPTIONS
from pipelines.operator.controller import DEEP, Controller
from pipelines.operator.recaption import reconcile
from pipelines.operator.recaption.decide import MUCH_LATER
from pipelines.operator.runtime import last_resort
from pipelines.operator.runtime.conditions import Object, condition, with_condition
from pipelines.operator.runtime.dump_lists import MOST, DumpLists
from pipelines.operator.runtime.last_resort import BOUND
from pipelines.operator.runtime.lease import Lease
from tests.components.stages.discover.test_dumps import NEWEST_FIRST, index
from tests.pipelines.operator.place import Place, until
from tests.pipelines.operator.process import here_as, running
from tests.pipelines.operator.recaption.test_reconcile import start
from tests.pipelines.operator.test_faults import at

BRACKETS = b"[" * 100_000
STATUS, CLAIM = "runs/{run}/status.json", "claims/{kfp}.json"


def message(here: Place, kind: str = "Reachable") -> str:
    return str(condition(here.status(), kind)["message"])


def put(here: Place, path: str, data: bytes) -> None:
    run = here.run()
    run.storage.write(path.format(run=run.name, kfp=here.runs()[0]["run_id"]), data)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (STATUS, BRACKETS),
        (STATUS, b'{"stages": ' + BRACKETS),
        (STATUS, b"[1]"),
        (STATUS, b" " * (2 << 20)),
        (STATUS, json.dumps({"stages": {"mix": {"state": "running", "total": 1, "tasks": 10**400}}}).encode()),
        (STATUS, json.dumps({"stages": {"mix": {"state": "running", "samples_per_second": float("nan")}}}).encode()),
        (STATUS, json.dumps({"stages": {"mix": {"failures": {"x": 1e300}}}}).encode()),
        (CLAIM, BRACKETS),
        (CLAIM, b'{"run": "' + b"x" * 100_000 + b'"}'),
    ],
)
def test_a_file_that_recaption_did_not_write_is_one_line_and_keeps_no_finalizer(
    here: Place, path: str, data: bytes
) -> None:
    start(here)
    if path == CLAIM:  # it is read where the status doesn't know the run yet
        thing = here.object()
        assert thing is not None
        here.deps.cluster.patch(RECAPTIONS, "test", {"status": {"run": None}}, "status")
        run_id = here.runs()[0]["run_id"]
        here.deps.storage(here.spec()["storage"]).write(f"claims/{run_id}.json", data)
    else:
        put(here, path, data)
    assert here.look() < inf
    assert here.reason("Reachable") == "False Refused"
    assert len(message(here).splitlines()) == 1
    assert len(message(here)) < 400
    here.delete()
    here.look()
    assert here.runs()[0]["state"] == "CANCELING", "what runs is ended all the same"
    here.look(deps=at(here, seconds=BOUND.seconds + 60))
    assert here.object() is None


def test_a_large_status_takes_no_memory(here: Place) -> None:
    start(here)
    stages = b",".join(b'"%d":{}' % i for i in range(1_000_000))
    put(here, STATUS, b'{"stages":{' + stages + b"}}")
    del stages
    tracemalloc.start()
    try:
        here.look()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert here.reason("Reachable") == "False Refused"
    assert "found more than 1,048,576 bytes" in message(here)
    assert peak < 16 << 20


def test_what_a_tenant_wrote_is_shown_without_what_a_terminal_obeys(here: Place) -> None:
    start(here)
    stage = {"state": "running", "waits_for": "a\x1b[2Jb\nc", "total": 1, "failures": {"no\x1b[31mreason": 1}}
    put(here, STATUS, json.dumps({"stages": {"m\x07ix": stage}}).encode())
    here.look()
    said = json.dumps(here.status(), ensure_ascii=False)
    assert not [c for c in ("\\u001b", "\\u0007", "\x1b", "\x07") if c in said]
    assert here.status()["stages"][0]["name"] == "mix"
    assert condition(here.status(), "Running")["message"] == "mix waits: a[2Jb c"
    here.ends("mix", ValueError("\x1b]0;title\x07" + "long " * 5000))
    here.finish("FAILED")
    here.look()
    for event in here.api.of("events"):
        assert len(event["message"]) <= 1024
        assert "\x1b" not in event["message"]


def test_many_stages_make_a_status_that_an_object_has_room_for(here: Place) -> None:
    start(here)
    entry = {"state": "done", "total": 1, "shards": 1}
    put(here, STATUS, json.dumps({"stages": {f"s{i}": entry for i in range(15_000)}}).encode())
    here.look()
    assert here.phase() == "Running"
    assert len(json.dumps(here.status())) < 200_000


@pytest.fixture
def controller(here: Place) -> Controller:
    return Controller(here.deps, Lease(here.deps.cluster, "pod"))


def turn(here: Place, controller: Controller) -> None:
    """One turn of a worker, with the object as a watch tells it."""
    found = here.object()
    assert found is not None
    controller.update(RECAPTIONS, json.loads(json.dumps(found)))
    controller._reconcile((RECAPTIONS, "research", "test"))


def test_what_no_decision_can_deal_with_is_a_condition_and_ends_with_the_deletions_bound(
    here: Place, controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    """The status is one that an older CRD admitted, where somebody may have edited it."""
    start(here)
    odd = [{"type": "Running", "status": "True"}, {"type": "Accepted", "status": "True"}]
    here.deps.cluster.patch(RECAPTIONS, "test", {"status": {"conditions": odd}}, "status")
    with pytest.raises(KeyError):
        reconcile.reconcile(json.loads(json.dumps(here.object())), here.deps)
    turn(here, controller)
    assert here.reason("Reachable") == "False Bug"
    assert message(here).endswith("tries again: KeyError: 'lastTransitionTime'")
    assert "test: a bug; tried again in 1 s" in caplog.text
    events, version = here.events(), (here.object() or {})["metadata"]["resourceVersion"]
    turn(here, controller)
    assert (here.object() or {})["metadata"]["resourceVersion"] == version, "said once"
    assert here.events() == events
    here.delete()
    turn(here, controller)
    assert here.object() is not None
    later = here.deps
    controller.deps = at(here, seconds=BOUND.seconds + 1)
    turn(here, controller)
    assert here.object() is None
    assert "GaveUp" in here.events()
    controller.deps = later


def test_a_deletion_is_looked_at_when_its_bound_has_passed(here: Place) -> None:
    start(here)
    here.delete()
    thing = here.object()
    assert thing is not None
    wait = last_resort.settle(RECAPTIONS, thing, here.deps.cluster, KeyError("x"), here.deps.now())
    assert BOUND.seconds - 60 < wait <= BOUND.seconds + 2


@pytest.fixture
def _deep() -> Iterator[None]:
    """The stand-in API server writes JSON as deep as a real one does."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEP)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("_deep")
def test_an_object_of_brackets_in_brackets_is_refused_and_the_others_go_on(here: Place) -> None:
    """A union of a text and an object has no type in a CRD; Go's JSON has 10,000 levels, Python's 1,000."""
    here.apply("good", suspend=True)
    deep = json.loads("[" * 9900 + "]" * 9900)
    here.apply("evil", mixtures=[{"name": "m", "rules": [{"text": deep}]}])
    with running(here, here_as()):
        until(lambda: here.status("good").get("phase") == "Suspended", 60)
        until(lambda: here.status("evil").get("phase") == "Refused", 60)
        here.apply("later", suspend=True)
        until(lambda: here.status("later").get("phase") == "Suspended", 60)
    said = condition(here.status("evil"), "Accepted")["message"]
    assert said.startswith("recipe: spec.mixtures[0].rules[0].text: found [[[")
    assert len(said) < 200


def test_slow_indexes_of_one_namespace_hold_no_other_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "refusal", lambda *_: None)  # an index on loopback stands for a public one
    lists = DumpLists(patience=0.05)
    with ExitStack() as opened:
        slow = [opened.enter_context(index(0))[0] for _ in range(MOST)]
        assert [lists.get(url, "crowd") for url in slow] == [None] * MOST
        with index(200) as (url, _):
            lists.patience = 20.0
            assert lists.get(url, "research") == NEWEST_FIRST


def test_a_bug_of_a_question_is_a_condition(here: Place) -> None:
    start(here)
    status: Object = {"kfp": {"name": None, "runId": None}}
    here.deps.cluster.patch(RECAPTIONS, "test", {"status": status}, "status")
    assert here.look() == MUCH_LATER
    assert here.reason("Reachable") == "False Bug"
    assert message(here) == "KeyError: 'name'"
    here.delete()
    here.look(deps=at(here, seconds=BOUND.seconds + 60))
    assert here.object() is None


def test_a_condition_is_bounded_and_keeps_its_lines(here: Place) -> None:
    made: dict[str, Any] = with_condition(
        {}, "Accepted", False, "Invalid", "a\x1b[1m\nb" + "c" * 9000, 1, here.deps.now()
    )
    text = made["conditions"][0]["message"]
    assert text.startswith("a[1m\nbccc")
    assert len(text) == 2000
